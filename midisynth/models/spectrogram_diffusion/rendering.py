"""What all models of this folder share: the spectrogram front end, and rendering pieces from generated segments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from midisynth.audio.crossfade import CrossFade
from midisynth.audio.features import MAGNITUDE_RANGE, LogMel, MelRange
from midisynth.audio.vocoder import Vocoder
from midisynth.diffusion.sampling import NoiseSource
from midisynth.models.spectrogram_diffusion.codec import SpectrogramDiffusionCodec
from midisynth.module import MidiModule, Noise, Rendering
from midisynth.vocoders import load_vocoder, read_vocoder


class SpectrogramModule(MidiModule):
    """Base of models that generate log-mel spectrograms in segments and hand them to a vocoder.

    A subclass has the options of the spectrogram as hyper-parameters, calls `set_up_spectrogram` in its constructor
    and implements `sample_segments`.

    Attributes:
        log_mel: Audio -> log-mel spectrogram.
        mel_range: Log-mel spectrogram -> [-1, 1].
    """

    codec: SpectrogramDiffusionCodec

    def set_up_spectrogram(self) -> None:
        """Make the front end and declare the vocoder; `codec` is there."""
        options = self.hparams
        names = ("sample_rate", "n_fft", "win_length", "hop_length", "f_min", "f_max", "mels")
        spectrogram = {name: options[name] for name in names}
        self.declare_part("vocoder", partial(load_vocoder, **spectrogram), read_vocoder)
        self.log_mel = LogMel(**spectrogram, framing=self.codec.framing)
        self.mel_range = (
            MelRange(math.inf, -math.inf, adaptive=True, clip=False)
            if options.compat == "seed"
            else MelRange(options.mel_min, options.mel_max)
        )

    @property
    def training_frames(self) -> int:
        """Frames of a training target.

        Centred frames are one more than hops fit into the segment, and the re-implementation trains on them all.
        """
        return self.hparams.segment_frames + (self.codec.framing == "centered")

    @property
    def has_context(self) -> bool:
        """Whether the network is told the segment before."""
        return self.hparams.get("context", False)

    @property
    def is_sequential(self) -> bool:
        """Whether segments are generated one after the other, each from the one before."""
        return self.has_context or self.hparams.get("continuation") == "inpaint"

    def scaled_mel(self, audio: Tensor, frames: int | None = None) -> Tensor:
        """Audio [batch, samples] -> scaled spectrogram [batch, frames, mels] in [-1, 1].

        Args:
            audio: [batch, samples].
            frames: Most frames that are kept; those of a training target when None.
        """
        # Half precision would drown the quiet bins before the logarithm.
        with torch.autocast(audio.device.type, enabled=False):
            return self.mel_range(self.log_mel(audio)[:, : self.training_frames if frames is None else frames])

    def spectrograms(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Training target and, for a model with context, what lies before it.

        Args:
            batch: From `codec.collate`, with "audio" [batch, samples] and, with context, "context_audio" [batch,
                samples] and "context_samples" [batch], how many of these there are, at the end.

        Returns:
            [batch, frames, mels] scaled spectrogram; "context" [batch, frames, mels] and "context_mask" [batch,
            frames] bool, as in `PieceOutput.context`, but scaled.
        """
        if not self.has_context:
            return self.scaled_mel(batch["audio"]), {}
        before, audio = batch["context_audio"], batch["audio"]
        if self.codec.framing == "centered":
            # The re-implementation takes what is missing for silence, and reflects at both borders.
            context = self.scaled_mel(before)
            return self.scaled_mel(audio), {"context": context, "context_mask": context.new_ones(context.shape[:2]) > 0}
        frames = self.hparams.segment_frames
        # One spectrogram, so that the last frames before the border see true audio beyond it.
        whole = self.scaled_mel(torch.cat([before, audio], dim=1), 2 * frames)
        known = batch["context_samples"] // self.hparams.hop_length
        mask = torch.arange(frames, device=audio.device) >= frames - known[:, None]
        context = torch.where(mask[..., None], whole[:, :frames], 0.0)
        return whole[:, frames:], {"context": context, "context_mask": mask}

    def sample_segments(self, batch: Mapping[str, Tensor], noise: NoiseSource) -> Tensor:
        """Generate segments.

        Args:
            batch: Conditioning of the segments, from `codec.collate`; with context, "context" and "context_mask" as in
                `spectrograms`, or the audio that they come from. Where the first frames are given, "known" [segments,
                given frames, mels], scaled.
            noise: Draw number -> standard normal [segments, segment_frames, mels]; the only randomness.

        Returns:
            Natural log of mel magnitude, [segments, segment_frames, mels] float32.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement sample_segments()")

    def noise_source(self, generators: Sequence[torch.Generator]) -> NoiseSource:
        """Successive draws from one CPU generator for each segment."""
        shape = self.hparams.segment_frames, self.hparams.mels
        return lambda _: torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.device)

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Any:
        """Pad segments to a batch for training; whole pieces stay apart, because `render` batches their segments."""
        return list(examples) if "segments" in examples[0] else self.codec.collate(examples)

    def duration_sec(self, example: Mapping[str, Any]) -> float:
        """Length of the audio of one piece (seconds)."""
        return example["samples"] / self.hparams.sample_rate

    def render(self, batch: Sequence[Mapping[str, Any]], noise: Noise) -> Iterator[tuple[int, Rendering]]:
        """Generate the segments of each piece, join them and hand them to the vocoder as they come.

        Args:
            batch: What `codec.encode` returned for each piece.
            noise: The only source of randomness.

        Yields:
            Position of a piece in the batch, and the next chunk of its audio, [channels, samples], at the rate of the
            vocoder.
        """
        vocoder = self.part("vocoder")
        outputs: dict[int, PieceOutput] = {}
        for chosen in self._rounds([len(piece["segments"]) for piece in batch]):
            for position, _ in chosen:
                if position not in outputs:
                    seed = noise.generator(position).initial_seed()
                    outputs[position] = PieceOutput(self, vocoder, batch[position], seed)
            examples = self.codec.collate([batch[position]["segments"][index] for position, index in chosen])
            if self.has_context:
                known, masks = zip(*(outputs[position].context() for position, _ in chosen), strict=True)
                context = self.mel_range(torch.stack(known).to(self.device))
                mask = torch.stack(masks).to(self.device)
                examples |= {"context": torch.where(mask[..., None], context, 0.0), "context_mask": mask}
            # Pieces that are generated together are all at the same segment.
            if self.hparams.get("continuation") == "inpaint" and chosen[0][1] > 0:
                shared = torch.stack([outputs[position].shared for position, _ in chosen])
                examples["known"] = self.mel_range(shared.to(self.device))
            generators = [noise.generator(position, index) for position, index in chosen]
            mels = self.sample_segments(examples, self.noise_source(generators))
            for (position, index), mel in zip(chosen, mels, strict=True):
                last = index + 1 == len(batch[position]["segments"])
                audio = outputs[position].push(mel, last)
                if last:
                    del outputs[position]
                if audio.shape[-1]:
                    yield position, Rendering(audio=audio, sample_rate=vocoder.sample_rate)

    def _rounds(self, segments: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
        """Which segments are generated together.

        Segments are batched within a piece, never across pieces: matrix products round differently in batches of other
        shapes, and an iterative vocoder turns that last bit into another sound. So a piece comes out the same to the
        byte, whatever is rendered beside it. Segments that follow from the one before can only be batched across
        pieces, which is faster where `pieces_per_batch` allows it and costs this.

        Args:
            segments: Number of segments of each piece.

        Yields:
            Position of the piece and index of the segment, for each.
        """
        if self.is_sequential:
            size = self.hparams.pieces_per_batch
            for first in range(0, len(segments), size):
                together = range(first, min(first + size, len(segments)))
                for index in range(max(segments[position] for position in together)):
                    yield [(position, index) for position in together if index < segments[position]]
        else:
            size = self.hparams.segments_per_batch
            for position, count in enumerate(segments):
                for first in range(0, count, size):
                    yield [(position, index) for index in range(first, min(first + size, count))]


class PieceOutput:
    """Joins the segments of one piece and turns them into audio; what it holds does not grow with the piece.

    Args:
        model: For its options.
        vocoder: Spectrogram to waveform.
        piece: From `SpectrogramDiffusionCodec.encode`.
        seed: For whatever is random in the vocoder.
    """

    def __init__(self, model: SpectrogramModule, vocoder: Vocoder, piece: Mapping[str, Any], seed: int):
        self._margin = model.codec.margin_frames
        self._join = CrossFade(model.hparams.overlap_frames, self._margin)
        self._stream = vocoder.stream(seed)
        # Centred frame i + 1 is what a vocoder knows as frame i: without this the audio would be one hop late.
        centered = model.codec.framing == "centered"
        self._skip_frames = 1 if centered else 0
        self._frames_left = piece["frames"]
        self._samples_left = -(-piece["samples"] * vocoder.sample_rate // model.hparams.sample_rate)
        self._context_frames = model.hparams.segment_frames if model.has_context else 0
        # The re-implementation begins with silence, one frame longer than the segments; others with nothing.
        silence = torch.full((model.training_frames + self._margin, model.hparams.mels), math.log(MAGNITUDE_RANGE[0]))
        self._before = silence if centered else silence[:0]

    def context(self) -> tuple[Tensor, Tensor]:
        """What lies before the next segment.

        Returns:
            Log mel [frames, mels], aligned to its end, and bool [frames], False where there is nothing.
        """
        # What is final by now ends where the next segment is first used, which is behind its margin.
        before = self._before[: len(self._before) - self._margin]
        missing = max(self._context_frames - len(before), 0)
        mask = torch.arange(missing + len(before)) >= missing
        return torch.nn.functional.pad(before, (0, 0, missing, 0)), mask

    @property
    def shared(self) -> Tensor:
        """What the segment before says of the first frames of the next one, log mel [frames, mels]."""
        return self._join.shared

    def push(self, mel: Tensor, last: bool) -> Tensor:
        """Take one segment [segment_frames, mels]; return the audio [channels, samples] that is final by now."""
        frames = self._join.push(mel)
        if self._context_frames:
            self._before = torch.cat([self._before.to(frames), frames])[-self._context_frames - self._margin :]
        if last:
            frames = torch.cat([frames, self._join.finish()])
        frames = frames[self._skip_frames :]
        self._skip_frames = 0
        frames = frames[: self._frames_left]
        self._frames_left -= len(frames)
        audio = self._stream.push(frames)
        if last:
            audio = torch.cat([audio, self._stream.finish()], dim=-1)
        audio = audio[:, : self._samples_left]
        self._samples_left -= audio.shape[-1]
        return audio
