"""Instruments that turn notes into audio without a recording: a sampled piano, and any SoundFont.

Both take a performance as it was played and apply its pedal themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from midisynth.audio.io import load_audio
from midisynth.datasets.files import replacing, usable_cores
from midisynth.errors import AudioError, DataError
from midisynth.music.midi import write_midi
from midisynth.music.notes import Performance, is_drum
from midisynth.music.pedal import extend_by_pedal

LOWEST_KEY, KEYS = 21, 88
_KEY_RANGE = range(LOWEST_KEY, LOWEST_KEY + KEYS)

#: Recorded velocity layers of the Salamander Grand Piano; layer i stands for velocity 8 i.
LAYERS = 16
#: Six layers of the sixteen: small to download, and close enough that their borders are not heard.
DEFAULT_LAYERS = (2, 4, 7, 10, 13, 15)

#: Notes that ring longer end here (seconds); few keys are still audible then.
NOTE_SEC = 10.0
#: Time from key-up to 60 dB less (seconds), below middle C and from there on: dampers stop short strings sooner.
RELEASE_SEC = (0.35, 0.25)
#: Leaves room for about ten loud notes at once.
GAIN = 0.5

#: A note starts where it first passes this share of its attack's peak, less `LEAD_SEC`.
ONSET_SHARE = 0.03
LEAD_SEC = 0.002
ATTACK_SEC = 0.3
#: Loudness of a note is measured over this stretch from its start (seconds).
LOUDNESS_SEC = 0.5
#: Every layer is at least so much louder than the one below (dB), whatever was recorded.
LAYER_STEP_DB = 0.5
#: Below the softest layer, amplitude goes with velocity to this power.
SOFT_EXPONENT = 1.2

_PITCH_CLASSES = {"C": 0, "C#": 1, "D": 2, "D#": 3, "E": 4, "F": 5, "F#": 6, "G": 7, "G#": 8, "A": 9, "A#": 10, "B": 11}
_SAMPLE_NAME = re.compile(r"([A-G]#?)(\d)v(\d+)\.ogg")
# Raised when the stored form or the processing of samples changes.
_BANK_VERSION = 1


class Instrument(Protocol):
    """Something that plays performances."""

    sample_rate: int

    def render(self, performance: Performance) -> Tensor:
        """Play a performance, pedal and all; mono, [samples] float32, from time 0 until the last note has faded."""
        ...


def open_instrument(
    path: str | os.PathLike[str],
    sample_rate: int,
    layers: Sequence[int] = DEFAULT_LAYERS,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Instrument:
    """A SoundFont for a file, a sampled piano for a folder.

    Args:
        path: A .sf2 or .sf3 file, or the folder of Salamander's samples.
        sample_rate: Of the audio (Hz).
        layers: Velocity layers of the sampled piano.
        cache_dir: Where the sampled piano keeps its processed notes; None keeps them in memory.

    Raises:
        DataError: There is no such file or folder, or something is missing in it.
    """
    if Path(path).suffix.lower() in (".sf2", ".sf3"):
        return SoundFontPiano(path, sample_rate)
    return SampledPiano(path, layers, sample_rate, cache_dir)


class SampledPiano:
    """The Salamander Grand Piano V3 (Alexander Holm, CC BY 3.0) as its npm packages lay it out.

    Thirty keys of each velocity layer were recorded; the others are their neighbours, moved by a semitone. Each
    velocity plays its nearest layer at a level interpolated between the layers, so that loudness rises with velocity
    throughout. A note fades when key and pedal are up; a key struck again stops its earlier note.

    Args:
        root: Folder with piano-velocity*/audio/*.ogg somewhere below it.
        layers: Velocity layers to use, 1 (softest) to 16.
        sample_rate: Of the audio (Hz).
        cache_dir: Folder for the processed notes, which processes then share; None keeps them in memory.

    Raises:
        DataError: A layer is missing or incomplete; says how to get it.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        layers: Sequence[int] = DEFAULT_LAYERS,
        sample_rate: int = 16000,
        cache_dir: str | os.PathLike[str] | None = None,
    ):
        self.root = Path(root).expanduser()
        self.layers = tuple(sorted(set(layers)))
        self.sample_rate = sample_rate
        if not self.layers or not set(self.layers) <= set(range(1, LAYERS + 1)):
            raise DataError(f"layers of a sampled piano are 1 to {LAYERS}, not {list(layers)}")
        files = {layer: find_layer(self.root, layer) for layer in self.layers}
        if cache_dir is None:
            self._samples, self._offsets = _build_bank(files, sample_rate)
        else:
            self._samples, self._offsets = _cached_bank(files, sample_rate, Path(cache_dir))
        self._layer_of_velocity, self._gains = self._loudness_law()

    def note(self, key: int, velocity: int) -> np.ndarray:
        """The sound of a held key at full length, [samples] float32.

        Args:
            key: MIDI key number, 21 to 108.
            velocity: 1 to 127.
        """
        key -= LOWEST_KEY
        return self._sample(self._layer_of_velocity[velocity], key) * self._gains[velocity, key]

    def render(self, performance: Performance) -> Tensor:
        """Play a performance; see `Instrument.render`. Drums and keys that a piano lacks are left out."""
        notes = extend_by_pedal(performance).notes
        notes = notes[~is_drum(notes) & (notes["pitch"] >= LOWEST_KEY) & (notes["pitch"] < LOWEST_KEY + KEYS)]
        onsets = np.rint(notes["onset_sec"] * self.sample_rate).astype(np.int64)
        ends = np.rint((notes["onset_sec"] + notes["duration_sec"]) * self.sample_rate).astype(np.int64)
        releases = [self._release(sec) for sec in RELEASE_SEC]
        audio = np.zeros(int(ends.max(initial=0)) + max(map(len, releases)), np.float32)
        for onset, held, pitch, velocity in zip(
            onsets.tolist(), (ends - onsets).tolist(), notes["pitch"].tolist(), notes["velocity"].tolist(), strict=True
        ):
            release = releases[pitch >= 60]
            sound = self.note(pitch, velocity)[: held + len(release)]
            fading = sound[held:]
            fading *= release[: len(fading)]
            audio[onset : onset + len(sound)] += sound
        return torch.from_numpy(audio)

    def _release(self, seconds: float) -> np.ndarray:
        samples = round(seconds * self.sample_rate)
        return np.power(10.0, -3.0 * np.arange(samples) / samples).astype(np.float32)

    def _sample(self, layer: int, key: int) -> np.ndarray:
        return self._samples[self._offsets[layer, key] : self._offsets[layer, key + 1]]

    def _loudness_law(self) -> tuple[list[int], np.ndarray]:
        """Index of the layer for each velocity, and the gain of each velocity and key, [128, 88]."""
        head = round(LOUDNESS_SEC * self.sample_rate)
        layers, keys = range(len(self.layers)), range(KEYS)
        power = [[np.mean(np.square(self._sample(layer, key)[:head])) for key in keys] for layer in layers]
        recorded_db = 10 * np.log10(np.array(power))
        wanted_db = recorded_db.copy()
        for layer in range(1, len(self.layers)):
            wanted_db[layer] = np.maximum(wanted_db[layer], wanted_db[layer - 1] + LAYER_STEP_DB)
        log_velocity = np.log2(np.maximum(np.arange(128), 1))
        nodes = np.log2(8.0 * np.array(self.layers))
        below = 20 * np.log10(2) * SOFT_EXPONENT * np.minimum(log_velocity - nodes[0], 0)
        above = 20 * np.log10(2) * SOFT_EXPONENT * np.maximum(log_velocity - nodes[-1], 0)
        nearest = np.abs(log_velocity[:, None] - nodes).argmin(axis=1)
        target_db = np.stack([np.interp(log_velocity, nodes, wanted_db[:, key]) for key in keys], axis=1)
        target_db += (below + above)[:, None]
        return nearest.tolist(), (GAIN * 10 ** ((target_db - recorded_db[nearest]) / 20)).astype(np.float32)


def find_layer(root: Path, layer: int) -> dict[int, Path]:
    """Files of a velocity layer by MIDI key.

    Raises:
        DataError: The layer is not below `root`.
    """
    folders = sorted(root.rglob(f"piano-velocity{layer}/audio")) if root.is_dir() else []
    if not folders:
        raise DataError(
            f"{root}: no folder piano-velocity{layer}/audio below it; fetch the samples with "
            f"`npm install --prefix {root} @audio-samples/piano-velocity{layer}`"
        )
    found = {}
    for file in folders[0].iterdir():
        match = _SAMPLE_NAME.fullmatch(file.name)
        if match:
            found[_PITCH_CLASSES[match[1]] + 12 * (int(match[2]) + 1)] = file
    gaps = [key for key in _KEY_RANGE if all(abs(key - other) > 1 for other in found)]
    if gaps:
        raise DataError(f"{folders[0]}: no sample within a semitone of key {gaps[0]}; fetch this layer again")
    return found


def _cached_bank(files: dict[int, dict[int, Path]], sample_rate: int, cache_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for keys in files.values() for f in keys.values()]
    description = [_BANK_VERSION, sample_rate, NOTE_SEC, ONSET_SHARE, LEAD_SEC, ATTACK_SEC, sorted(stats)]
    digest = hashlib.sha256(json.dumps(description).encode()).hexdigest()[:16]
    samples, offsets = cache_dir / f"piano-{digest}.npy", cache_dir / f"piano-{digest}-offsets.npy"
    if not (samples.exists() and offsets.exists()):
        cache_dir.mkdir(parents=True, exist_ok=True)
        for path, array in zip((samples, offsets), _build_bank(files, sample_rate), strict=True):
            with replacing(path) as file:
                np.save(file, array)
    return np.load(samples, mmap_mode="r"), np.load(offsets)


def _build_bank(files: dict[int, dict[int, Path]], sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Decode all samples and make all keys of them.

    Returns:
        All notes in a row, [samples] float32, and where they start and end, [layers, keys + 1].
    """
    jobs = []
    for keys in files.values():
        sources = np.array(sorted(keys))
        source_of = {key: int(sources[np.abs(sources - key).argmin()]) for key in _KEY_RANGE}
        for source in sources.tolist():
            jobs.append((keys[source], {key: key - source for key in _KEY_RANGE if source_of[key] == source}))
    with ThreadPoolExecutor(usable_cores()) as pool:
        made = pool.map(lambda job: _transpose(*job, sample_rate), jobs)
        # Recordings come in order of layer and key, and so do the keys that are made of each.
        notes = [note for group in made for note in group.values()]
    ends = np.cumsum([len(note) for note in notes]).reshape(len(files), KEYS)
    starts = ends - np.array([len(note) for note in notes]).reshape(ends.shape)
    return np.concatenate(notes), np.concatenate([starts[:, :1], ends], axis=1)


def _transpose(path: Path, shifts: dict[int, int], sample_rate: int) -> dict[int, np.ndarray]:
    """Make notes of one recording: mono, resampled, and without the silence before the stroke.

    Resampling is done in the frequency domain, where any ratio is exact and costs one inverse transform.

    Args:
        path: The recording.
        shifts: Semitones to move by, for each MIDI key to make.
        sample_rate: Of the notes (Hz).
    """
    audio, rate = _read_mono(path)
    # Zeros at the end keep what the filter smears over the end off the start.
    padded = torch.nn.functional.pad(audio, (0, rate // 5))
    spectrum = torch.fft.rfft(padded)
    frequencies = torch.arange(len(spectrum)) * (rate / len(padded))
    made = {}
    for key, semitones in shifts.items():
        speed = 2 ** (semitones / 12)
        samples = round(len(padded) * sample_rate / (rate * speed))
        # A raised cosine from 95 % of the usable band to its end: a sharper edge would ring.
        edge = min(rate, sample_rate / speed) / 2
        gain = 0.5 + 0.5 * torch.cos(torch.pi * ((frequencies / edge - 0.95) / 0.05).clamp(0, 1))
        filtered = (spectrum * gain)[: samples // 2 + 1]
        note = torch.fft.irfft(filtered, n=samples) * (samples / len(padded))
        made[key] = _trim(note.numpy().astype(np.float32), sample_rate)
    return made


def _read_mono(path: Path) -> tuple[Tensor, int]:
    """Mean of the channels, [samples], as long as a transposed note may need, and the rate of the file (Hz)."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            # A semitone up plays 6 % faster; the stroke itself may come late.
            audio = file.read(round((NOTE_SEC + ATTACK_SEC) * 1.06 * rate), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(path, f"cannot be decoded ({error}); fetch the samples again") from error
    return torch.from_numpy(audio.mean(axis=1)), rate


def _trim(note: np.ndarray, sample_rate: int) -> np.ndarray:
    """Cut the lead-in, or the onset would be late by a time that differs from key to key; fade both ends."""
    loud = np.abs(note)
    peak = loud[: round(ATTACK_SEC * sample_rate)].max()
    lead = round(LEAD_SEC * sample_rate)
    start = max(int(np.argmax(loud > ONSET_SHARE * peak)) - lead, 0)
    note = note[start : start + round(NOTE_SEC * sample_rate)].copy()
    note[:lead] *= np.linspace(0, 1, lead, dtype=np.float32)
    audible = np.flatnonzero(np.abs(note) > 1e-4 * peak)[-1] + 1
    fade = min(round(0.05 * sample_rate), audible)
    note[audible - fade : audible] *= np.linspace(1, 0, fade, dtype=np.float32)
    return note[:audible]


class SoundFontPiano:
    """Any SoundFont, played by the program `fluidsynth` without reverberation and chorus.

    Args:
        path: A .sf2 or .sf3 file.
        sample_rate: Of the audio (Hz).
        gain: Of the synthesizer.

    Raises:
        DataError: The file or the program is missing.
    """

    #: Rendered at this rate and resampled: at low rates the synthesizer aliases (Hz).
    RENDER_RATE = 44100

    def __init__(self, path: str | os.PathLike[str], sample_rate: int = 16000, gain: float = 0.6):
        self.path = Path(path).expanduser()
        self.sample_rate = sample_rate
        self.gain = gain
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such SoundFont")
        program = shutil.which("fluidsynth")
        if program is None:
            raise DataError(f"{self.path}: playing it needs the program fluidsynth (Debian: apt install fluidsynth)")
        self._program = program

    def render(self, performance: Performance) -> Tensor:
        """Play a performance; see `Instrument.render`.

        Raises:
            DataError: fluidsynth failed; its last words are in the message.
        """
        with tempfile.TemporaryDirectory() as folder:
            midi, wav = Path(folder, "in.mid"), Path(folder, "out.wav")
            write_midi(performance, midi)
            command = [self._program, "-ni", "-q", "-R", "0", "-C", "0", "-g", str(self.gain)]
            command += ["-r", str(self.RENDER_RATE), "-F", str(wav), str(self.path), str(midi)]
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            # With a damaged font it plays the system's own, and still exits with 0.
            complaints = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            if done.returncode != 0 or complaints:
                raise DataError(f"{self.path}: fluidsynth failed: {complaints[0] if complaints else done.returncode}")
            return load_audio(wav, self.sample_rate).mean(dim=0)
