"""How often songs of POP909 are cut into bars where the structure labels have them, without knowing the labels.

    python benchmarks/pop909_bars.py POP909-Dataset hierarchical-structure-analysis

Counts songs whose labelled melody is found at a whole number of beats from the annotated ones; the beat on which a bar
begins is then known. Compared are the rule of the corpus `pop909`, its two parts alone, and the annotated downbeats.
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np

from midisynth.datasets.pop909 import (
    BEATS_PER_BAR,
    Pop909,
    Pop909Record,
    bar_phase,
    in_beats,
    read_beats,
    read_chord_changes,
    tracks_of,
)
from midisynth.errors import DataError
from midisynth.music.midi import read_midi


def phases(record: Pop909Record) -> dict[str, int]:
    """The first of four beats that begins a bar, by the way it is found; "labels" is right."""
    song = read_midi(record.midi)
    beats, downbeats = read_beats(record.beats)
    notes = tracks_of(song, record.midi)
    onset = in_beats(beats, notes["onset_sec"])
    end = in_beats(beats, notes["onset_sec"] + notes["duration_sec"])
    changes = read_chord_changes(record.chords, beats)
    none = np.empty(0, np.int64)
    marked = np.flatnonzero(downbeats)
    return {
        "labels": record.first_labelled_beat(notes, onset) % BEATS_PER_BAR,
        "chords and bass": bar_phase(notes, onset, end, changes),
        "chords": bar_phase(notes[:0], onset[:0], end[:0], changes),
        "bass": bar_phase(notes, onset, end, none),
        "most downbeats": int(np.bincount(marked % BEATS_PER_BAR).argmax()),
        "first downbeat": int(marked[0] % BEATS_PER_BAR),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pop909", help="folder of POP909")
    parser.add_argument("labels", help="folder of the structure labels")
    options = parser.parse_args()
    right: Counter[str] = Counter()
    records = Pop909(options.pop909, structure=options.labels).records()
    for record in records:
        try:
            found = phases(record)
        except DataError:
            continue
        right.update(name for name, phase in found.items() if phase == found["labels"])
    print(f"{right['labels']} of {len(records)} songs have labels that fit")
    for name, count in right.most_common()[1:]:
        print(f"{name}: {count}")


if __name__ == "__main__":
    main()
