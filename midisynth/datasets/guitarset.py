"""Corpus `guitarset`: 360 excerpts on acoustic guitar with the notes of each string.

Q. Xi et al., "GuitarSet: A Dataset for Guitar Transcription", ISMIR 2018.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from midisynth.datasets.corpus import Corpus, Record, chosen
from midisynth.datasets.labels import from_labels
from midisynth.datasets.splits import Splits, validated_on_test, with_validation, without_held_out
from midisynth.errors import DataError
from midisynth.music.notes import Performance

#: What the published models were told, as GuitarSet does not say how loud a note is.
VELOCITY = 120

Recording = Literal["mic", "pickup"]
#: Folder of each recording, and what its files are called after the title.
RECORDINGS: dict[Recording, tuple[str, str]] = {
    "mic": ("audio_mono-mic", "_mic"),
    "pickup": ("audio_mono-pickup_mix", "_mix"),
}


@dataclass(frozen=True)
class GuitarSetRecord(Record):
    """An excerpt with its notes in a JAMS file.

    Attributes:
        program: General MIDI program of the guitar.
    """

    program: int = 24

    def performance(self) -> Performance:
        """Notes of the six strings, each a part of its own.

        Raises:
            DataError: The file is not what it should be.
        """
        return read_strings(self.labels, self.program)


class GuitarSet(Corpus):
    """GuitarSet as it is unpacked: `annotation/TITLE.jams` with `audio_mono-mic/TITLE_mic.wav`.

    Five styles with three chord progressions each; the third progression of each is held out. A piece is what all
    players were given, such as `BN3-119-G`.

    Args:
        root: Folder of these folders.
        recording: "mic": the microphone in front of the guitar. "pickup": the mixed signal of its pickup.
        program: General MIDI program of the notes: 24 is the guitar with nylon strings; the PyTorch re-implementation
            of spectrogram diffusion used 25, with steel strings.
        splits: "published": what is held out serves for validation and for testing. "separate": it is for testing
            alone, and a tenth of the other pieces is for validation.
        weight: Share of this corpus when several are mixed, relative to the others.
    """

    version: ClassVar[int] = 1

    def __init__(
        self,
        root: str,
        recording: Recording = "mic",
        program: int = 24,
        splits: Splits = "separate",
        weight: float = 1.0,
    ):
        super().__init__(root, weight)
        self.folder, self.suffix = RECORDINGS[chosen("guitarset.recording", recording, Recording)]
        self.program = program
        self.splits: Splits = chosen("guitarset.splits", splits, Splits)

    def records(self) -> list[Record]:
        """One record for each recording; published splits have two of what is held out.

        Raises:
            DataError: There are no recordings, or one has no notes.
        """
        audio = sorted((self.root / self.folder).glob(f"*{self.suffix}.wav"))
        if not audio:
            raise DataError(f"guitarset: no {self.folder}/*{self.suffix}.wav in {self.root}")
        records = sorted((self._record(path) for path in audio), key=lambda record: record.id)
        return validated_on_test(records) if self.splits == "published" else with_validation(without_held_out(records))

    def _record(self, audio: Path) -> GuitarSetRecord:
        title = audio.stem.removesuffix(self.suffix)
        labels = self.root / "annotation" / f"{title}.jams"
        if not labels.is_file():
            raise DataError(f"guitarset: {audio} has no notes: {labels} is missing")
        # A player, what was to be played, and how: 03_BN3-119-G_solo.
        player, _, rest = title.partition("_")
        piece, _, manner = rest.rpartition("_")
        style = piece.partition("-")[0]
        return GuitarSetRecord(
            "guitarset",
            id=title,
            piece=piece,
            split="test" if style.endswith("3") else "train",
            audio=audio,
            labels=labels,
            program=self.program,
            metadata={"player": player, "style": style.rstrip("0123456789"), "manner": manner},
        )


def read_strings(path: Path, program: int) -> Performance:
    """Notes of a JAMS file of GuitarSet: its `note_midi` annotations, one for each string.

    Args:
        path: The file.
        program: General MIDI program of the notes.

    Raises:
        DataError: It is damaged or has no notes.
    """
    try:
        annotations = json.loads(path.read_text(encoding="utf-8"))["annotations"]
        strings = [list(_rows(a["data"])) for a in annotations if a["namespace"] == "note_midi"]
        notes = [(row["time"], row["duration"], row["value"], part) for part, s in enumerate(strings) for row in s]
        onset, duration, pitch, part = np.array(notes, float).reshape(-1, 4).T
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is no JAMS file with note_midi annotations ({error!r}); fetch it again") from error
    if len(onset) == 0:
        raise DataError(f"{path}: has no notes")
    return from_labels(onset, onset + duration, pitch, [program] * len(strings), part.astype(int), VELOCITY)


def _rows(data: Any) -> Iterator[Mapping[str, Any]]:
    """Observations of an annotation, which JAMS keeps as a list of rows or as a table of columns."""
    if isinstance(data, list):
        yield from data
        return
    for values in zip(*data.values(), strict=True):
        yield dict(zip(data, values, strict=True))
