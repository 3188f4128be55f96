"""Files and stretches of notes -> what the network reads of them: piano rolls, and audio that it goes on from."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from midisynth.audio.io import FORMATS, load_audio
from midisynth.errors import AudioError, MidiError, UsageError
from midisynth.models.midi2wave.codec import RollCodec
from midisynth.music.midi import read_midi
from midisynth.music.notes import Performance, is_drum
from midisynth.music.pedal import SUSTAIN, extend_by_pedal
from midisynth.music.rolls import KEYS, LOWEST_KEY

logger = logging.getLogger(__name__)

#: What a roll shows of the notes: their onsets, how long they sound, or one above the other.
RollKind = Literal["onset", "sustained", "both"]
#: What becomes of the sustain pedal, see `RollCodec`.
PedalKind = Literal["none", "row", "hold", "extend"]


class PieceCodec:
    """What `Midi2Wave` and its data module share: the grid of ticks, rolls, and which audio goes with a file.

    Args:
        roll: What the roll shows of the notes; "both" is sustained notes below and onsets above.
        pedal: What becomes of the sustain pedal, see `RollCodec`; with "both" that of the sustained notes.
        sample_rate: Of the audio (Hz).
        ticks_per_sec: Of the roll; a divisor of the rate.
        compat: See `RollCodec`.
        tail_sec: What is rendered after the end of the last note (seconds).
        prompt: Audio that the rendering goes on from: a file, or a folder with a file of the same name for every input;
            None for silence.
        start_sec: Where the rendering starts in a piece (seconds).
        length_sec: Its greatest length (seconds); None renders to the end.

    Attributes:
        max_duration_sec: Longest file that `encode` accepts (seconds).
        repair: Read what is left of damaged files.
        hop: Samples of a tick.

    Raises:
        UsageError: The rate is no multiple of that of ticks, or the roll does not go with the pedal.
    """

    def __init__(
        self,
        roll: RollKind = "onset",
        pedal: PedalKind = "none",
        sample_rate: int = 16000,
        ticks_per_sec: int = 250,
        compat: Literal["seed"] | None = None,
        tail_sec: float = 1.0,
        prompt: str | None = None,
        start_sec: float = 0.0,
        length_sec: float | None = None,
    ):
        self.hop, rest = divmod(sample_rate, ticks_per_sec)
        if rest:
            raise UsageError(f"sample_rate is {sample_rate}: it must be a multiple of ticks_per_sec ({ticks_per_sec})")
        self.max_duration_sec = 7200.0
        self.repair = False
        self.sample_rate = sample_rate
        self.ticks_per_sec = ticks_per_sec
        self._extends = pedal == "extend"
        if self._extends and roll == "onset":
            raise UsageError("pedal extend lengthens notes, and roll onset does not show lengths: choose another roll")
        # Once notes have been extended there is nothing left for the pedal to do.
        last = "none" if self._extends else pedal
        self._rolls = [RollCodec("onset" if roll == "onset" else "sustained", last, ticks_per_sec, compat)]
        if roll == "both":
            self._rolls.append(RollCodec("onset", "none", ticks_per_sec, compat))
        self.controllers = (SUSTAIN,) if last != "none" else ()
        self._tail_sec = tail_sec
        self._prompt = None if prompt is None else Path(prompt).expanduser()
        self._start_sec, self._length_sec = start_sec, length_sec

    @property
    def rows(self) -> int:
        """Of a roll."""
        return sum(roll.rows for roll in self._rolls)

    def sounding(self, performance: Performance) -> Performance:
        """The notes that a roll shows, as long as it shows them, and the controllers that it shows."""
        notes = performance.notes
        on_keys = (notes["pitch"] >= LOWEST_KEY) & (notes["pitch"] < LOWEST_KEY + KEYS) & ~is_drum(notes)
        played = performance.with_notes(notes[on_keys])
        sounding = extend_by_pedal(played) if self._extends else played
        controls = sounding.controls[np.isin(sounding.controls["number"], self.controllers)]
        return Performance(notes=sounding.notes, controls=controls)

    def ticks(self, performance: Performance) -> int:
        """Length of a piece (ticks); the performance is one of `sounding`."""
        return self._rolls[0].ticks(performance)

    def roll(self, performance: Performance, first: int, ticks: int) -> Tensor:
        """Roll of a stretch, [rows, ticks] float32.

        Args:
            performance: From `sounding`.
            first: Tick that it starts with; negative ones are before the piece, and empty.
            ticks: Its length.
        """
        before = min(max(-first, 0), ticks)
        parts = [roll.roll(roll.events(performance), first + before, ticks - before) for roll in self._rolls]
        return torch.from_numpy(np.pad(np.concatenate(parts), ((0, 0), (before, 0))))

    def encode(self, path: Path) -> dict[str, Any]:
        """Read a file.

        Returns:
            "performance", from `sounding`; "first" and "ticks", the stretch of it to render; "prompt", [samples]
            float32, the audio that it starts with, perhaps none. An array: tensors would be moved to the device, and
            to half precision with the model.

        Raises:
            MidiError: The file cannot be read, or nothing of it is to be played.
            AudioError: Its prompt cannot be read, or ends before the rendering starts.
        """
        performance = read_midi(path, max_duration_sec=self.max_duration_sec, repair=self.repair)
        sounding = self.sounding(performance)
        if not len(sounding.notes):
            raise MidiError(path, "has no notes on the keys of a piano")
        if left_out := len(performance.notes) - len(sounding.notes):
            logger.warning("%s: %d notes beyond the keys of a piano, or of drums, are left out", path, left_out)
        first = round(self._start_sec * self.ticks_per_sec)
        ticks = math.ceil((sounding.end_sec + self._tail_sec) * self.ticks_per_sec) - first
        if self._length_sec is not None:
            ticks = min(ticks, math.ceil(self._length_sec * self.ticks_per_sec))
        if ticks <= 0:
            raise MidiError(path, f"has nothing to render after start_sec, {self._start_sec:g} s")
        prompt = self._read_prompt(path, first * self.hop, ticks * self.hop)
        return {"performance": sounding, "first": first, "ticks": ticks, "prompt": prompt}

    def _read_prompt(self, path: Path, first: int, samples: int) -> np.ndarray:
        """A stretch of the audio that goes with a file, mono, [up to samples] float32."""
        if self._prompt is None:
            return np.zeros(0, np.float32)
        audio = self._prompt
        if audio.is_dir():
            found = [audio / f"{path.stem}{suffix}" for suffix in FORMATS]
            audio = next((file for file in found if file.is_file()), None)
            if audio is None:
                raise AudioError(
                    self._prompt / path.stem, f"no such audio ({', '.join(FORMATS)}), which prompt asks for"
                )
        prompt = load_audio(audio, self.sample_rate).mean(dim=0)[first : first + samples]
        if not len(prompt):
            raise AudioError(audio, f"ends before start_sec, {self._start_sec:g} s: there is nothing to go on from")
        return prompt.numpy()


class LongRoll:
    """A stretch of a roll that is made as it is read: whole, that of an hour takes 300 MB.

    Args:
        codec: Makes it.
        performance: From `PieceCodec.sounding`.
        first: Tick of the piece that it starts with.
        ticks: Its length.

    Attributes:
        shape: Rows and ticks, as of a tensor.
    """

    def __init__(self, codec: PieceCodec, performance: Performance, first: int, ticks: int):
        self.shape = codec.rows, ticks
        self._codec, self._performance, self._first = codec, performance, first

    def __getitem__(self, index: tuple[slice, slice]) -> Tensor:
        """Some rows of some ticks, [rows, ticks] float32."""
        rows, ticks = index
        first, last, _ = ticks.indices(self.shape[1])
        return self._codec.roll(self._performance, self._first + first, last - first)[rows]
