"""Which note of a performance plays which note of the score."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.lib import recfunctions as rfn

from midisynth.errors import DataError
from midisynth.music.notes import Performance
from midisynth.music.score_notes import Score


@dataclass
class AlignedPerformance:
    """A performance whose notes are matched with those of its score.

    Attributes:
        score: What was to be played. Notes without a match were left out by the player ("deletions").
        performance: What was played: keys as they were held, pedal as controllers. Notes without a match are not in
            the score ("insertions").
        pairs: [matches, 2] int64, row of `score.notes` and row of `performance.notes`; every row at most once, in the
            order of the score.
    """

    score: Score
    performance: Performance
    pairs: np.ndarray

    @property
    def match_ratio(self) -> float:
        """Matches / (matches + insertions + deletions), 0..1."""
        either = len(self.score.notes) + len(self.performance.notes) - len(self.pairs)
        return len(self.pairs) / either if either else 0.0


_PREFIX = re.compile(r"^P\d+_")


class ScoreIds:
    """Finds rows of a score by ids as alignments write them.

    They may lack what the score's own ids have, or have more: the counter of repeats ("n12-1" where nothing is
    repeated, "n12" for the first time) and the prefix of a part ("P01_n12").

    Args:
        score: Its ids are unique.
    """

    def __init__(self, score: Score):
        names = score.notes["id"].tolist()
        shorts = [_PREFIX.sub("", name) for name in names]
        shared = {short for short, count in Counter(shorts).items() if count > 1}
        self._rows = {short: row for row, short in enumerate(shorts) if short not in shared}
        self._rows |= {name: row for row, name in enumerate(names)}

    def row(self, name: str) -> int | None:
        """Row of the note that an alignment calls `name`; None if the score has none."""
        short = _PREFIX.sub("", name)
        for known in (name, short):
            for candidate in (known, f"{known}-1", known.removesuffix("-1")):
                if candidate in self._rows:
                    return self._rows[candidate]
        return None


def unique_pairs(pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """Pairs of rows as `AlignedPerformance` has them: of several for one note the first counts, [matches, 2] int64."""
    by_score: dict[int, int] = {}
    played: set[int] = set()
    for row, note in pairs:
        if row not in by_score and note not in played:
            by_score[row] = note
            played.add(note)
    return np.array(sorted(by_score.items()), np.int64).reshape(-1, 2)


def without_skipped_bars(aligned: AlignedPerformance, bars: int = 2) -> AlignedPerformance:
    """Take passages out of a score that the player skipped (a repeat, mostly), and close up what follows.

    A passage is skipped if none of its notes has a match and its neighbours follow each other in less than a quarter of
    the time that it would have taken.

    Args:
        aligned: Any.
        bars: Shorter passages are left alone, as wrong alignment is likelier there.
    """
    rows, pairs = aligned.score.notes, aligned.pairs
    if len(pairs) < 2:
        return aligned
    onset, first = np.unique(rows["onset_quarter"][pairs[:, 0]], return_index=True)
    played = aligned.performance.notes["onset_sec"][pairs[first, 1]]
    bar = rows["bar"][pairs[first, 0]]
    seconds, quarters = np.diff(played), np.diff(onset)
    usual = np.median(seconds / quarters)
    gaps = np.flatnonzero((np.diff(bar) > bars) & (seconds < usual * quarters / 4))
    if len(gaps) == 0:
        return aligned
    keep = np.ones(len(rows), bool)
    shifted = rows.copy()
    for last, next_ in zip(bar[gaps].tolist(), bar[gaps + 1].tolist(), strict=True):
        # Whole bars go, so that the metre stays.
        inside = np.flatnonzero((rows["bar"] > last) & (rows["bar"] < next_))
        following = rows["bar"] >= next_
        if len(inside) == 0:  # rests
            continue
        keep[inside] = False
        lines = [rows[row]["onset_beat"] - rows[row]["bar_beat"] for row in (inside[0], np.argmax(following))]
        quarter = np.diff(aligned.score.quarters(lines))[0]
        shifted["onset_beat"][following] -= lines[1] - lines[0]
        shifted["onset_quarter"][following] -= quarter
        shifted["onset_div"][following] -= round(quarter * aligned.score.divisions)
        shifted["bar"][following] -= rows["bar"][following].min() - rows["bar"][inside].min()
    number = np.cumsum(keep) - 1
    score = aligned.score.with_notes(shifted[keep])
    return replace(aligned, score=score, pairs=np.stack([number[pairs[:, 0]], pairs[:, 1]], axis=1))


def align(score: Score, performance: Performance) -> AlignedPerformance:
    """Find out which note of a performance plays which note of the score.

    Dual dynamic time warping of the package parangonar: S. D. Peter et al., "Automatic Note-Level Score-to-Performance
    Alignments in the ASAP Dataset", TISMIR 6(1), 2023.

    Args:
        score: What was played; repeats are those of the performance.
        performance: Wrong, missing and added notes do not matter.

    Raises:
        DataError: parangonar is not installed, or cannot align these notes.
    """
    try:
        from parangonar import DualDTWNoteMatcher
    except ImportError as error:
        raise DataError(
            'aligning needs parangonar: pip install "midisynth-lightning[align]", or give a match file'
        ) from error
    rows, notes = score.notes, performance.notes
    ids = np.arange(max(len(rows), len(notes))).astype("U16")
    written = _columns(rows, ("onset_div", "duration_div", "onset_beat", "duration_beat", "pitch", "voice"))
    written = rfn.append_fields(written, ["is_grace", "id"], [rows["grace"], ids[: len(rows)]], usemask=False)
    played = _columns(notes, ("onset_sec", "duration_sec", "pitch", "velocity"))
    played = rfn.append_fields(played, "id", ids[: len(notes)], usemask=False)
    try:
        found = DualDTWNoteMatcher()(written, played, process_ornaments=False)
    except Exception as error:  # parangonar has no error type of its own
        raise DataError(f"parangonar cannot align these notes ({type(error).__name__}: {error})") from error
    pairs = [(int(e["score_id"]), int(e["performance_id"])) for e in found if e["label"] == "match"]
    return AlignedPerformance(score, performance, unique_pairs(pairs))


def _columns(table: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    return rfn.repack_fields(table[list(names)])
