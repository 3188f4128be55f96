"""`PianoCodec`: EnCodec as a model that learns from recordings, and as the codec that the synthesiser needs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn.functional import l1_loss

from midisynth import weights
from midisynth.audio.crossfade import CrossFade
from midisynth.audio.io import FORMATS, stream_audio
from midisynth.audio.losses import MelLoss, MultiResolutionStftLoss
from midisynth.audio.neural_codec import (
    EncodecCodec,
    EncodecOptions,
    PadMode,
    audiocraft_options,
    renamed,
    transformers_options,
)
from midisynth.checkpoints import load_model, packed, save_weights, unpacked
from midisynth.datasets.audio_stretches import AudioStretches
from midisynth.errors import CheckpointError
from midisynth.evaluation import PREDICTION, Renditions
from midisynth.metrics.scores import LogSpectralDistance
from midisynth.models.midi_valle.codebooks import CodebookLearner, Quantized
from midisynth.module import MidiModule, Noise, Published, Rendering
from midisynth.nn.discriminators import AudioDiscriminator, MultiPeriodDiscriminator, MultiResolutionDiscriminator
from midisynth.tensor_files import read_checkpoint, read_safetensors
from midisynth.training.adversarial import AdversarialStep

logger = logging.getLogger("midisynth.codec")

#: Files are coded in blocks of this length, which share this much with their neighbours (seconds). Less than a half of
#: that is faded; the rest is there because the LSTM needs time to settle.
BLOCK_SEC, SHARED_SEC = 20.0, 2.0

#: Files of an EnCodec that transformers has saved.
CONFIG, TENSORS = "config.json", "model.safetensors"

#: FFT sizes (samples) and mel bins of the mel loss.
MEL_RESOLUTIONS = (512, 1024, 2048, 4096), (40, 64, 96, 128)


class PianoCodec(AdversarialStep, MidiModule):
    """Audio -> codes -> audio: EnCodec. As a model of its own it shows what its codes keep of audio files.

    The defaults are the sizes of the 32 kHz EnCodec that the published model reads and writes. It is a `NeuralCodec`.

    Args:
        sample_rate: Of the audio (Hz).
        ratios: Strides of the decoder, from the codes to the audio; their product is the hop (samples of a frame).
        dim: Size of a code vector.
        filters: Channels at the audio's end; every stride doubles them.
        codebooks: Codes of a frame.
        bins: Values that a code can have: a power of 2.
        residual_layers: Residual blocks at every stride.
        lstm_layers: Layers of the LSTM between encoder and codes.
        kernel: Kernel of the first convolution.
        last_kernel: Kernel of the last convolution.
        residual_kernel: Kernel in residual blocks.
        dilation: Base of the dilations of residual blocks.
        compress: What residual blocks divide their channels by.
        causal: Look at the past alone.
        trim_right: Share of the padding that a causal decoder cuts off on the right.
        pad_mode: How convolutions are padded.
        conv_shortcut: Residual blocks have a convolution as their shortcut.
        init_from: Checkpoint whose weights training starts from; null starts with random ones.
        segment_frames: Frames of a training example.
        wave_weight: Weight of the mean absolute difference of the samples.
        stft_weight: Weight of the multi-resolution STFT loss.
        mel_weight: Weight of the mel loss.
        commitment_weight: Weight of the distance of vectors from their codes.
        quantize_from: Step from which there are codes. Before, vectors pass as they are: an encoder that has nothing to
            say yet would be given codes that say nothing.
        decay: Of the means that the codes follow, a step.
        dead_share: Codes that are chosen less often than this share of the mean are moved.
        adversarial: Train against discriminators of periods and of spectra as well. The trainer must then not clip.
        adversarial_from: Step from which there are discriminators.
        adversarial_weight: Weight of the discriminators' judgement.
        feature_weight: Weight of the distance of their activations.
        adversarial_clip: Largest gradient norm of either side in adversarial training.
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds a learning-rate schedule from the optimizer; it advances once a step.
    """

    reads: ClassVar[tuple[str, ...]] = tuple(FORMATS)
    writes: ClassVar[str] = ".wav"
    published_files: ClassVar[tuple[str, ...]] = (CONFIG, TENSORS)
    codec: AudioStretches

    def __init__(
        self,
        sample_rate: int = 32000,
        ratios: Sequence[int] = (8, 5, 4, 4),
        dim: int = 128,
        filters: int = 64,
        codebooks: int = 4,
        bins: int = 2048,
        residual_layers: int = 1,
        lstm_layers: int = 2,
        kernel: int = 7,
        last_kernel: int = 7,
        residual_kernel: int = 3,
        dilation: int = 2,
        compress: int = 2,
        causal: bool = False,
        trim_right: float = 1.0,
        pad_mode: PadMode = "constant",
        conv_shortcut: bool = False,
        init_from: str | None = None,
        segment_frames: int = 50,
        wave_weight: float = 1.0,
        stft_weight: float = 1.0,
        mel_weight: float = 1.5,
        commitment_weight: float = 0.25,
        quantize_from: int = 0,
        decay: float = 0.99,
        dead_share: float = 0.1,
        adversarial: bool = False,
        adversarial_from: int = 0,
        adversarial_weight: float = 1.0,
        feature_weight: float = 2.0,
        adversarial_clip: float = 5.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ):
        super().__init__(optimizer, lr_scheduler)
        self.network = EncodecCodec(
            EncodecOptions(
                sample_rate,
                ratios,
                dim,
                filters,
                codebooks,
                bins,
                residual_layers,
                lstm_layers,
                kernel,
                last_kernel,
                residual_kernel,
                dilation,
                compress,
                causal,
                trim_right,
                pad_mode,
                conv_shortcut,
            )
        )
        self.sample_rate = sample_rate
        self.hop = self.network.hop
        self.codebooks = codebooks
        self.bins = bins
        self.codec = AudioStretches(sample_rate, segment_frames * self.hop)
        books = [layer.codebook for layer in self.network.network.quantizer.layers]
        for book in books:
            book.inited.zero_()
        self.learner = CodebookLearner(books, decay, dead_share)
        self.stft_loss = MultiResolutionStftLoss(log_weight=0.5)
        self.mel_loss = MelLoss(sample_rate, *MEL_RESOLUTIONS)
        self.validation_distance = LogSpectralDistance()
        if adversarial:
            self.use_adversary(
                AudioDiscriminator([MultiPeriodDiscriminator(), MultiResolutionDiscriminator()]),
                optimizer,
                lr_scheduler,
                start_step=adversarial_from,
                adversarial_weight=adversarial_weight,
                feature_weight=feature_weight,
                gradient_clip_val=adversarial_clip,
            )

    # A neural codec

    def encode(self, audio: Tensor) -> Tensor:
        """Audio [batch, samples] -> codes [batch, ceil(samples / hop), codebooks] int64."""
        return self.network.encode(audio)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [batch, frames, codebooks] -> audio [batch, frames * hop]."""
        return self.network.decode(codes)

    def latents(self, audio: Tensor) -> Tensor:
        """Audio [batch, samples] -> the sums of its code vectors, [batch, frames, dim]."""
        return self.network.latents(audio)

    def forward(self, audio: Tensor) -> Tensor:
        """What the codes keep of audio, [batch, samples] both."""
        return self.decode(self.encode(audio))[:, : audio.shape[1]]

    # Training

    def initialise(self) -> None:
        """Take the weights of `init_from`; codes are not made anew then.

        Raises:
            CheckpointError: It is no codec, or one of another size.
        """
        reference = self.hparams.init_from
        if reference is not None:
            found = load_codec(reference).network.state_dict()
            own = self.network.state_dict()
            if any(name not in own or own[name].shape != tensor.shape for name, tensor in found.items()):
                raise CheckpointError(f"init_from: {reference} is a codec of another size")
            self.network.load_state_dict(found)

    def _reconstruct(self, audio: Tensor, learn: bool) -> tuple[Tensor, Quantized]:
        quantized = self.learner(self.network.analyse(audio), learn)
        return self.network.synthesise(quantized.latents)[:, : audio.shape[1]], quantized

    def loss(self, audio: Tensor, reference: Tensor) -> Tensor:
        """Distance of [batch, samples] from what it should be; scalar."""
        options = self.hparams
        return (
            options.wave_weight * l1_loss(audio.float(), reference)
            + options.stft_weight * self.stft_loss(audio, reference)
            + options.mel_weight * self.mel_loss(audio, reference)
        )

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        reference = batch["audio"]
        size = len(reference)
        audio, quantized = self._reconstruct(reference, learn=self.global_step >= self.hparams.quantize_from)
        loss = self.loss(audio, reference) + self.hparams.commitment_weight * quantized.commitment
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        self.log("train/commitment", quantized.commitment, batch_size=size)
        self.log("train/perplexity", quantized.perplexity.mean(), batch_size=size)
        return self.adversarial_step(loss, audio[:, None], reference[:, None], batch_idx)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        reference = batch["audio"]
        size = len(reference)
        audio, quantized = self._reconstruct(reference, learn=False)
        self.validation_distance.update(audio, reference)
        self.log("val/loss", self.loss(audio, reference), prog_bar=True, batch_size=size, sync_dist=True)
        self.log("val/perplexity", quantized.perplexity.mean(), batch_size=size, sync_dist=True)
        self.log("val/lsd", self.validation_distance, batch_size=size)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> Renditions:
        audio = batch["audio"]
        return Renditions({PREDICTION: self(audio)}, audio, self.sample_rate, batch["notes"], names=batch.get("name"))

    # Files

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Files stay apart."""
        return list(examples)

    def duration_sec(self, example: Mapping[str, Any]) -> float:
        """Length of the output of one file (seconds)."""
        return example["samples"] / self.sample_rate

    def render(self, batch: Sequence[Mapping[str, Any]], noise: Noise) -> Iterator[tuple[int, Rendering]]:
        """Audio files through the codes, block by block; nothing is random.

        Yields:
            Position of a file in the batch, and the next chunk of its audio, [1, samples].
        """
        for position, example in enumerate(batch):
            left = example["samples"]
            for audio in self._blocks(Path(example["path"])):
                audio = audio[:left]
                left -= len(audio)
                if len(audio):
                    yield position, Rendering(audio=audio[None].cpu(), sample_rate=self.sample_rate)

    def _blocks(self, path: Path) -> Iterator[Tensor]:
        """Consecutive stretches [samples] of what is left of a file, mixed to mono."""
        shared = round(SHARED_SEC * self.sample_rate)
        margin = round(shared * 0.4)
        fade = CrossFade(shared - 2 * margin, margin)
        before = torch.zeros(0)
        for block in stream_audio(path, self.sample_rate, BLOCK_SEC):
            piece = torch.cat([before, block.mean(dim=0)])
            yield fade.push(self(piece[None].to(self.device))[0][:, None])[:, 0]
            before = piece[-shared:]
        yield fade.finish()[:, 0]

    # Published weights

    @classmethod
    def is_published(cls, path: Path) -> bool:
        """Whether a folder is an EnCodec as transformers saves it, such as facebook/encodec_32khz on the Hub."""
        return all((path / name).is_file() for name in cls.published_files) and _config(path)["model_type"] == "encodec"

    @classmethod
    def read_published(cls, path: Path) -> Published:
        """Read a compression checkpoint of audiocraft, or the folder of an EnCodec that transformers has saved.

        Of audiocraft: one that was exported, one of its trainer, or a state dict. Sizes and padding come from the
        configuration in the file. A state dict has none; it is taken for the published 32 kHz codec.

        Raises:
            CheckpointError: It is something else.
        """
        if path.is_dir():
            options, state = transformers_options(_config(path), str(path)), read_safetensors(path / TENSORS)
        else:
            options, state = _read_audiocraft(path)
        tensors = {f"network.network.{renamed(name)}": tensor for name, tensor in state.items()}
        return Published({**asdict(options), "ratios": list(options.ratios)}, tensors)


def _config(folder: Path) -> Mapping[str, Any]:
    """Content of the config.json of a folder; a model type of None if it is not of a model."""
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    return {"model_type": None, **content} if isinstance(content, Mapping) else {"model_type": None}


def _read_audiocraft(path: Path) -> tuple[EncodecOptions, Mapping[str, Tensor]]:
    """Sizes and tensors of a compression checkpoint; errors as in `PianoCodec.read_published`."""
    content = read_checkpoint(path, inert=True)
    if "pretrained" in content:
        raise CheckpointError(f"{path}: only names a model, {content['pretrained']!r}, and has no weights")
    state = content.get("best_state", content)
    state = state.get("model", state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(f"{path}: expected a compression checkpoint of audiocraft, with best_state and xp.cfg")
    config = content.get("xp.cfg")
    if config is None:
        logger.warning("%s: has no xp.cfg: taken for the 32 kHz codec, with zeros as padding", path)
        return EncodecOptions(), state
    if not isinstance(config, str):
        raise CheckpointError(f"{path}: its xp.cfg is no text: export it with audiocraft.utils.export first")
    return audiocraft_options(config, str(path)), state


def load_codec(reference: str, *, content: bytes | None = None) -> PianoCodec:
    """The codec that a model names, in evaluation mode.

    Args:
        reference: A checkpoint, as `midisynth.checkpoints.load_model` takes it.
        content: What `read_codec` returned, for a checkpoint that carries its codec; files are then not read.

    Raises:
        CheckpointError: It cannot be loaded, or is of another model.
    """
    model = load_model(reference) if content is None else unpacked(content, f"codec {reference}")
    if not isinstance(model, PianoCodec):
        raise CheckpointError(f"codec: {reference} is a {type(model).__name__}, not a PianoCodec")
    return model.requires_grad_(False)


def read_codec(reference: str) -> bytes | None:
    """What a checkpoint has to carry of the codec, without discriminators: None for one that comes with the package."""
    if weights.find(reference) is not None:
        return None
    codec = load_codec(reference)
    if not codec.hparams.adversarial:
        return packed(reference)
    alone = PianoCodec(**{**codec.hparams, "adversarial": False})
    alone.network.load_state_dict(codec.network.state_dict())
    with TemporaryDirectory() as folder:
        save_weights(alone, folder, half=False)
        return packed(folder)
