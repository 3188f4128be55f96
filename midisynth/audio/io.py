"""Reading audio files, and writing them while they are being made."""

from __future__ import annotations

import contextlib
import io
import math
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import soundfile
import torch
from torch import Tensor

from midisynth.audio.backend import functional
from midisynth.errors import AudioError, RenderError

#: A file that claims a lower rate is broken, or holds no sound that anyone could hear (Hz).
MIN_SAMPLE_RATE = 1000

#: File suffix -> libsndfile's name of the format and the subtype that is written unless another one is asked for.
FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}

#: What FLAC can hold. libsndfile accepts any number for Ogg and then crashes.
MAX_CHANNELS = 8

#: Marks the files that are written here, so that they can be told from recordings.
SOFTWARE = "midisynth"

# libsndfile's Vorbis encoder puts whole blocks on the stack and crashes on long ones.
_BLOCK_FRAMES = 65536

# Up to this many filter taps torchaudio's polyphase resampler is used; rates without a common factor need billions.
_MAX_RESAMPLER_TAPS = 20_000_000


def load_audio(path: str | os.PathLike[str], sample_rate: int | None = None) -> Tensor:
    """Read an audio file, [channels, samples] float32.

    Args:
        path: The file; any format that libsndfile reads.
        sample_rate: Resample to this rate (Hz); None keeps the rate of the file.

    Raises:
        AudioError: The file cannot be read, has no samples, an absurd rate, or NaN or infinity in it.
    """
    with _open_audio(path) as file:
        audio, rate = _read(file, path), file.samplerate
    return audio if sample_rate in (None, rate) else resample(audio, rate, sample_rate)


def audio_seconds(path: str | os.PathLike[str]) -> float:
    """Length of an audio file (seconds), as its header has it; errors as in `load_audio`, as far as that tells."""
    with _open_audio(path) as file:
        return file.frames / file.samplerate


