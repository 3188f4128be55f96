"""Errors that are meant for users: one line that names the file, field or option, the cause and the cure.

Everything that midisynth raises on bad input derives from `MidisynthError`; the command line prints its text without
a traceback. Anything else is a bug of ours. This module imports the standard library alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence


class MidisynthError(Exception):
    """Base of every error that a user can cause and mend."""


class UsageError(MidisynthError):
    """The command line or a configuration is wrong (exit code 2)."""


class PluginError(UsageError):
    """A registered model, data module or corpus cannot be found or imported (exit code 2)."""


class CheckpointError(MidisynthError):
    """A checkpoint is missing, damaged, foreign, or asks for something that is not allowed."""


class TensorMismatch(CheckpointError):
    """A file has not the tensors that a model has.

    Args:
        message: Tells how many, and the first of them.
        missing: Names of those that it lacks.
        unexpected: Names of those that have no place.
    """

    def __init__(self, message: str, missing: Sequence[str], unexpected: Sequence[str]):
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        super().__init__(message)

    def __reduce__(self):
        return type(self), (str(self), self.missing, self.unexpected)


class DataError(MidisynthError):
    """A corpus or a prepared cache is missing or not what its reader expects."""


class RenderError(MidisynthError):
    """A model produced something that must not be written, such as NaN."""


class TrainingError(MidisynthError):
    """Training cannot go on: numbers are not finite, or a batch does not fit into memory."""


class FileError(MidisynthError):
    """One file cannot be read or written.

    Args:
        path: The file; None for data that came from memory.
        reason: What is wrong and, where there is one, the cure; no trailing full stop.
    """

    def __init__(self, path: str | os.PathLike[str] | None, reason: str):
        self.path = None if path is None else os.fspath(path)
        self.reason = reason
        super().__init__(f"{self.path or '<memory>'}: {reason}")

    def __reduce__(self):
        return type(self), (self.path, self.reason)


class MidiError(FileError):
    """A MIDI file cannot be read."""


class ScoreError(FileError):
    """A score file cannot be read."""


class AlignmentError(FileError):
    """A file that matches the notes of a performance with those of a score cannot be read, or fits neither."""


class AudioError(FileError):
    """An audio file cannot be read or written."""
