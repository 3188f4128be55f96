"""Comparisons of one rendering with its notes or with a reference recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from midisynth.audio.spectrum import FFT_SIZES, FLOOR_DB, convergence, log_spectrum, magnitude_spectrum
from midisynth.errors import MidisynthError


@dataclass(frozen=True)
class NoteScore:
    """Agreement of two lists of notes.

    Attributes:
        precision: Share of the estimated notes that are right, judged by pitch and onset.
        recall: Share of the reference notes that were found.
        f1: Harmonic mean of both.
        offset_f1: F1 where the note's end has to agree as well.
        velocity_f1: F1 where the velocity has to agree as well, after the linear map that fits the whole piece best.
        velocity_correlation: Pearson correlation of the velocities of matched notes; NaN when it is not defined.
    """

    precision: float
    recall: float
    f1: float
    offset_f1: float
    velocity_f1: float
    velocity_correlation: float

    def as_dict(self) -> dict[str, float]:
        """Attribute name -> value."""
        return asdict(self)


def note_score(reference: np.ndarray, estimate: np.ndarray, onset_tolerance: float = 0.05) -> NoteScore:
    """Match notes as mir_eval does (Raffel et al. 2014): bipartite matching of equal pitches with close onsets.

    A note's end agrees within max(50 ms, 20 % of its length); its velocity within a tenth of the range. When neither
    list has a note every score is 1.

    Args:
        reference: True notes, [notes] of `NOTE_DTYPE`.
        estimate: Notes that were heard, [notes] of `NOTE_DTYPE`.
        onset_tolerance: How far onsets may be apart (seconds).

    Raises:
        MidisynthError: mir_eval is not installed.
    """
    matches = _matches(reference, estimate, onset_tolerance)
    if len(reference) == 0 or len(estimate) == 0:
        value = float(len(reference) == len(estimate))
        return NoteScore(value, value, value, value, value, float("nan"))
    from mir_eval import transcription, transcription_velocity

    reference_notes, estimate_notes = _intervals_and_hertz(reference), _intervals_and_hertz(estimate)
    precision, recall = len(matches) / len(estimate), len(matches) / len(reference)
    _, _, offset_f1, _ = transcription.precision_recall_f1_overlap(
        *reference_notes, *estimate_notes, onset_tolerance=onset_tolerance
    )
    _, _, velocity_f1, _ = transcription_velocity.precision_recall_f1_overlap(
        *reference_notes,
        reference["velocity"],
        *estimate_notes,
        estimate["velocity"],
        onset_tolerance=onset_tolerance,
        offset_ratio=None,
    )
    first, second = np.array(matches, dtype=int).reshape(-1, 2).T
    return NoteScore(
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if matches else 0.0,
        offset_f1=offset_f1,
        velocity_f1=velocity_f1,
        velocity_correlation=_correlation(reference["velocity"][first], estimate["velocity"][second]),
    )


def false_onsets(reference: np.ndarray, estimate: np.ndarray, onset_tolerance: float = 0.05) -> tuple[int, int]:
    """Notes that are heard although nobody struck them: how many while their key sounds, and how many others.

    The first kind is what beating in a held note sounds like, the second is a wrong key.

    Args:
        reference: True notes, [notes] of `NOTE_DTYPE`; they last as long as they sound, pedal and all.
        estimate: Notes that were heard, [notes] of `NOTE_DTYPE`.
        onset_tolerance: How far onsets may be apart (seconds).

    Raises:
        MidisynthError: mir_eval is not installed.
    """
    right = [heard for _, heard in _matches(reference, estimate, onset_tolerance)]
    wrong = np.delete(estimate, right)
    onset, end = reference["onset_sec"], reference["onset_sec"] + reference["duration_sec"]
    heard = wrong["onset_sec"][:, None]
    sounding = (wrong["pitch"][:, None] == reference["pitch"]) & (heard > onset) & (heard < end)
    again = int(sounding.any(axis=1).sum())
    return again, len(wrong) - again


def _matches(reference: np.ndarray, estimate: np.ndarray, onset_tolerance: float) -> list[tuple[int, int]]:
    """Pairs of positions (reference, estimate) of notes with one pitch and close onsets, each note in one pair."""
    try:
        from mir_eval import transcription
    except ImportError as error:
        raise MidisynthError("note scores need mir_eval; install it with: pip install mir_eval") from error
    if len(reference) == 0 or len(estimate) == 0:
        return []
    return transcription.match_notes(
        *_intervals_and_hertz(reference),
        *_intervals_and_hertz(estimate),
        onset_tolerance=onset_tolerance,
        offset_ratio=None,
    )


def _intervals_and_hertz(notes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # mir_eval refuses notes of no length.
    end = notes["onset_sec"] + np.maximum(notes["duration_sec"], 1e-3)
    return np.stack([notes["onset_sec"], end], axis=1), _hertz(notes["pitch"])


def _hertz(pitch: np.ndarray) -> np.ndarray:
    return 440.0 * 2.0 ** ((pitch - 69.0) / 12.0)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation; NaN where one of both is constant."""
    if len(first) < 2 or first.min() == first.max() or second.min() == second.max():
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def log_spectral_distance(
    audio: Tensor, reference: Tensor, fft_sizes: Sequence[int] = FFT_SIZES, floor_db: float = FLOOR_DB
) -> Tensor:
    """Mean absolute difference of log STFT magnitudes (nats), averaged over FFT sizes, [..., samples] -> scalar.

    Args:
        audio: [..., samples].
        reference: Same shape.
        fft_sizes: FFT sizes (samples).
        floor_db: Magnitudes below are raised to it (dB relative to a full-scale sine).
    """
    distances = [
        (log_spectrum(audio, size, floor_db) - log_spectrum(reference, size, floor_db)).abs().mean()
        for size in fft_sizes
    ]
    return torch.stack(distances).mean()


