"""Tables of what the other scripts measured, in Markdown, for cards and documentation: no number is typed by hand.

    python benchmarks/tables.py judged/*.json
    python benchmarks/tables.py promises.json
    python benchmarks/tables.py sweep.json

Each file knows by its content which table it belongs to; all judged contestants share one.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: Key of the mean scores -> what it is called, and its format.
MEANS = {
    "f1": ("onset F1", "{:.3f}"),
    "precision": ("onset precision", "{:.3f}"),
    "recall": ("onset recall", "{:.3f}"),
    "offset_f1": ("onset and offset F1", "{:.3f}"),
    "false_re_onsets": ("false re-onsets in a piece", "{:.1f}"),
    "other_false_onsets": ("other false onsets in a piece", "{:.1f}"),
    "velocity_correlation": ("correlation of velocities", "{:.2f}"),
    "log_spectral_distance": ("log-spectral distance at 16 kHz (nats)", "{:.3f}"),
    "full_log_spectral_distance": ("log-spectral distance at {rate} kHz (nats)", "{:.3f}"),
    "spectral_convergence": ("spectral convergence at 16 kHz", "{:.3f}"),
    "flux_ratio": ("spectral flux, relative", "{:.2f}"),
    "held_flux_ratio": ("spectral flux between onsets, relative", "{:.2f}"),
    "loudness_correlation": ("correlation of loudness curves", "{:.3f}"),
    "mel_error": ("mel error before the vocoder (nats)", "{:.3f}"),
    "mel_flux_ratio": ("mel flux before the vocoder, relative", "{:.2f}"),
    "mel_held_flux_ratio": ("the same between onsets", "{:.2f}"),
}
SPEED = {
    "real_time_per_core": "x real time on one core: all",
    "vocoder_real_time_per_core": "x real time on one core: vocoder",
}
#: Contestants that are measured by, not measured: they come last.
REFERENCES = ("soundfont", "twin", "piano")

Result = Mapping[str, Any]


def read(path: Path) -> Result:
    """A result, with its file's name as "name"."""
    return {"name": path.stem, **json.loads(path.read_text())}


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(form: str, value: float | None) -> str:
    """A number, or nothing where there is none."""
    return "" if value is None or math.isnan(value) else form.format(value)


def judged(results: Sequence[Result]) -> str:
    """Contestants side by side: means, speed and size, and the onset F1 of every piece."""
    order = {name: rank for rank, name in enumerate(REFERENCES)}
    results = sorted(results, key=lambda r: (order.get(r["name"], -1), r["name"]))
    names = [result["name"] for result in results]
    return "\n".join([_means(results, names), _pieces(results, names)])


def _means(results: Sequence[Result], names: Sequence[str]) -> str:
    soundfont = next((result["mean"].get("f1") for result in results if result["name"] == "soundfont"), None)
    rows = []
    for key, (label, form) in MEANS.items():
        values = [result["mean"].get(key) for result in results]
        if any(value is not None for value in values):
            rate = next((result["mean"]["full_rate"] for result in results if "full_rate" in result["mean"]), 0)
            rows.append([label.format(rate=f"{rate / 1000:g}"), *(number(form, value) for value in values)])
        if key == "f1" and soundfont:
            rows.append(["onset F1 / SoundFont's", *(number("{:.3f}", _ratio(v, soundfont)) for v in values)])
    for key, label in SPEED.items():
        rows.append([label, *(number("{:.0f}", result.get("speed", {}).get(key)) for result in results)])
    rows.append(
        ["file (MB)", *(number("{:.1f}", result["bytes"] / 1e6) if "bytes" in result else "" for result in results)]
    )
    return markdown(["mean of the pieces", *names], rows)


def _ratio(value: float | None, divisor: float) -> float | None:
    return None if value is None else value / divisor


def _pieces(results: Sequence[Result], names: Sequence[str]) -> str:
    pieces = list(results[0]["pieces"])
    rows = [
        [
            piece,
            f"{results[0]['pieces'][piece]['notes']:.0f}",
            *(number("{:.3f}", result["pieces"][piece].get("f1")) for result in results),
        ]
        for piece in pieces
    ]
    return markdown(["onset F1", "notes", *names], rows)


def sweep(result: Result) -> str:
    """A line for each setting."""
    columns = {
        "mel_error": "mel error",
        "mel_held_flux_ratio": "mel flux between onsets",
        "log_spectral_distance": "log-spectral distance",
        "spectral_convergence": "spectral convergence",
        "held_flux_ratio": "flux between onsets",
    }
    rows = []
    for row in result["sweep"]:
        setting = ", ".join(f"{name} {value}" for name, value in row["setting"].items())
        speed = [f"{row['speed'][key]:.1f}" for key in SPEED]
        rows.append([setting, *(number("{:.3f}", row.get(key)) for key in columns), *speed])
    return markdown(["setting", *columns.values(), *SPEED.values()], rows)


#: Figure of `promises.py` -> what it is called, its format, and what it has to be.
PROMISES = {
    "velocity_smallest_step_db": ("velocities 20, 50, 80, 110: smallest rise (dB)", "{:.1f}", "> 0"),
    "velocity_smallest_span_db": ("velocities 20 to 110: smallest span (dB)", "{:.1f}", ">= 12"),
    "held_smallest_fall_db": ("held notes, 0.3, 1, 2, 4 s: smallest fall (dB)", "{:.1f}", "> 0"),
    "before_first_note_db": ("before the first note (dBFS)", "{:.0f}", "< -60"),
    "in_rest_db": ("in a rest (dBFS)", "{:.0f}", "< -60"),
    "at_end_db": ("at the end (dBFS)", "{:.0f}", "< -60"),
    "largest_jump_in_chord": ("largest sample jump in a held chord", "{:.2f}", "<= 2"),
    "largest_jump_in_piece": ("largest sample jump in a piece", "{:.2f}", "<= 2"),
    "largest_level_step_db": ("largest level step at a seam (dB)", "{:.1f}", "<= 3"),
    "drift_sec": ("drift of onsets (s)", "{:.3f}", "within 0.02"),
}


def promises(results: Sequence[Result]) -> str:
    """A line for each promise, a column for each instrument."""
    rows = [
        [label, wanted, *(number(form, result["promises"].get(key)) for result in results)]
        for key, (label, form, wanted) in PROMISES.items()
    ]
    return markdown(["promise", "wanted", *(result["name"] for result in results)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    results = [read(path) for path in parser.parse_args().files]
    contestants, kept = ([r for r in results if kind in r] for kind in ("pieces", "promises"))
    if contestants:
        print(judged(contestants))
    if kept:
        print(promises(kept))
    for result in results:
        if "sweep" in result:
            print(sweep(result))


if __name__ == "__main__":
    main()
