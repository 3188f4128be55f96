"""Prompts: a few seconds of a recording and the notes that are played in them, which tell the model what to sound like.

prompt = load_prompt("p.wav", "p.mid", neural_codec, note_rows)
rows = note_rows.encode(prompt.followed_by(segment.struck))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool1d

from midisynth.audio.io import resample, stream_audio
from midisynth.audio.neural_codec import NeuralCodec
from midisynth.errors import AudioError, MidiError
from midisynth.models.midi_valle.codec import FINE_TICKS, NoteRows, in_seconds
from midisynth.models.midi_valle.segments import PUBLISHED_TICKS, segment
from midisynth.music.notes import Performance

#: What becomes of a prompt whose notes are not heard in its audio.
Check = Literal["stop", "warn"]

#: Longest prompt that the published model takes, and the shortest that says anything (seconds).
PROMPT_SEC, SHORTEST_PROMPT_SEC = 3.0, 1.0
#: Audio whose peak is below is silent (-60 dB).
SILENCE = 1e-3
#: Pauses at the end, and differences in length, from here on are worth a word (seconds).
REMARKABLE_SEC = 1.0

#: What `note_evidence` is at least if audio and notes belong together (dB). Of 238 stretches of 3 s of MAPS, 1 % are
#: below; of stretches with notes from elsewhere in the same piece 90 %.
AGREEMENT_DB = 1.5
#: For that comparison: rate (Hz), FFT size, hop (samples), distance from the onset (seconds), partials, and the
#: magnitude below which nothing counts, relative to the largest. The keys beside a note and a tritone away share few
#: of its partials.
RATE, FFT, HOP, BESIDE_SEC, PARTIALS, FLOOR = 16000, 2048, 160, 0.06, 4, 1e-3
OTHER_KEYS = (-6, -1, 1, 6)
#: Shifts that are tried when audio and notes disagree (seconds).
SHIFTS_SEC = np.round(np.arange(-1.0, 1.001, 0.05), 2)


@dataclass(frozen=True)
class Prompt:
    """What a model hears before it plays.

    Attributes:
        codes: Of the audio, [frames, codebooks] int64.
        seconds: Length of the audio (seconds).
        performance: What is played in it.
        follows_sec: Where on its clock a performance that follows it begins (seconds): where the audio ends, or, as in
            the original program, where the MIDI ends.
        ticks_per_quarter: Of a prompt and what follows it.
        warnings: What is odd about it, one sentence each.
    """

    codes: Tensor
    seconds: float
    performance: Performance
    follows_sec: float
    ticks_per_quarter: int = FINE_TICKS
    warnings: tuple[str, ...] = ()

    def followed_by(self, performance: Performance) -> Performance:
        """Prompt and performance as one, at 120 bpm."""
        notes, controls = performance.notes.copy(), performance.controls.copy()
        notes["onset_sec"] += self.follows_sec
        controls["time_sec"] += self.follows_sec
        both = Performance(
            notes=np.concatenate([self.performance.notes, notes]),
            controls=np.concatenate([self.performance.controls, controls]),
        )
        return in_seconds(both, self.ticks_per_quarter)


def load_prompt(
    audio_path: str | Path,
    midi_path: str | Path,
    codec: NeuralCodec,
    note_rows: NoteRows,
    max_sec: float = PROMPT_SEC,
    check: Check = "stop",
    device: torch.device | str = "cpu",
) -> Prompt:
    """Read the first seconds of a recording and of its notes.

    Audio of any rate is resampled, and stereo averaged. A prompt is as many whole frames of the codec as there are, and
    notes end where it ends.

    Args:
        audio_path: Recording of a piano.
        midi_path: Notes of the same seconds.
        codec: Of the model.
        note_rows: Of the model.
        max_sec: Longest prompt (seconds).
        check: What happens if audio and notes do not seem to belong together: "stop" refuses them, "warn" says so.
        device: Of the codec.

    Raises:
        AudioError: The audio cannot be read, is silent or too short.
        MidiError: The MIDI file cannot be read, has no notes at that time, or others than those that are heard.
    """
    audio = _read_audio(Path(audio_path), codec, max_sec)
    seconds = len(audio) / codec.sample_rate
    whole = note_rows.read(midi_path)
    performance = whole if note_rows.compat else segment(whole, 0.0, seconds).performance
    if len(performance.notes) == 0:
        raise MidiError(
            midi_path,
            f"has no notes in the {seconds:.1f} s of the prompt: its first one begins at "
            f"{whole.notes['onset_sec'].min():.1f} s",
        )
    warnings = [f"{midi_path}: {text}" for text in whole.warnings]
    if (doubt := _disagreement(audio, codec.sample_rate, performance.notes)) is not None:
        text = f"its notes are not those that are heard in {Path(audio_path).name}: {doubt}"
        if check == "stop":
            raise MidiError(midi_path, f"{text}; model.prompt_check: warn takes them all the same")
        warnings.append(f"{midi_path}: {text}")
    if seconds + REMARKABLE_SEC < min(whole.end_sec, max_sec):
        warnings.append(f"{midi_path}: only the first {seconds:.1f} s are used, which is how long the prompt is")
    if performance.end_sec < seconds - REMARKABLE_SEC:
        warnings.append(f"{midi_path}: has no notes in the last {seconds - performance.end_sec:.1f} s of the prompt")
    audio = audio.to(device)
    with torch.no_grad():
        codes = codec.encode(audio[None])[0]
    if note_rows.compat:
        return Prompt(codes, seconds, performance, midi_end_sec(performance), PUBLISHED_TICKS, tuple(warnings))
    return Prompt(codes, seconds, performance, seconds, warnings=tuple(warnings))


def midi_end_sec(performance: Performance) -> float:
    """End of the last note or the last controller (seconds), which is what the original takes for the prompt's end."""
    return max([performance.end_sec, *performance.controls["time_sec"].tolist()])


