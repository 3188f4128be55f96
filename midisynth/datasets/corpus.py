"""What a corpus reader is: it turns a folder on disk into records, and knows nothing of any model.

Readers are registered in the entry-point group `midisynth.corpora`; a data module opens them by name.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

from midisynth.errors import DataError, UsageError
from midisynth.music.midi import read_midi
from midisynth.music.notes import Performance

if TYPE_CHECKING:
    from torch import Tensor

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """One recording, score or file of a corpus.

    Attributes:
        corpus: Name of the corpus.
        id: Unique within the corpus and stable between runs; safe as a part of a file name.
        piece: The composition or song. Splits and statistics go by piece, so that no piece is in two splits.
        split: Official split, or one derived from `piece`.
        midi: MIDI file, or None.
        audio: Audio file, or None.
        stems: Audio files that sound together, in place of `audio`; a stem that ends early is silent from there on.
        score: Score file, or None.
        labels: File of notes in a form of the corpus's own, or None; its reader overrides `performance`.
        metadata: Whatever else the corpus says (composer, year, performer), plain values.
    """

    corpus: str
    id: str
    piece: str
    split: Split
    midi: Path | None = None
    audio: Path | None = None
    stems: tuple[Path, ...] = ()
    score: Path | None = None
    labels: Path | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unique among all corpora of a run."""
        return f"{self.corpus}/{self.id}"

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file behind the record, besides its stems."""
        return tuple(path for path in (self.midi, self.audio, self.score, self.labels) if path is not None)

    def performance(self) -> Performance:
        """Notes and controllers of the record.

        Raises:
            DataError: The corpus has no MIDI for this record.
            MidiError: The file cannot be read.
        """
        if self.midi is None:
            raise DataError(f"{self.name} has no MIDI file")
        return read_midi(self.midi)

    def waveform(self, sample_rate: int) -> Tensor:
        """Audio of the record, its stems added up, mixed to mono and resampled, [samples] float32.

        Args:
            sample_rate: Wanted rate (Hz).

        Raises:
            DataError: The corpus has no audio for this record.
            AudioError: The file cannot be read.
        """
        paths = self.stems or (self.audio,)
        if paths == (None,):
            raise DataError(f"{self.name} has no audio file")
        from torch.nn.utils.rnn import pad_sequence

        return pad_sequence([mono_audio(path, sample_rate) for path in paths], batch_first=True).sum(dim=0)


def mono_audio(path: Path, sample_rate: int) -> Tensor:
    """An audio file, mixed to mono and resampled to `sample_rate` (Hz), [samples] float32.

    Raises:
        AudioError: It cannot be read.
    """
    from midisynth.audio.io import load_audio

    return load_audio(path, sample_rate).mean(dim=0)


class Corpus(ABC):
    """A data set on disk, opened at `root`.

    A subclass adds its own options to the constructor; they are what a user may write under `--data.NAME.`.

    Args:
        root: Folder of the data set.
        weight: Share of this corpus when several are mixed, relative to the others.

    Attributes:
        version: Raised whenever the reader's result changes for the same files; part of every cache key.
        content: What its records carry, out of "midi", "audio" and "score".
    """

    version: ClassVar[int] = 1
    content: ClassVar[frozenset[str]] = frozenset({"midi", "audio"})

    def __init__(self, root: str, weight: float = 1.0):
        self.root = Path(root).expanduser()
        self.weight = weight
        if not self.root.is_dir():
            raise DataError(f"{type(self).__name__.lower()}: no such folder: {self.root}")

    @abstractmethod
    def records(self) -> list[Record]:
        """Every record, sorted by id, with its split.

        Raises:
            DataError: The folder is not in the layout of this corpus; names the file that is missing.
        """


def split_by_hash(piece: str, validation: float = 0.1, test: float = 0.1) -> Split:
    """Split of a piece in a corpus without official splits: a hash of the piece, the same on every machine.

    Args:
        piece: The piece (never a file name: two recordings of one piece belong into one split).
        validation: Share of the pieces for validation.
        test: Share of the pieces for testing.
    """
    position = int.from_bytes(hashlib.sha256(piece.encode()).digest()[:8], "big") / 2**64
    if position < test:
        return "test"
    return "validation" if position < test + validation else "train"


def chosen(option: str, value: T, choices: Any) -> T:
    """The value of an option that has a few choices.

    Args:
        option: Corpus and name of the option.
        value: What the user wrote.
        choices: The `Literal` type of the option.

    Raises:
        UsageError: It is not among the choices.
    """
    if value not in get_args(choices):
        raise UsageError(f"{option}: '{value}' is none of {', '.join(get_args(choices))}")
    return value


def piece_of(name: str, pattern: str | None) -> str:
    """The piece that a file's name tells.

    Args:
        name: Name without suffix.
        pattern: Regular expression that is searched for in the name; its first group is the piece. None, or no match:
            the name is the piece.

    Raises:
        DataError: The pattern is not a regular expression with a group.
    """
    if pattern is None:
        return name
    try:
        match = re.search(pattern, name)
        return match[1] if match else name
    except (re.error, IndexError) as error:
        raise DataError(f"piece_pattern: '{pattern}' is not a regular expression with a group ({error})") from error
