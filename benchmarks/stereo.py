"""How the two channels of the sampled piano differ: whether stereo would be a matter of panning.

    python benchmarks/stereo.py data/salamander

For every third key, two seconds of a note of velocity 80 without its stroke: by how much the left channel is louder,
how the channels correlate, and how they do at the best delay within 2 ms. Panned mono would have a correlation of 1.
"""

from __future__ import annotations

import argparse

import numpy as np
import tables

from midisynth.datasets.sampled_piano import SampledPiano

RATE = 16000
STROKE_SEC, END_SEC, MOST_DELAY_SEC = 0.05, 2.0, 0.002
#: Name of a range -> its lowest key, and the first above it.
RANGES = {"below C3": (21, 48), "C3 to B4": (48, 72), "from C5": (72, 109)}


def differences(note: np.ndarray) -> tuple[float, float, float]:
    """Level difference (dB), correlation, and its largest size at any delay, of a note [2, samples]."""
    left, right = note[:, round(STROKE_SEC * RATE) : round(END_SEC * RATE)].astype(np.float64)
    most = round(MOST_DELAY_SEC * RATE)
    delayed = [np.corrcoef(left[most:-most], np.roll(right, by)[most:-most])[0, 1] for by in range(-most, most + 1)]
    level = 10 * np.log10(np.square(left).sum() / np.square(right).sum())
    return level, np.corrcoef(left, right)[0, 1], np.abs(delayed).max()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("piano", help="folder of the samples")
    piano = SampledPiano(parser.parse_args().piano, (10,), RATE, release=False, resonance_db=None, channels=2)
    found = {key: differences(np.asarray(piano.note(key, 80))) for key in range(21, 109, 3)}
    head = ["keys", "left louder by (dB): mean", "least", "most", "correlation, median size", "at the best delay"]
    rows = []
    for name, (low, high) in RANGES.items():
        level, correlation, delayed = np.array([row for key, row in found.items() if low <= key < high]).T
        values = level.mean(), level.min(), level.max()
        likeness = np.median(np.abs(correlation)), np.median(delayed)
        rows.append([name, *(f"{value:.1f}" for value in values), *(f"{value:.2f}" for value in likeness)])
    print(tables.markdown(head, rows))


if __name__ == "__main__":
    main()
