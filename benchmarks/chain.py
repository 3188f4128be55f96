"""Playing pieces on instruments, and with a checkpoint while watching it: what enters the vocoder, how long it takes.

The scripts here share it; it is not one itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from midisynth.audio.io import AudioWriter
from midisynth.audio.vocoder import Vocoder, VocoderStream
from midisynth.datasets.files import cache_folder
from midisynth.datasets.rendered import without_lead
from midisynth.datasets.sampled_piano import open_instrument
from midisynth.errors import MidisynthError, UsageError
from midisynth.module import MidiModule
from midisynth.music.clock import ticks_from_seconds
from midisynth.music.midi import read_midi, write_midi
from midisynth.music.notes import is_drum
from midisynth.render import predict

MIDI_SUFFIXES = (".mid", ".midi")

#: Options of `open_instrument` with which the presets' corpus `rendered` plays the sampled piano.
SOUND = {"layers": list(range(1, 17)), "velocity_tracking": 0.73}


def cut_pieces(folder: Path, seconds: float, output: Path) -> list[Path]:
    """Write the beginning of every MIDI file of a folder: from its first note on, notes struck in the first `seconds`.

    Every instrument shall play the same, so all notes but drums, which are left out, are for one piano, and of the
    controllers only its pedal is kept.

    Raises:
        UsageError: There are no MIDI files.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in MIDI_SUFFIXES)
    if not files:
        raise UsageError(f"no MIDI files ({', '.join(MIDI_SUFFIXES)}) in {folder}")
    output.mkdir(parents=True, exist_ok=True)
    pieces = []
    for file in files:
        performance = read_midi(file)
        performance = without_lead(performance.with_notes(performance.notes[~is_drum(performance.notes)]))
        # A note that is cut off as soon as it begins is neither played nor heard by anyone.
        notes = performance.notes[performance.notes["onset_sec"] < seconds - 0.1].copy()
        notes["channel"] = notes["program"] = 0
        pieces.append(output / f"{file.stem}.mid")
        write_midi(performance.with_notes(notes), pieces[-1])
    return pieces


def moved_pieces(pieces: Sequence[Path], most_sec: float, output: Path) -> list[Path]:
    """Write pieces again with every onset moved at random by up to `most_sec`; ends stay."""
    generator = np.random.default_rng(0)
    output.mkdir(parents=True, exist_ok=True)
    for piece in pieces:
        performance = read_midi(piece)
        notes = performance.notes.copy()
        moves = generator.uniform(-most_sec, most_sec, len(notes))
        moves = np.clip(moves, -notes["onset_sec"], 0.9 * notes["duration_sec"])
        notes["onset_sec"] += moves
        notes["duration_sec"] -= moves
        write_midi(ticks_from_seconds(performance.with_notes(notes)), output / piece.name)
    return [output / piece.name for piece in pieces]


def add_sound_arguments(parser: argparse.ArgumentParser) -> None:
    """How sampled instruments play."""
    parser.add_argument("--rate", type=int, default=32000, help="of sampled sounds in Hz (default: %(default)s)")
    parser.add_argument(
        "--sound-options",
        type=json.loads,
        default=SOUND,
        metavar="JSON",
        help="of the sampled piano, see midisynth.datasets.sampled_piano (default: as the presets' training data)",
    )


def play(sound: Path, pieces: Sequence[Path], folder: Path, rate: int, options: Mapping[str, Any]) -> list[Path]:
    """Play pieces on a sampled piano or a SoundFont, into FLAC files of a folder, at a rate (Hz)."""
    instrument = open_instrument(sound, rate, cache_dir=cache_folder() / "instruments", **options)
    folder.mkdir(parents=True, exist_ok=True)
    audio = []
    for piece in pieces:
        with AudioWriter(folder / f"{piece.stem}.flac", rate, subtype="PCM_24") as writer:
            writer.write(instrument.render(read_midi(piece)).unsqueeze(0))
        audio.append(writer.path)
        if writer.report.clipped_samples:
            print(f"{writer.path}: {writer.report.clipped_samples} samples clipped", file=sys.stderr)
    return audio


