"""Instruments that turn notes into audio without a recording: a sampled piano, and any SoundFont.

Both take a performance as it was played and apply its pedal themselves.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from midisynth.audio.io import load_audio
from midisynth.datasets.piano_bank import KEYS, LOWEST_KEY, NOTE_SEC, find_layer, find_releases, open_bank
from midisynth.datasets.resonance import StringResonance
from midisynth.errors import DataError
from midisynth.music.midi import write_midi
from midisynth.music.notes import Performance, is_drum
from midisynth.music.pedal import extend_by_pedal, pedal_stretches

#: Recorded velocity layers of the Salamander Grand Piano; layer i stands for velocity 8 i.
LAYERS = 16
#: Six layers of the sixteen: small to download, and close enough that their borders are not heard.
DEFAULT_LAYERS = (2, 4, 7, 10, 13, 15)

#: Leaves room for about ten loud notes at once.
GAIN = 0.5
#: Loudness of a note is measured over this stretch from its start (seconds).
LOUDNESS_SEC = 0.5
#: Every layer is at least so much louder than the one below (dB), whatever was recorded.
LAYER_STEP_DB = 0.5
#: Below the softest layer, amplitude goes with velocity to this power.
SOFT_EXPONENT = 1.2

#: F6: the strings above have no dampers, and ring on when the key goes up.
LAST_DAMPED_KEY = 89
#: Seconds from key-up to 60 dB less at some keys, by interpolation at the others: dampers stop short strings sooner.
DAMPING_KEYS, DAMPING_SEC = (21, 40, 60, 89), (0.8, 0.45, 0.28, 0.18)
#: This share of a damped note is in modes that the felt hardly touches; they take so many times longer.
DAMPING_REST, DAMPING_REST_TIMES = 0.03, 3.0
#: A hammer that strikes a sounding string takes away what sounded: seconds to 60 dB less.
RESTRIKE_SEC = 0.1
#: Silence after the end of the last note, at least (seconds).
TAIL_SEC = 0.35

#: Level of the noise of a key that goes up, after a stroke of velocity 127 (dB, where recorded notes are at 0).
#: Salamander's own definition says -37; 3 dB more can be heard between notes without drawing attention.
RELEASE_DB = -34.0
#: It goes with the velocity of the stroke to this power, and falls with the time since (dB per second, at most dB).
RELEASE_EXPONENT = 0.5
RELEASE_DECAY_DB, RELEASE_DECAY_MOST_DB = 2.0, 10.0
#: String resonance relative to what is played, see `StringResonance` (dB).
RESONANCE_DB = -36.0

# Events at one moment differ by the last bits of a float (seconds).
_SAME_MOMENT = 1e-6


class Instrument(Protocol):
    """Something that plays performances."""

    sample_rate: int

    def render(self, performance: Performance) -> Tensor:
        """Play a performance, pedal and all, from time 0 until the last note has faded.

        Returns:
            [samples] float32, or [2, samples] by an instrument that was opened with two channels.
        """
        ...


def open_instrument(
    path: str | os.PathLike[str],
    sample_rate: int,
    layers: Sequence[int] = DEFAULT_LAYERS,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    release: bool = True,
    resonance_db: float | None = RESONANCE_DB,
    velocity_tracking: float = 0.0,
    channels: int = 1,
) -> Instrument:
    """A SoundFont for a file, a sampled piano for a folder.

    Args:
        path: A .sf2 or .sf3 file, or the folder of Salamander's samples.
        sample_rate: Of the audio (Hz).
        layers: Velocity layers of the sampled piano.
        cache_dir: Where the sampled piano keeps its processed notes; None keeps them in memory.
        release: Whether keys of the sampled piano are heard going up.
        resonance_db: Level of the string resonance of the sampled piano (dB); None for none.
        velocity_tracking: How much softer the sampled piano plays soft notes than they were recorded (0 to 1).
        channels: 1 or 2.

    Raises:
        DataError: There is no such file or folder, or something is missing in it.
    """
    if channels not in (1, 2):
        raise DataError(f"channels of an instrument are 1 or 2, not {channels}")
    if Path(path).suffix.lower() in (".sf2", ".sf3"):
        return SoundFontPiano(path, sample_rate, channels=channels)
    return SampledPiano(
        path,
        layers,
        sample_rate,
        cache_dir,
        release=release,
        resonance_db=resonance_db,
        velocity_tracking=velocity_tracking,
        channels=channels,
    )


class SampledPiano:
    """The Salamander Grand Piano V3 (Alexander Holm, CC BY 3.0) as its npm packages lay it out.

    Thirty keys of each velocity layer were recorded; the others are their neighbours, moved by a semitone. Each
    velocity plays its nearest layer at a level interpolated between the layers, so that loudness rises with velocity
    throughout.

    A note is damped when key and pedal are up, except above F6, where a piano has no dampers. A key that goes up while
    the pedal is up makes its recorded noise; under the pedal the dampers stay away from the strings, and what is left
    of the noise is not worth playing. A key struck again fades its earlier note out quickly. While the pedal is down
    the other strings resonate. A pedal is up or down, by the rule of `extend_by_pedal`: half-pedalling is not played.

    Args:
        root: Folder with piano-velocity*/audio/*.ogg and piano-release/audio/*.ogg somewhere below it.
        layers: Velocity layers to use, 1 (softest) to 16.
        sample_rate: Of the audio (Hz).
        cache_dir: Folder for the processed notes, which processes then share; None keeps them in memory.
        release: Whether keys are heard going up.
        resonance_db: Level of the string resonance, see `StringResonance` (dB); None for none.
        velocity_tracking: Amplitude at the lowest velocities falls to 1 minus this share of that at the highest, with
            the square of the velocity between, on top of what was recorded: opcode `amp_veltrack` of the SFZ format,
            0.73 in Salamander's own definition. 0 keeps the recorded levels.
        channels: 2 for the recorded stereo, 1 for the mean of its channels.

    Raises:
        DataError: A layer, or the releases, are missing or incomplete; says how to get them.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        layers: Sequence[int] = DEFAULT_LAYERS,
        sample_rate: int = 16000,
        cache_dir: str | os.PathLike[str] | None = None,
        *,
        release: bool = True,
        resonance_db: float | None = RESONANCE_DB,
        velocity_tracking: float = 0.0,
        channels: int = 1,
    ):
        self.root = Path(root).expanduser()
        self.layers = tuple(sorted(set(layers)))
        self.sample_rate = sample_rate
        self.channels = channels
        self.release = release
        if not self.layers or not set(self.layers) <= set(range(1, LAYERS + 1)):
            raise DataError(f"layers of a sampled piano are 1 to {LAYERS}, not {list(layers)}")
        if not 0 <= velocity_tracking <= 1:
            raise DataError(f"velocity_tracking of a sampled piano is from 0 to 1, not {velocity_tracking}")
        files = [find_layer(self.root, layer) for layer in self.layers]
        releases = find_releases(self.root) if release else None
        self._bank = open_bank(files, releases, sample_rate, channels, None if cache_dir is None else Path(cache_dir))
        self._tracking = 1 - velocity_tracking * (1 - np.square(np.arange(128) / 127))
        self._layer_of_velocity, self._gains = self._loudness_law()
        self._resonance = None if resonance_db is None else StringResonance(self._bank, sample_rate, resonance_db)
        seconds = np.exp(np.interp(np.arange(LOWEST_KEY, LOWEST_KEY + KEYS), DAMPING_KEYS, np.log(DAMPING_SEC)))
        self._damping = [self._damped(length) for length in seconds.tolist()]
        self._restrike = _decay(RESTRIKE_SEC, round(RESTRIKE_SEC * sample_rate), sample_rate).astype(np.float32)

    def note(self, key: int, velocity: int) -> np.ndarray:
        """The sound of a held key at full length, float32 [samples], or [2, samples] with two channels.

        Args:
            key: MIDI key number, 21 to 108.
            velocity: 1 to 127.
        """
        sound = self._stroke(key, velocity)
        return sound[0] if self.channels == 1 else sound

    def render(self, performance: Performance) -> Tensor:
        """Play a performance; see `Instrument.render`. Drums and keys that a piano lacks are left out."""
        notes = extend_by_pedal(performance).notes
        notes = notes[~is_drum(notes) & (notes["pitch"] >= LOWEST_KEY) & (notes["pitch"] < LOWEST_KEY + KEYS)]
        pedals = pedal_stretches(performance)
        key_up = notes["onset_sec"] + notes["duration_sec"]
        ends, restruck, noisy = _endings(notes, pedals)
        played = float(key_up.max(initial=0))
        # Undamped strings ring as long as they were recorded, and the lowest damper takes longest.
        room = max(float(ends.max(initial=0)) + max(map(len, self._damping)) / self.sample_rate, played + TAIL_SEC)
        audio = np.zeros((self.channels, round(room * self.sample_rate) + 1), np.float32)
        last = round((played + TAIL_SEC) * self.sample_rate)
        columns = (notes["onset_sec"], ends, notes["pitch"], notes["velocity"], restruck)
        for row in zip(*(column.tolist() for column in columns), strict=True):
            last = max(last, self._add_note(audio, *row))
        if self.release:
            columns = (notes["onset_sec"], key_up, notes["pitch"], notes["velocity"])
            for row in zip(*(column[noisy].tolist() for column in columns), strict=True):
                last = max(last, self._add_release(audio, *row))
        audio = audio[:, :last]
        if self._resonance is not None:
            self._resonance.add(audio, _united(pedals, self.sample_rate))
        return torch.from_numpy(audio[0] if self.channels == 1 else audio)

    def _stroke(self, pitch: int, velocity: int, samples: int | None = None) -> np.ndarray:
        """The first samples of the sound of a held key, [channels, samples] float32."""
        layer, key = self._layer_of_velocity[velocity], pitch - LOWEST_KEY
        return self._bank.sound(layer, key, samples) * (self._bank.scales[layer, key] * self._gains[velocity, key])

    def _add_note(self, audio: np.ndarray, onset: float, end: float, pitch: int, velocity: int, again: bool) -> int:
        """Play a note from `onset` to `end` (seconds), then damp it, or fade it out if its key is struck again.

        Returns:
            Where its sound ends (samples).
        """
        start = round(onset * self.sample_rate)
        held = round(end * self.sample_rate) - start
        fade = self._restrike if again else self._damping[pitch - LOWEST_KEY]
        sound = self._stroke(pitch, velocity, held + len(fade))
        sound[:, held:] *= fade[: max(sound.shape[1] - held, 0)]
        audio[:, start : start + sound.shape[1]] += sound
        return start + sound.shape[1]

    def _add_release(self, audio: np.ndarray, onset: float, end: float, pitch: int, velocity: int) -> int:
        """Play the noise of a key that goes up at `end` (seconds).

        Returns:
            Where its sound ends (samples).
        """
        level_db = RELEASE_DB - min(RELEASE_DECAY_DB * (end - onset), RELEASE_DECAY_MOST_DB)
        gain = GAIN * 10 ** (level_db / 20) * (velocity / 127) ** RELEASE_EXPONENT * self._tracking[velocity]
        start = round(end * self.sample_rate)
        sound = self._bank.recorded(len(self.layers), pitch - LOWEST_KEY, audio.shape[1] - start) * np.float32(gain)
        audio[:, start : start + sound.shape[1]] += sound
        return start + sound.shape[1]

    def _damped(self, seconds: float) -> np.ndarray:
        """Amplitude under a damper that takes so long for 60 dB, [samples] float32."""
        samples = round(1.5 * seconds * self.sample_rate)
        fade = (1 - DAMPING_REST) * _decay(seconds, samples, self.sample_rate)
        fade += DAMPING_REST * _decay(DAMPING_REST_TIMES * seconds, samples, self.sample_rate)
        silent = samples // 4
        fade[-silent:] *= np.linspace(1, 0, silent)
        return fade.astype(np.float32)

    def _loudness_law(self) -> tuple[list[int], np.ndarray]:
        """Index of the layer for each velocity, and the gain of each velocity and key, [128, 88]."""
        head = round(LOUDNESS_SEC * self.sample_rate)
        layers, keys = range(len(self.layers)), range(KEYS)
        power = [
            [np.mean(np.square(self._bank.recorded(layer, key, head).mean(axis=0))) for key in keys] for layer in layers
        ]
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
        gains = GAIN * self._tracking[:, None] * 10 ** ((target_db - recorded_db[nearest]) / 20)
        return nearest.tolist(), gains.astype(np.float32)


def _endings(notes: np.ndarray, pedals: dict[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What ends notes whose pedal has been applied.

    Args:
        notes: [notes] of `NOTE_DTYPE`, of the keys of a piano.
        pedals: Stretches of pedal (seconds) by channel, see `pedal_stretches`.

    Returns:
        When each note begins to fade (seconds), whether it does so because its key is struck again, and whether the key
        is heard going up; each [notes].
    """
    onset, end = notes["onset_sec"], notes["onset_sec"] + notes["duration_sec"]
    order = np.lexsort((onset, notes["pitch"], notes["channel"]))
    key = (notes["channel"] * 128 + notes["pitch"])[order]
    following = np.full(len(notes), np.inf)
    following[order[:-1]] = np.where(key[1:] == key[:-1], onset[order][1:], np.inf)
    undamped = notes["pitch"] > LAST_DAMPED_KEY
    restruck = following <= end + _SAME_MOMENT
    by_pedal = np.zeros(len(notes), bool)
    for channel, stretches in pedals.items():
        own = notes["channel"] == channel
        by_pedal[own] = (np.abs(end[own, None] - stretches[:, 1]) < _SAME_MOMENT).any(axis=1)
    ends = np.where(undamped, np.minimum(following, onset + NOTE_SEC), end)
    return ends, restruck | (undamped & np.isfinite(following)), ~restruck & ~by_pedal


def _decay(seconds: float, samples: int, sample_rate: int) -> np.ndarray:
    """Amplitude that loses 60 dB in so many seconds, [samples]."""
    return np.power(10.0, -3.0 * np.arange(samples) / (seconds * sample_rate))


def _united(pedals: dict[int, np.ndarray], sample_rate: int) -> np.ndarray:
    """Stretches in which the pedal of any channel is down, for the strings are the same, [stretches, 2] samples."""
    stretches = np.concatenate([np.zeros((0, 2)), *pedals.values()])
    united: list[list[int]] = []
    for start, end in np.rint(stretches[stretches[:, 0].argsort()] * sample_rate).astype(int).tolist():
        if united and start <= united[-1][1]:
            united[-1][1] = max(united[-1][1], end)
        else:
            united.append([start, end])
    return np.array(united, np.int64).reshape(-1, 2)


class SoundFontPiano:
    """Any SoundFont, played by the program `fluidsynth` without reverberation and chorus.

    Args:
        path: A .sf2 or .sf3 file.
        sample_rate: Of the audio (Hz).
        gain: Of the synthesizer.
        channels: 2 for stereo, 1 for the mean of its channels.

    Raises:
        DataError: The file or the program is missing.
    """

    #: Rendered at this rate and resampled: at low rates the synthesizer aliases (Hz).
    RENDER_RATE = 44100

    def __init__(self, path: str | os.PathLike[str], sample_rate: int = 16000, gain: float = 0.6, channels: int = 1):
        self.path = Path(path).expanduser()
        self.sample_rate = sample_rate
        self.gain = gain
        self.channels = channels
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
            audio = load_audio(wav, self.sample_rate)
            return audio.mean(dim=0) if self.channels == 1 else audio
