"""What DExter reads: scores, and performances of them, as arrays. It needs no weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from midisynth.errors import MidiError, ScoreError
from midisynth.models.dexter import published_codec
from midisynth.models.dexter.expression import CHANNELS, Expression, ExpressionCodec
from midisynth.models.dexter.features import Kind, score_features
from midisynth.models.dexter.midlevel import describe_aligned, describe_score, played_onsets, read_heard_features
from midisynth.music.alignment import AlignedPerformance, align
from midisynth.music.alignment_files import read_match
from midisynth.music.midi import read_midi
from midisynth.music.score import read_score_notes
from midisynth.music.score_notes import Score, deadpan

__all__ = ["CHANNELS", "DExterCodec", "Expression", "ExpressionCodec"]


class DExterCodec:
    """What `DExter` and its data module share: scores to features, performances to parameters.

    Args:
        features: What the network reads of a note, see `features.score_features`.
        repeats: Play the repeats of a score.
        source: Performance of the score to start from: a match file, or MIDI to be aligned; None: none.
        compat: See `ExpressionCodec`.

    Attributes:
        expression: The codec of performances.
    """

    def __init__(
        self,
        features: Kind = "rich",
        repeats: bool = True,
        source: str | None = None,
        compat: Literal["2024"] | None = None,
    ):
        self.features = features
        self.repeats = repeats
        self.source = source
        self.expression = ExpressionCodec(compat)
        self.max_duration_sec = 7200.0
        self.repair = False

    @property
    def key(self) -> Mapping[str, Any]:
        """Options that shape what `encode_performance` returns."""
        return {"features": self.features, "compat": self.expression.compat}

    def encode(self, path: Path) -> dict[str, Any]:
        """Read a score and, if there is one, the performance to start from.

        Returns:
            "score": `Score`; "features" [notes, features] and "written" [notes, 7], the mid-level features of the page,
            float32; with a source also "source": its "values" [notes, 5] and "midlevel" [notes, 7], float32, and
            "matched" [notes] bool.

        Raises:
            ScoreError: The score cannot be read, has no notes, or is longer than `max_duration_sec` at its own tempo.
            MidisynthError: The source cannot be read or aligned.
        """
        score = read_score_notes(path, repeats=self.repeats)
        length = deadpan(score).end_sec
        if length > self.max_duration_sec:
            raise ScoreError(
                path,
                f"it lasts {length:,.0f} s, over the limit of {self.max_duration_sec:,.0f} s (`max_duration_sec`)",
            )
        encoded = self.encode_score(score)
        if self.source is not None:
            aligned = self._read_source(Path(self.source), score)
            expression = self.expression.encode(aligned)
            encoded["source"] = {
                "values": expression.values,
                "midlevel": describe_aligned(aligned),
                "matched": expression.matched,
            }
        return encoded

    def encode_score(self, score: Score) -> dict[str, Any]:
        """What `encode` returns of a score without a performance to start from."""
        return {
            "score": score,
            "features": score_features(score, self.features),
            "written": describe_score(score),
        }

    def _read_source(self, path: Path, score: Score) -> AlignedPerformance:
        if path.suffix.lower() == ".match":
            return read_match(path, score)
        performance = read_midi(path, repair=self.repair, max_duration_sec=self.max_duration_sec)
        if len(performance.notes) == 0:
            raise MidiError(path, "it has no notes")
        return align(score, performance)

    def encode_performance(self, aligned: AlignedPerformance, heard: Path | None = None) -> dict[str, np.ndarray]:
        """Everything that training needs of a performance.

        Args:
            aligned: The performance.
            heard: Table of mid-level features of its recording, see `read_heard_features`; None: they are computed from
                its notes.

        Returns:
            "values" [notes, 5], within the limits of the codec, "score" [notes, features], "midlevel" and "written"
            [notes, 7] float32: of the performance and of the page; "matched" [notes] bool; "onset" [notes] float64
            (beats); "score_hash" [32] uint8, equal where the scores have the same notes.

        Raises:
            DataError: No note is matched, or the table cannot be read.
        """
        expression = self.expression.encode(aligned)
        values = expression.values
        if self.expression.compat is None:
            # What cannot be played, most of it from wrong alignments, would only stretch the scales.
            values = self.expression.limited(aligned.score, values)[0].astype(np.float32)
        if heard is None:
            midlevel = describe_aligned(aligned)
        else:
            onsets = played_onsets(aligned)
            if self.expression.compat:
                onsets[~expression.matched] = published_codec.MISSING
            midlevel = read_heard_features(heard).at(onsets, self.expression.compat).astype(np.float32)
        notes = aligned.score.notes
        what = b"".join(notes[name].astype(np.int64).tobytes() for name in ("onset_div", "duration_div", "pitch"))
        return {
            "values": values,
            "score": score_features(aligned.score, self.features),
            "midlevel": midlevel,
            "written": describe_score(aligned.score),
            "matched": expression.matched,
            "onset": notes["onset_beat"].astype(np.float64),
            "score_hash": np.frombuffer(hashlib.sha256(what).digest(), np.uint8),
        }
