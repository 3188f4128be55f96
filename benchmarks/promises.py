"""What a piano has to keep, measured on notes that show it: loudness, decay, silence, seams, timing.

    python benchmarks/promises.py spectrogram_diffusion_piano --output promises.json

`tests/test_shipped.py` holds the default checkpoint to the same figures. With --long the timing is measured over ten
minutes; --piano measures the sampled piano that the checkpoint imitates instead.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import chain
import numpy as np
from torch import Tensor

from midisynth.audio.io import load_audio
from midisynth.checkpoints import load_model
from midisynth.datasets.files import cache_folder, replacing
from midisynth.datasets.patterns import from_seconds, single_notes
from midisynth.datasets.sampled_piano import open_instrument
from midisynth.errors import MidisynthError
from midisynth.metrics import waveform
from midisynth.metrics.seams import level_steps, sample_jumps
from midisynth.module import MidiModule
from midisynth.music.midi import read_midi, write_midi
from midisynth.music.notes import NOTE_DTYPE, Performance
from midisynth.render import predict

VELOCITIES = (20, 50, 80, 110)
STRUCK_KEYS = (28, 43, 60, 77, 96)
HELD_KEYS = (28, 40, 52, 64, 76)
#: Times after the onset of a held note (seconds), and how long the level is measured.
HELD_SEC, LEVEL_SEC = (0.3, 1.0, 2.0, 4.0), 0.1
#: A single note, for silence: its onset and end, and the next note (seconds).
LONELY_SEC, NEXT_SEC = (2.0, 3.0), 12.0
#: After the end of a note it may still ring so long (seconds).
FADED_SEC = 2.5
CHORD = (36, 48, 55, 60, 64, 72)
CHORD_SEC = 9.0
#: Of the mel spectrogram (seconds).
FRAME_SEC = 0.02

#: Plays a performance: audio [channels, samples], and its rate (Hz).
Play = Callable[[Performance], tuple[Tensor, int]]


def player(model: MidiModule, folder: Path) -> Play:
    """Play with a checkpoint, through files as users do."""

    def play(performance: Performance) -> tuple[Tensor, int]:
        write_midi(performance, folder / "probe.mid")
        report = predict(model, folder / "probe.mid", folder / "probe.wav")
        if report.failed:
            raise MidisynthError(report.failed[0].reason)
        return load_audio(folder / "probe.wav"), model.part("vocoder").sample_rate

    return play


def loudness(play: Play) -> dict[str, Any]:
    """Levels (dB) of the first second of one key after the other at rising velocities."""
    keys = np.repeat(STRUCK_KEYS, len(VELOCITIES))
    audio, rate = play(single_notes(keys, np.tile(VELOCITIES, len(STRUCK_KEYS)), 2.0, 1.0))
    levels = {}
    for index, key in enumerate(STRUCK_KEYS):
        starts = [2.0 * (len(VELOCITIES) * index + step) for step in range(len(VELOCITIES))]
        levels[str(key)] = [waveform.level_db(audio, rate, start, start + 1.0) for start in starts]
    return {
        "velocity_levels_db": levels,
        "velocity_smallest_step_db": min(float(np.diff(row).min()) for row in levels.values()),
        "velocity_smallest_span_db": min(row[-1] - row[0] for row in levels.values()),
    }


def decay(play: Play) -> dict[str, Any]:
    """Levels (dB) of held notes as time goes on."""
    keys = np.array(HELD_KEYS)
    audio, rate = play(single_notes(keys, np.full(len(keys), 80), 7.0, 5.0))
    levels = {}
    for index, key in enumerate(HELD_KEYS):
        times = [7.0 * index + after for after in HELD_SEC]
        levels[str(key)] = [waveform.level_db(audio, rate, time, time + LEVEL_SEC) for time in times]
    return {
        "held_levels_db": levels,
        "held_smallest_fall_db": min(float(-np.diff(row).max()) for row in levels.values()),
    }


def silence(play: Play) -> dict[str, Any]:
    """Levels (dB) where nobody plays: before the first note, in a long rest, and at the end."""
    notes = np.zeros(2, NOTE_DTYPE)
    notes["onset_sec"], notes["duration_sec"] = [LONELY_SEC[0], NEXT_SEC], LONELY_SEC[1] - LONELY_SEC[0]
    notes["pitch"], notes["velocity"] = 60, 80
    audio, rate = play(from_seconds(notes, []))
    end = audio.shape[-1] / rate
    return {
        "before_first_note_db": waveform.loudest_db(audio, rate, 0.0, LONELY_SEC[0] - 0.05),
        "in_rest_db": waveform.loudest_db(audio, rate, LONELY_SEC[1] + FADED_SEC, NEXT_SEC - 0.05),
        "at_end_db": waveform.loudest_db(audio, rate, end - 0.2, end),
    }


def seams(play: Play, seams_sec: Sequence[float], piece: Performance) -> dict[str, Any]:
    """How far anything stands out that is no onset: at every frame of a chord and a piece, and where segments meet.

    Args:
        play: The instrument.
        seams_sec: Times at which segments meet (seconds).
        piece: Music.
    """
    notes = np.zeros(len(CHORD), NOTE_DTYPE)
    notes["duration_sec"], notes["pitch"], notes["velocity"] = CHORD_SEC, CHORD, 80
    chord, rate = play(from_seconds(notes, []))
    music, _ = play(piece)
    joints = [round(time * rate) for time in seams_sec if 0.5 < time < CHORD_SEC - 0.1]
    return {
        "largest_jump_in_chord": _largest_jump(chord, FRAME_SEC * rate),
        "largest_jump_in_piece": _largest_jump(music, FRAME_SEC * rate),
        "seams": len(joints),
        "largest_level_step_db": max(
            (float(level_steps(row, joints, rate).max()) for row in chord if joints), default=0
        ),
    }


def _largest_jump(audio: Tensor, frame_samples: float) -> float:
    joints = np.arange(1, 2 * audio.shape[-1] / frame_samples - 1) * frame_samples / 2
    return max(float(sample_jumps(channel, np.rint(joints).astype(int).tolist()).max()) for channel in audio)


def drift(play: Play, seconds: float) -> dict[str, Any]:
    """By how much the end of a long piece is late, where one note is repeated every two seconds."""
    count = int(seconds / 2)
    audio, rate = play(single_notes(np.full(count, 60), np.full(count, 80), 2.0, 0.5))
    sound, window = audio.mean(dim=0), round(1.5 * rate)
    ends = [sound[round((2 * index - 0.5) * rate) :][:window] for index in (1, 2, 3, count - 3, count - 2, count - 1)]
    late = [waveform.delay_sec(last, first, rate) for first, last in zip(ends[:3], ends[3:], strict=True)]
    return {"drift_over_sec": 2.0 * (count - 4), "drift_sec": float(np.median(late))}


def seam_times(model: MidiModule, seconds: float) -> list[float]:
    """Where segments of a model that generates them begin to be faded in, and where the fade ends (seconds)."""
    codec, overlap = model.codec, model.hparams.overlap_frames
    margin = (codec.segment_frames - codec.advance_frames - overlap) // 2
    frame_sec = codec.hop_length / codec.sample_rate
    starts = np.arange(codec.advance_frames, seconds / frame_sec, codec.advance_frames) + margin
    return sorted((np.concatenate([starts, starts + overlap]) * frame_sec).tolist())


def measure(play: Play, seams_sec: Sequence[float], piece: Performance, drift_sec: float) -> dict[str, Any]:
    """All figures.

    Args:
        play: The instrument.
        seams_sec: Times at which segments meet (seconds).
        piece: Music, for `seams`.
        drift_sec: Length of the piece for `drift` (seconds).
    """
    return {
        **loudness(play),
        **decay(play),
        **silence(play),
        **seams(play, seams_sec, piece),
        **drift(play, drift_sec),
    }


def excerpt(path: Path, seconds: float) -> Performance:
    """The beginning of a MIDI file."""
    performance = read_midi(path)
    return performance.with_notes(performance.notes[performance.notes["onset_sec"] < seconds])


def write(found: Mapping[str, Any], path: Path) -> None:
    with replacing(path) as file:
        file.write((json.dumps(found, indent=1) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="anything that --ckpt_path takes, or a folder of samples with --piano")
    parser.add_argument("--piano", action="store_true", help="measure the sampled piano itself")
    chain.add_sound_arguments(parser)
    parser.add_argument("--piece", type=Path, default=Path(__file__).parent.parent / "examples" / "mozart_k331.mid")
    parser.add_argument("--long", action="store_true", help="measure the drift over ten minutes instead of one")
    parser.add_argument("--output", type=Path, required=True, help="a .json file")
    options = parser.parse_args()
    drift_sec = 600.0 if options.long else 60.0
    piece = excerpt(options.piece, 20.0)
    with tempfile.TemporaryDirectory() as folder:
        if options.piano:
            instrument = open_instrument(
                options.checkpoint, options.rate, cache_dir=cache_folder() / "instruments", **options.sound_options
            )
            found = measure(lambda p: (instrument.render(p).reshape(1, -1), options.rate), [], piece, drift_sec)
        else:
            model = load_model(options.checkpoint)
            found = measure(player(model, Path(folder)), seam_times(model, CHORD_SEC), piece, drift_sec)
    write({"checkpoint": options.checkpoint, "promises": found}, options.output)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