def spectral_convergence(audio: Tensor, reference: Tensor, n_fft: int = 2048) -> Tensor:
    """Norm of the difference of STFT magnitudes over the norm of the reference's, [..., samples] -> scalar."""
    return convergence(magnitude_spectrum(audio, n_fft), magnitude_spectrum(reference, n_fft))


def mel_error(mel: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute difference of log-mel spectrograms (nats), [..., frames, mels] -> scalar."""
    return (mel - reference).abs().mean()


def mel_convergence(mel: Tensor, reference: Tensor) -> Tensor:
    """Norm of the difference of mel magnitudes over the norm of the reference's, [..., frames, mels] -> scalar.

    Loud bins count, where `mel_error` gives every bin the same weight. Both are natural logarithms of magnitude.
    """
    return convergence(mel.exp(), reference.exp())


def spectral_flux(log_spectrogram: Tensor, steps: Tensor | None = None) -> Tensor:
    """Mean absolute change from frame to frame (nats), [frames, bins] -> scalar.

    Compare with the flux of a recording of the same notes: less is smoothed beating, more is roughness. Clip both to
    what is heard first, or the noise below decides.

    Args:
        log_spectrogram: [frames, bins].
        steps: [frames - 1] bool, which steps between frames count, such as `held_steps`; None: all.
    """
    change = log_spectrogram.diff(dim=-2).abs()
    return (change if steps is None else change[steps]).mean()


def held_steps(notes: np.ndarray, frames: int, frame_sec: float) -> Tensor:
    """Which steps between frames lie where notes are held, away from onsets, [frames - 1] bool.

    Away is more than 60 ms before and 120 ms after an onset, which covers the window of a frame and the hammer.

    Args:
        notes: [notes] of `NOTE_DTYPE`; they last as long as they sound, pedal and all.
        frames: Number of frames.
        frame_sec: Distance of frames (seconds).
    """
    time_sec = (np.arange(frames - 1) + 1) * frame_sec
    since = time_sec[:, None] - notes["onset_sec"]
    struck = ((since > -0.06) & (since < 0.12)).any(axis=1)
    sounding = ((since > 0) & (since < notes["duration_sec"])).any(axis=1)
    return torch.from_numpy(sounding & ~struck)


def chroma(audio: Tensor, sample_rate: int, floor_db: float = -60.0) -> Tensor:
    """Share of the twelve pitch classes in each frame, [..., samples] -> [..., 12, frames], of Euclidean norm 1.

    Magnitudes from 80 Hz, below which the analysis cannot tell semitones apart, to 4 kHz; frames of about a quarter of
    a second, a quarter of that apart. A bin counts for the two nearest classes of the equal temperament at 440 Hz.

    Args:
        audio: [..., samples].
        sample_rate: Of the audio (Hz).
        floor_db: Frames whose chroma is below this level (dB relative to a full-scale sine) are zeros.
    """
    n_fft = 2 ** round(np.log2(sample_rate / 4))
    frequency = torch.fft.rfftfreq(n_fft, 1 / sample_rate, dtype=torch.float64)
    inside = (frequency >= 80) & (frequency <= 4000)
    pitch = 69 + 12 * (frequency[inside] / 440).log2()
    distance = (pitch - torch.arange(12)[:, None] + 6) % 12 - 6
    weights = (1 - distance.abs()).clamp(min=0).to(audio)
    energy = weights @ magnitude_spectrum(audio, n_fft)[..., inside.to(audio.device), :]
    norm = torch.linalg.vector_norm(energy, dim=-2, keepdim=True)
    return torch.where(norm < 10 ** (floor_db / 20), 0, energy / norm.clamp(min=1e-12))


def chroma_error(audio: Tensor, reference: Tensor, sample_rate: int) -> Tensor:
    """Mean over frames of 1 - cosine similarity of the chroma, [..., samples] -> scalar between 0 and 1.

    Where both are silent the error of a frame is 0, where only one is it is 1.
    """
    heard, wanted = chroma(audio, sample_rate), chroma(reference, sample_rate)
    both_silent = (heard.sum(dim=-2) == 0) & (wanted.sum(dim=-2) == 0)
    return (1 - (heard * wanted).sum(dim=-2)).masked_fill(both_silent, 0).mean()


def reconstruction_distance(embeddings: Tensor, reference: Tensor) -> Tensor:
    """Mean over frames of the Euclidean distance of paired embeddings, [frames, dim] -> scalar."""
    return torch.linalg.vector_norm(embeddings - reference, dim=-1).mean()


def loudness_curve(audio: Tensor, sample_rate: int, frame_sec: float = 0.1, floor_db: float = -80.0) -> Tensor:
    """Level of consecutive frames (dB relative to full scale), [samples] -> [frames].

    Args:
        audio: [samples].
        sample_rate: Of the audio (Hz).
        frame_sec: Length of a frame (seconds).
        floor_db: Levels below are raised to it.
    """
    frames = audio.unfold(0, round(frame_sec * sample_rate), round(frame_sec * sample_rate))
    return (10 * frames.square().mean(dim=-1).clamp(min=1e-20).log10()).clamp(min=floor_db)


def loudness_correlation(audio: Tensor, reference: Tensor, sample_rate: int) -> float:
    """Pearson correlation of two loudness curves, [samples] each; NaN where one of them is constant."""
    return _correlation(
        loudness_curve(audio, sample_rate).cpu().numpy(), loudness_curve(reference, sample_rate).cpu().numpy()
    )


def onset_energy_rise(
    audio: Tensor, sample_rate: int, notes: np.ndarray, *, window_sec: float = 0.064, partials: int = 4
) -> np.ndarray:
    """By how much the band energy of every note rises at its onset (dB), [notes].

    The energy around the note's first partials just after its onset is compared with that just before: a check that
    notes are where they should be that needs no transcriber. A note that is struck is far above 0 dB (in sampled
    piano music at least 5 dB, half of them above 18 dB); one that is missing, early or late is not. The windows are
    too short to tell neighbouring keys apart.

    Args:
        audio: [samples].
        sample_rate: Of the audio (Hz).
        notes: [notes] of `NOTE_DTYPE`.
        window_sec: Length of both windows (seconds).
        partials: How many partials count.
    """
    if len(notes) == 0:
        return np.empty(0, np.float32)
    length = round(window_sec * sample_rate)
    n_fft = 4 * length
    window = torch.hann_window(length)
    padded = torch.nn.functional.pad(audio.detach().cpu().float(), (length, 2 * length))
    onsets = torch.as_tensor(np.round(notes["onset_sec"] * sample_rate).astype(np.int64)).clamp(max=len(audio))
    positions = onsets[:, None] + torch.arange(2 * length)
    before, after = padded[positions].unflatten(1, (2, length)).unbind(1)
    frequency = torch.fft.rfftfreq(n_fft, 1 / sample_rate)
    wanted = torch.as_tensor(_hertz(notes["pitch"]), dtype=torch.float32)[:, None] * torch.arange(1, partials + 1)
    # Half a semitone either way, but no narrower than what the window can tell apart.
    width = torch.maximum(wanted * 0.03, torch.tensor(1 / window_sec))
    band = ((frequency - wanted[..., None]).abs() <= width[..., None]).any(dim=1)

    def energy(frames: Tensor) -> Tensor:
        power = torch.fft.rfft(frames * window, n=n_fft).abs().square()
        return (power * band).sum(dim=1) / window.sum() ** 2 + 1e-10

    return (10 * (energy(after) / energy(before)).log10()).numpy()