@dataclass
class Stream:
    """What went through a vocoder for one piece.

    Attributes:
        blocks: [frames, mels] each, natural logarithm of magnitude.
        wall_sec: Spent in the vocoder (seconds).
        cpu_sec: The same, of all processor cores together (seconds).
    """

    blocks: list[Tensor] = field(default_factory=list)
    wall_sec: float = 0.0
    cpu_sec: float = 0.0

    @property
    def mel(self) -> Tensor:
        """The whole spectrogram."""
        return torch.cat(self.blocks)


class _WatchedStream(VocoderStream):
    def __init__(self, inner: VocoderStream, seen: Stream):
        self._inner = inner
        self._seen = seen

    def push(self, mel: Tensor) -> Tensor:
        self._seen.blocks.append(mel.detach().cpu())
        with self._timed():
            return self._inner.push(mel)

    def finish(self) -> Tensor:
        with self._timed():
            return self._inner.finish()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        wall, cpu = time.monotonic(), time.process_time()
        yield
        self._seen.wall_sec += time.monotonic() - wall
        self._seen.cpu_sec += time.process_time() - cpu


@contextmanager
def watched(vocoder: Vocoder) -> Iterator[list[Stream]]:
    """Watch a vocoder: the list grows by one for every stream that is started."""
    seen: list[Stream] = []

    def stream(seed: int = 0) -> VocoderStream:
        seen.append(Stream())
        return _WatchedStream(type(vocoder).stream(vocoder, seed), seen[-1])

    vocoder.stream = stream  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        del vocoder.stream


@dataclass(frozen=True)
class Run:
    """What a checkpoint made of some pieces.

    Attributes:
        audio: One file for each piece, in their order.
        streams: What went through the vocoder, in the same order.
        audio_sec: Length of all (seconds).
        wall_sec: Time from MIDI files to audio files (seconds).
        cpu_sec: The same, of all processor cores together (seconds).
    """

    audio: list[Path]
    streams: list[Stream]
    audio_sec: float
    wall_sec: float
    cpu_sec: float

    def speed(self) -> dict[str, float]:
        """Seconds of audio in a second of time and of one processor core: of the whole chain and of the vocoder."""
        return {
            "audio_sec": self.audio_sec,
            "threads": torch.get_num_threads(),
            "real_time": self.audio_sec / self.wall_sec,
            "real_time_per_core": self.audio_sec / self.cpu_sec,
            "vocoder_real_time": self.audio_sec / sum(stream.wall_sec for stream in self.streams),
            "vocoder_real_time_per_core": self.audio_sec / sum(stream.cpu_sec for stream in self.streams),
        }


def digest(model: MidiModule) -> str:
    """Identity of a checkpoint by its weights and those of its vocoder, 16 hexadecimal digits."""
    state = {
        name: part for name, part in (("", model), ("vocoder.", model.part("vocoder"))) if isinstance(part, Module)
    }
    tensors = {prefix + name: tensor for prefix, part in state.items() for name, tensor in part.state_dict().items()}
    content = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        content.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()[:16]


def render(model: MidiModule, pieces: Sequence[Path], folder: Path, seed: int = 0) -> Run:
    """Render MIDI files to WAV files in a folder as `midisynth predict` does, one after the other.

    Raises:
        MidisynthError: One of them failed.
    """
    with watched(model.part("vocoder")) as streams:
        wall, cpu = time.monotonic(), time.process_time()
        report = predict(model, list(map(str, pieces)), f"{folder}/", seed=seed)
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    if report.failed:
        raise MidisynthError(f"{report.failed[0].name}: {report.failed[0].reason}")
    audio = [folder / f"{piece.stem}.wav" for piece in pieces]
    return Run(audio, streams, report.audio_sec, wall, cpu)