def stream_audio(path: str | os.PathLike[str], sample_rate: int, block_sec: float = 10.0) -> Iterator[Tensor]:
    """Read an audio file block by block: what `load_audio` gives, in memory that does not grow with the file.

    Args:
        path: The file; any format that libsndfile reads.
        sample_rate: Resample to this rate (Hz).
        block_sec: About how much is read at a time (seconds).

    Yields:
        Consecutive [channels, samples] float32.

    Raises:
        AudioError: As in `load_audio`; where the damage is, after the blocks before it.
    """
    with _open_audio(path) as file:
        common = math.gcd(file.samplerate, sample_rate)
        up, down = sample_rate // common, file.samplerate // common
        # Blocks start where a sample of either rate does, and on both sides the resampler sees more than its filter.
        context = math.ceil(file.samplerate / 10 / down) * down
        block = max(math.ceil(file.samplerate * block_sec / down) * down, context)
        before, seen = 0, _read(file, path, block + context)
        while seen.shape[1] - before >= block + context:
            yield resample(seen, file.samplerate, sample_rate)[:, before // down * up :][:, : block // down * up]
            rest = seen[:, before + block - context :]
            seen = torch.cat([rest, _read(file, path, block, required=False)], dim=1)
            before = context
        yield resample(seen, file.samplerate, sample_rate)[:, before // down * up :]


def _open_audio(path: str | os.PathLike[str]) -> soundfile.SoundFile:
    """Open an audio file for reading; errors as in `load_audio`."""
    try:
        file = soundfile.SoundFile(os.fspath(path))
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        if not Path(path).exists():
            raise AudioError(path, "no such file") from error
        raise AudioError(path, f"cannot be read as audio ({_cause(error)})") from error
    if file.samplerate < MIN_SAMPLE_RATE:
        raise AudioError(path, f"has a sample rate of {file.samplerate} Hz; at least {MIN_SAMPLE_RATE} Hz is needed")
    return file


def _read(file: soundfile.SoundFile, path: str | os.PathLike[str], frames: int = -1, required: bool = True) -> Tensor:
    """The next samples of a file, [channels, samples]; at least one where they are `required`."""
    try:
        data = file.read(frames, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(path, f"cannot be read as audio ({_cause(error)})") from error
    if required and len(data) == 0:
        raise AudioError(path, "has no samples")
    audio = torch.from_numpy(data.T.copy())
    if not torch.isfinite(audio).all():
        raise AudioError(path, "has NaN or infinite samples")
    return audio


def resample(audio: Tensor, rate: int, new_rate: int) -> Tensor:
    """Band-limited resampling of [..., samples] from `rate` to `new_rate` (Hz) -> [..., ceil(samples * ratio)]."""
    common = math.gcd(rate, new_rate)
    up, down = new_rate // common, rate // common
    if up * (down + 12 * max(down / up, 1)) <= _MAX_RESAMPLER_TAPS:
        return functional.resample(audio, rate, new_rate)
    # Exact in the frequency domain once the length is a multiple of `down`; zeros keep the end off the start.
    samples = audio.shape[-1]
    periods = math.ceil(samples / down) + 1
    spectrum = torch.fft.rfft(audio, n=periods * down)
    spectrum = spectrum[..., : min(periods * down, periods * up) // 2 + 1]
    return torch.fft.irfft(spectrum, n=periods * up)[..., : math.ceil(samples * up / down)] * (up / down)


@dataclass(frozen=True)
class AudioReport:
    """What an `AudioWriter` has written.

    Attributes:
        peak: Largest absolute sample before clipping; 1 is full scale.
        clipped_samples: Samples beyond full scale, which were cut to it.
        seconds: Length (seconds).
    """

    peak: float
    clipped_samples: int
    seconds: float


class AudioWriter:
    """Writes a file block by block under a temporary name, and gives it its name when the `with` block ends well.

    Args:
        path: The file; .wav, .flac or .ogg.
        sample_rate: Of the audio (Hz).
        channels: Number of channels.
        subtype: libsndfile's name of the encoding, such as "PCM_24" or "FLOAT"; None is 16-bit, or Vorbis for .ogg.

    Raises:
        AudioError: The suffix is unknown, the format cannot hold such audio, or the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], sample_rate: int, channels: int = 1, subtype: str | None = None):
        self.path = Path(path)
        self.sample_rate = sample_rate
        self.channels = channels
        if self.path.suffix.lower() not in FORMATS:
            raise AudioError(path, f"unknown audio suffix; choose {', '.join(FORMATS)}")
        if not 1 <= channels <= MAX_CHANNELS:
            raise AudioError(path, f"cannot hold {channels} channels; 1 to {MAX_CHANNELS} can be written")
        self._format, default = FORMATS[self.path.suffix.lower()]
        self._subtype = subtype or default
        if not soundfile.check_format(self._format, self._subtype):
            choices = ", ".join(soundfile.available_subtypes(self._format))
            raise AudioError(path, f"{self._format} files cannot hold {self._subtype}; choose {choices}")
        # Short, whatever the length of the name, and with a suffix that no search for results finds.
        self._temporary = self.path.with_name(f".{secrets.token_hex(8)}.part")
        self._peak = 0.0
        self._clipped = 0
        self._frames = 0

    @property
    def report(self) -> AudioReport:
        """Peak, clipping and length of what has been written so far."""
        return AudioReport(self._peak, self._clipped, self._frames / self.sample_rate)

    def __enter__(self) -> AudioWriter:
        try:
            self._sink = _Sink(self._temporary, "x")
        except OSError as error:
            raise AudioError(self.path, f"cannot be written ({error.strerror})") from error
        _lock(self._sink)
        try:
            self._file = soundfile.SoundFile(
                self._sink, "w", self.sample_rate, self.channels, self._subtype, format=self._format
            )
        except soundfile.LibsndfileError as error:
            self._sink.close()
            self._temporary.unlink()
            raise self._failure(error) from error
        self._file.software = SOFTWARE
        return self

    def write(self, audio: Tensor) -> None:
        """Append [channels, samples] in [-1, 1]; what lies beyond is clipped and counted.

        Raises:
            RenderError: There is NaN or infinity in it; nothing of this block is written.
            AudioError: The disk is full, or another failure to write.
        """
        if audio.ndim != 2 or audio.shape[0] != self.channels:
            raise ValueError(f"audio is {list(audio.shape)}, expected [{self.channels}, samples]")
        audio = audio.detach().to("cpu", torch.float32)
        if not torch.isfinite(audio).all():
            raise RenderError(f"{self.path}: the model produced NaN or infinite samples; nothing was written")
        if audio.shape[1] == 0:
            return
        magnitude = audio.abs()
        self._peak = max(self._peak, float(magnitude.max()))
        self._clipped += int((magnitude > 1).sum())
        data = audio.clamp(-1, 1).T.numpy()
        for start in range(0, len(data), _BLOCK_FRAMES):
            try:
                self._file.write(data[start : start + _BLOCK_FRAMES])
            # soundfile asserts that everything was written; when libsndfile gives no reason, that is how it ends.
            except (soundfile.LibsndfileError, AssertionError) as error:
                raise self._failure(error) from error
        self._frames += len(data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            self._sink.close()
            if kind is None:
                if self._sink.failure:  # what is written on closing can fail too, and libsndfile does not tell
                    raise self._failure(self._sink.failure) from self._sink.failure
                os.replace(self._temporary, self.path)
        except (OSError, soundfile.LibsndfileError) as failure:
            if kind is None:  # otherwise the error that ended the block is the one to tell
                raise self._failure(failure) from failure
        finally:
            self._temporary.unlink(missing_ok=True)

    def _failure(self, error: BaseException) -> AudioError:
        return AudioError(self.path, f"cannot be written ({_cause(self._sink.failure or error)})")


class _Sink(io.FileIO):
    """A file that keeps its first error: one that is raised inside libsndfile's callbacks would be lost."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.failure = self.failure or error
        return len(data) - len(rest)


def _lock(file: io.FileIO) -> None:
    """Lock an unfinished file, so that it can be told from what a killed process has left."""
    try:
        import fcntl
    except ImportError:
        return  # Windows keeps open files from being deleted by itself
    with contextlib.suppress(OSError):  # not every network file system has locks
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _cause(error: BaseException) -> str:
    """The reason in an exception of soundfile or the system, without the name of the (temporary) file."""
    if isinstance(error, soundfile.LibsndfileError):
        return error.error_string.rstrip(".")
    return getattr(error, "strerror", None) or str(error)