def default_prompt() -> tuple[Path, Path]:
    """Audio and MIDI of the prompt that comes with the package, see `ATTRIBUTION.md` beside them."""
    folder = Path(__file__).with_name("prompt")
    return folder / "salamander.flac", folder / "salamander.mid"


def _read_audio(path: Path, codec: NeuralCodec, max_sec: float) -> Tensor:
    """The beginning of a recording in mono, whole frames, [samples]."""
    wanted = math.floor(max_sec * codec.sample_rate)
    blocks, samples = [], 0
    for block in stream_audio(path, codec.sample_rate):
        blocks.append(block.mean(dim=0))
        samples += len(blocks[-1])
        if samples >= wanted:
            break
    audio = torch.cat(blocks)[:wanted]
    seconds = len(audio) / codec.sample_rate
    if seconds < SHORTEST_PROMPT_SEC:
        needed = f"at least {SHORTEST_PROMPT_SEC:g} s are needed"
        raise AudioError(path, f"is too short for a prompt: {seconds:.2f} s, {needed}")
    if audio.abs().max() < SILENCE:
        raise AudioError(path, f"is silent in its first {seconds:.1f} s: choose a stretch in which the piano plays")
    return audio[: len(audio) // codec.hop * codec.hop]


def _disagreement(audio: Tensor, rate: int, notes: np.ndarray) -> str | None:
    """What to do about notes that are not heard in [samples] where they should be; None if they are."""
    evidence = note_evidence(audio, rate)
    if evidence(notes) >= AGREEMENT_DB:
        return None
    shifted = [evidence(_moved(notes, shift)) for shift in SHIFTS_SEC]
    best = int(np.argmax(shifted))
    if shifted[best] < 3 * AGREEMENT_DB:
        return "check that both are of the same seconds"
    direction = "later" if SHIFTS_SEC[best] > 0 else "earlier"
    return f"they would agree if the notes came {abs(SHIFTS_SEC[best]):.2f} s {direction}"


def _moved(notes: np.ndarray, shift_sec: float) -> np.ndarray:
    """Notes moved in time (seconds), without those that would begin before 0."""
    moved = notes.copy()
    moved["onset_sec"] += shift_sec
    return moved[moved["onset_sec"] >= 0]


def note_evidence(audio: Tensor, rate: int) -> Callable[[np.ndarray], float]:
    """Measure how well notes fit audio.

    Args:
        audio: [samples].
        rate: Of it (Hz).

    Returns:
        A function of notes, [notes] of `NOTE_DTYPE`: how much louder their first partials are just after the onset than
        just before, in comparison with those of other keys, mean over notes (dB); 0 where no note begins.
    """
    audio = resample(audio, rate, RATE)
    window = torch.hann_window(FFT, device=audio.device)
    magnitude = torch.stft(audio, FFT, HOP, window=window, return_complex=True).abs()
    level = 20 * (magnitude + FLOOR * magnitude.max().clamp(min=SILENCE)).log10()
    # A partial lies within a bin of where it is looked for: strings are stiff, and pianos are tuned.
    level = max_pool1d(level.T, 3, stride=1, padding=1).cpu().numpy()

    def rise(pitch: np.ndarray, onset_sec: np.ndarray) -> float:
        beside = round(BESIDE_SEC * RATE / HOP)
        frame = np.rint(onset_sec * RATE / HOP).astype(int)[:, None]
        hertz = 440 * 2 ** ((pitch[:, None] - 69) / 12) * np.arange(1, PARTIALS + 1)
        audible = (hertz < 0.45 * RATE) & (frame + beside < len(level))
        if not audible.any():
            return 0.0
        bins = np.rint(hertz * FFT / RATE).astype(int).clip(max=level.shape[1] - 1)
        after, before = ((frame + step).clip(0, len(level) - 1) for step in (beside, -beside))
        return float((level[after, bins] - level[before, bins])[audible].mean())

    def evidence(notes: np.ndarray) -> float:
        pitch, onset = notes["pitch"], notes["onset_sec"]
        return rise(pitch, onset) - float(np.mean([rise(pitch + key, onset) for key in OTHER_KEYS]))

    return evidence
