"""Mel spectrogram -> waveform: the interface, Griffin-Lim, and models in ONNX files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from midisynth.audio.features import mel_filters
from midisynth.audio.onnx import open_session
from midisynth.errors import CheckpointError


class VocoderStream(ABC):
    """Turns consecutive blocks of one spectrogram into consecutive blocks of audio, without audible seams.

    What has been pushed and finished amounts to frames * hop_samples samples, whatever the sizes of the blocks. Audio
    is on the CPU.
    """

    @abstractmethod
    def push(self, mel: Tensor) -> Tensor:
        """Take the next log-mel frames [frames, mels]; return the audio that is final by now, [channels, samples]."""

    @abstractmethod
    def finish(self) -> Tensor:
        """Return the audio that was held back, [channels, samples]. The stream cannot be used afterwards."""


class Vocoder(ABC):
    """A mel spectrogram -> waveform backend.

    Attributes:
        sample_rate: Of the audio it makes (Hz); it need not be that of the audio behind the spectrogram.
        hop_samples: Samples of its output per mel frame.
        mels: Mel bins it expects (natural log of magnitude; framing "published" of `midisynth.audio.features`).
        channels: Of the audio it makes.
    """

    sample_rate: int
    hop_samples: int
    mels: int
    channels: int = 1

    @abstractmethod
    def stream(self, seed: int = 0) -> VocoderStream:
        """Start on a new spectrogram. `seed` decides whatever is random, so equal calls give equal audio."""

    def __call__(self, mel: Tensor, seed: int = 0) -> Tensor:
        """Whole spectrogram [frames, mels] -> audio [channels, frames * hop_samples]."""
        stream = self.stream(seed)
        return torch.cat([stream.push(mel), stream.finish()], dim=-1)


class ContextStream(VocoderStream):
    """Runs a vocoder that looks a limited number of frames back and ahead, block by block.

    A block is seen with its context, of which the audio is thrown away. Blocks are the same whatever the sizes of what
    is pushed, so that the audio is the same to the last bit.

    Args:
        decode: Frames [frames, mels] on the CPU, and the position of the first of them in the piece -> audio
            [channels, frames * hop_samples].
        vocoder: Whose audio it is.
        block_frames: Frames that become final at a time.
        context_frames: Frames on either side of a block that `decode` sees as well.
    """

    def __init__(
        self, decode: Callable[[Tensor, int], Tensor], vocoder: Vocoder, block_frames: int, context_frames: int
    ):
        self._decode = decode
        self._hop = vocoder.hop_samples
        self._channels = vocoder.channels
        self._block_frames = block_frames
        self._context_frames = context_frames
        self._mel = torch.zeros(0, vocoder.mels)
        self._before = 0  # frames at the front of `_mel` whose audio is out
        self._position = 0  # of the first frame of `_mel` in the piece

    def push(self, mel: Tensor) -> Tensor:
        self._mel = torch.cat([self._mel, mel.detach().to("cpu", torch.float32)])
        done = [torch.zeros(self._channels, 0)]
        while len(self._mel) - self._before >= self._block_frames + self._context_frames:
            done.append(self._block(self._block_frames))
        return torch.cat(done, dim=-1)

    def finish(self) -> Tensor:
        frames = len(self._mel) - self._before
        return self._block(frames) if frames else torch.zeros(self._channels, 0)

    def _block(self, frames: int) -> Tensor:
        seen = self._mel[: self._before + frames + self._context_frames]
        audio = self._decode(seen, self._position)[:, self._before * self._hop :][:, : frames * self._hop]
        keep = min(self._context_frames, self._before + frames)
        dropped = self._before + frames - keep
        self._mel = self._mel[dropped:]
        self._position += dropped
        self._before = keep
        return audio


class GriffinLim(Vocoder):
    """Fast Griffin-Lim (Perraudin et al. 2013) in blocks, on magnitudes that fit the mel. It needs no weights.

    The textbook's version leaves sustained notes rough: from the true mel of eight excerpts of sampled piano a
    transcriber hears note onsets with an F1 of 0.88, from this one with 0.96 (recording: 0.99; mean spectral
    convergence 0.42 and 0.26; `benchmarks/evaluate.py --through griffin_lim`). Two things make the difference. Phases
    start from the frequencies of the spectral peaks (single-pass spectrogram inversion, Beauregard et al. 2015)
    instead of random ones. And frames are interpolated to half their distance, because windows that overlap by half
    leave the phases of neighbouring frames nearly independent.

    Args:
        sample_rate: Of the audio (Hz).
        n_fft: FFT size (samples).
        win_length: Length of the periodic Hann window (samples).
        hop_length: Distance of frames (samples).
        f_min: Lower edge of the first mel filter (Hz).
        f_max: Upper edge of the last mel filter (Hz).
        mels: Number of mel filters.
        iterations: Griffin-Lim iterations a block.
        momentum: Of the fast variant; 0 is plain Griffin-Lim.
        block_frames: Frames that become final at a time.
        lookahead_frames: Frames after the block that are estimated with it, so that the block fits what follows.
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        n_fft: int = 1024,
        win_length: int = 640,
        hop_length: int = 320,
        f_min: float = 0.0,
        f_max: float = 8000.0,
        mels: int = 128,
        *,
        iterations: int = 32,
        momentum: float = 0.9,
        block_frames: int = 128,
        lookahead_frames: int = 16,
    ):
        if hop_length % 2 or win_length % (hop_length // 2):
            raise ValueError(f"win_length {win_length} must be a multiple of half of an even hop_length {hop_length}")
        self.sample_rate = sample_rate
        self.hop_samples = hop_length
        self.mels = mels
        self.n_fft = n_fft
        self.win_length = win_length
        self.iterations = iterations
        self.momentum = momentum
        self.block_frames = block_frames
        self.lookahead_frames = lookahead_frames
        self.window = torch.hann_window(win_length)
        self.filters = mel_filters("published", sample_rate, n_fft, f_min, f_max, mels)

    def stream(self, seed: int = 0) -> VocoderStream:
        return _GriffinLimStream(self, seed)

    def linear_magnitude(self, mel: Tensor, updates: int = 40) -> Tensor:
        """Log mel [frames, mels] -> non-negative linear magnitudes [frames, bins] with about that mel.

        Multiplicative updates for non-negative least squares (Lee and Seung 2001). They keep the zeros and the shape
        of their start, so it is the mel spread evenly over each filter.
        """
        target = mel.exp()
        magnitude = (target / self.filters.sum(dim=0).clamp(min=1e-3)) @ self.filters.T
        wanted = target @ self.filters.T
        for _ in range(updates):
            magnitude *= wanted / (magnitude @ self.filters @ self.filters.T).clamp(min=1e-12)
        return magnitude


class _GriffinLimStream(VocoderStream):
    """State between blocks.

    All positions count half frames: `_step` samples. The joint is the boundary between final audio and the rest.
    """

    def __init__(self, vocoder: GriffinLim, seed: int):
        self._vocoder = vocoder
        self._generator = torch.Generator().manual_seed(seed)
        self._step = vocoder.hop_samples // 2
        self._overlap = vocoder.win_length // self._step - 1  # half frames that reach across the joint
        # Phase at the centre of the window minus phase at its start, for every bin.
        self._to_center = torch.pi * vocoder.win_length / vocoder.n_fft * torch.arange(vocoder.filters.shape[0])
        self._mel = torch.zeros(0, vocoder.mels)  # frames that wait
        self._magnitude = torch.zeros(0, vocoder.filters.shape[0])  # of half frames that are not final, or overlap
        self._before = 0  # how many of them start before the joint
        self._frames = 0  # frames after the joint
        self._final = torch.zeros(0)  # audio before the joint, as far as `_magnitude` reaches
        self._estimate = torch.zeros(0)  # what the last block made of the audio after the joint

    def push(self, mel: Tensor) -> Tensor:
        vocoder = self._vocoder
        done = [torch.zeros(0)]
        self._mel = torch.cat([self._mel, mel.detach().to("cpu", torch.float32)])
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            # Always so many frames at once: matrix products of other sizes are rounded in other ways.
            while len(self._mel) >= vocoder.block_frames:
                self._append(vocoder.linear_magnitude(self._mel[: vocoder.block_frames]))
                self._mel = self._mel[vocoder.block_frames :]
                if self._frames >= vocoder.block_frames + vocoder.lookahead_frames:
                    done.append(self._block(vocoder.block_frames, vocoder.lookahead_frames))
        return torch.cat(done)[None]

    def finish(self) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            if len(self._mel):
                self._append(self._vocoder.linear_magnitude(self._mel))
            return self._block(self._frames, 0)[None] if self._frames else torch.zeros(1, 0)

    def _append(self, magnitude: Tensor) -> None:
        """Queue magnitudes of frames [frames, bins], and in front of each its mean with the one before."""
        known = self._magnitude[-1:] if len(self._magnitude) else magnitude[:1]
        halfway = (torch.cat([known, magnitude[:-1]]) + magnitude) / 2
        both = torch.stack([halfway, magnitude], dim=1).flatten(0, 1)
        self._magnitude = torch.cat([self._magnitude, both if len(self._magnitude) else both[1:]])
        self._frames += len(magnitude)

    def _block(self, frames: int, lookahead: int) -> Tensor:
        """Make the next `frames` frames final, [frames * hop_samples]."""
        vocoder, step = self._vocoder, self._step
        # The half frame behind the last frame is its mean with one that is not there yet, or that will never be.
        magnitude = self._magnitude[: self._before + 2 * (frames + lookahead) - 1]
        joint, samples = self._before * step, (len(magnitude) - 1) * step + vocoder.win_length
        end = samples if lookahead else joint + frames * vocoder.hop_samples  # zeros follow the end of the piece
        weight = self._overlap_add((vocoder.window**2).expand(len(magnitude), -1)).clamp(min=1e-2)
        known = torch.cat([self._final, self._estimate])[:end]
        previous = self._analyse(torch.cat([known, torch.zeros(samples - len(known))]))
        spectrum = self._start(magnitude, previous, known=max(len(known) // step - self._overlap, 0))
        for iteration in range(vocoder.iterations):
            audio = self._synthesise(spectrum, weight, joint, end)
            consistent = self._analyse(audio)
            ahead = torch.lerp(previous, consistent, 1 + vocoder.momentum) if iteration else consistent
            previous = consistent
            spectrum = ahead * (magnitude / ahead.abs().clamp(min=1e-12))
        audio = self._synthesise(spectrum, weight, joint, end)
        final = joint + frames * vocoder.hop_samples
        keep = min(self._overlap, self._before + 2 * frames)
        self._final = audio[final - keep * step : final]
        # The last windows overlap with nothing behind them.
        self._estimate = audio[final : samples - self._overlap * step]
        self._magnitude = self._magnitude[self._before + 2 * frames - keep :]
        self._before = keep
        self._frames -= frames
        return audio[joint:final]

    def _start(self, magnitude: Tensor, estimate: Tensor, known: int) -> Tensor:
        """First spectrum of a block, [half frames, bins]: `known` half frames from an estimate, others propagated.

        Around a peak all bins have the phase of the peak at the centre of the window, and that advances by the
        frequency of the peak, which a parabola through its logarithmic magnitudes tells.
        """
        bins = magnitude.shape[1]
        position = torch.arange(bins)
        left, center, right = magnitude.clamp(min=1e-9).log().unfold(1, 3, 1).unbind(-1)
        peak = torch.nn.functional.pad((center > left) & (center >= right), (1, 1))
        curvature = (left - 2 * center + right).clamp(max=-1e-6)
        offset = torch.nn.functional.pad((0.5 * (left - right) / curvature).clamp(-0.5, 0.5), (1, 1))
        # The nearest peak of every bin; a frame without any has one in every bin.
        peak |= ~peak.any(dim=1, keepdim=True)
        below = torch.where(peak, position, -bins).cummax(dim=1).values
        above = torch.where(peak, position, 2 * bins).flip(1).cummin(dim=1).values.flip(1)
        nearest = torch.where(position - below <= above - position, below, above)
        advance = (nearest + offset.gather(1, nearest)) * (2 * torch.pi * self._step / self._vocoder.n_fft)
        if known:
            phase = estimate[known - 1].angle() + self._to_center
        else:
            phase = 2 * torch.pi * torch.rand(bins, generator=self._generator)
        phases = torch.empty_like(magnitude)
        phases[:known] = estimate[:known].angle()
        for index in range(known, len(magnitude)):
            phase = (phase[nearest[index]] + advance[index]) % (2 * torch.pi)
            phases[index] = phase - self._to_center
        return torch.polar(magnitude, phases)

    def _analyse(self, audio: Tensor) -> Tensor:
        frames = audio.unfold(0, self._vocoder.win_length, self._step)
        return torch.fft.rfft(frames * self._vocoder.window, n=self._vocoder.n_fft)

    def _synthesise(self, spectrum: Tensor, weight: Tensor, joint: int, end: int) -> Tensor:
        frames = torch.fft.irfft(spectrum, n=self._vocoder.n_fft)[:, : self._vocoder.win_length]
        audio = self._overlap_add(frames * self._vocoder.window) / weight
        audio[:joint] = self._final
        audio[end:] = 0
        return audio

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """Add up [half frames, win_length] at their positions, [(half frames - 1) * step + win_length]."""
        pieces = frames.unflatten(1, (-1, self._step))
        audio = torch.zeros(len(frames) + self._overlap, self._step)
        for index in range(pieces.shape[1]):
            audio[index : index + len(frames)] += pieces[:, index]
        return audio.flatten()


class OnnxVocoder(Vocoder):
    """A vocoder in an ONNX file, such as the published SoundStream mel decoder, run by onnxruntime.

    The model maps `input_features` [1, frames, mels] (log mel) to audio [1, frames * hop_length]. It sees blocks with
    context on both sides, of which the audio is thrown away, so it must not look further than the context.

    Args:
        source: Path of the file, or its content.
        sample_rate: Of the audio it makes (Hz).
        hop_length: Samples per mel frame.
        mels: Number of mel filters.
        block_frames: Frames that become final at a time.
        context_frames: Frames on either side of a block that the model sees as well.

    Raises:
        CheckpointError: onnxruntime is not installed, or the file is missing or not such a model.
    """

    def __init__(
        self,
        source: str | Path | bytes,
        sample_rate: int = 16000,
        hop_length: int = 320,
        mels: int = 128,
        *,
        block_frames: int = 256,
        context_frames: int = 64,
    ):
        self.sample_rate = sample_rate
        self.hop_samples = hop_length
        self.mels = mels
        self.block_frames = block_frames
        self.context_frames = context_frames
        self.name = "<embedded ONNX model>" if isinstance(source, bytes) else str(source)
        session = open_session(source, what="vocoder")
        names = [node.name for node in session.get_inputs()]
        if names != ["input_features"]:
            raise CheckpointError(f"{self.name}: expected the one input 'input_features', found {names}")
        self._session = session

    def stream(self, seed: int = 0) -> VocoderStream:
        return ContextStream(lambda mel, _: self.decode(mel), self, self.block_frames, self.context_frames)

    def decode(self, mel: Tensor) -> Tensor:
        """One run of the model: [frames, mels] -> [1, frames * hop_samples].

        Raises:
            CheckpointError: The model's output has another length.
        """
        (audio,) = self._session.run(None, {"input_features": mel[None].numpy()})
        audio = torch.from_numpy(audio).flatten()
        if len(audio) != len(mel) * self.hop_samples:
            raise CheckpointError(
                f"{self.name}: made {len(audio)} samples out of {len(mel)} frames; "
                f"expected {self.hop_samples} samples a frame"
            )
        return audio[None]


def load_vocoder(
    reference: str,
    *,
    sample_rate: int = 16000,
    n_fft: int = 1024,
    win_length: int = 640,
    hop_length: int = 320,
    f_min: float = 0.0,
    f_max: float = 8000.0,
    mels: int = 128,
    content: bytes | None = None,
) -> Vocoder:
    """Build the vocoder that a model names.

    Args:
        reference: "griffin_lim", or the path of an .onnx file.
        sample_rate: Of the audio (Hz).
        n_fft: FFT size of the mel spectrogram (samples).
        win_length: Length of its window (samples).
        hop_length: Distance of its frames (samples).
        f_min: Lower edge of its first filter (Hz).
        f_max: Upper edge of its last filter (Hz).
        mels: Number of its filters.
        content: The bytes of the .onnx file, for a checkpoint that carries its vocoder; the path is then not read.

    Raises:
        CheckpointError: There is no such vocoder, or it cannot be loaded.
    """
    if reference == "griffin_lim":
        return GriffinLim(sample_rate, n_fft, win_length, hop_length, f_min, f_max, mels)
    if reference.endswith(".onnx"):
        return OnnxVocoder(reference if content is None else content, sample_rate, hop_length, mels)
    raise CheckpointError(f"vocoder: {reference!r} is none; choose griffin_lim or the path of an .onnx file")
