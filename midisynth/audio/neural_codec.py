"""Neural audio codecs: audio to a few discrete codes a frame, and back.

`NeuralCodec` is the interface, `EncodecCodec` the codec of this package: EnCodec (Défossez et al. 2022, arXiv
2210.13438) as transformers implements it. `AudiocraftCodec` puts audiocraft's own implementation in its place. That
package pins torch 2.1, so it cannot be a dependency; beside a current torch it is installed by

    pip install --no-deps audiocraft==1.3.0 av julius num2words docopt hydra-core
    pip install antlr4-python3-runtime==4.9.3 omegaconf flashy einops librosa torchmetrics transformers
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import log2, prod
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import yaml
from torch import Tensor, nn

# transformers imports torchaudio, which has to come through its door first.
from midisynth.audio import backend  # noqa: F401
from midisynth.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from transformers import EncodecModel

PadMode = Literal["constant", "reflect"]

#: Buffers of the convolutions of transformers' EnCodec that hold one number each.
_SIZES = {"stride", "kernel_size", "padding_total"}


@runtime_checkable
class NeuralCodec(Protocol):
    """Audio to codes and back; mono.

    Attributes:
        sample_rate: Of the audio (Hz).
        hop: Samples of a frame.
        codebooks: Codes of a frame.
        bins: Values that a code can have.
    """

    sample_rate: int
    hop: int
    codebooks: int
    bins: int

    def encode(self, audio: Tensor) -> Tensor:
        """[batch, samples] -> codes [batch, ceil(samples / hop), codebooks] int64.

        Networks that look ahead hear padding at the end of a short row: give rows of equal length.
        """
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [batch, frames, codebooks] -> audio [batch, frames * hop]."""
        ...

    def latents(self, audio: Tensor) -> Tensor:
        """[batch, samples] -> the sums of the code vectors, [batch, frames, dim]."""
        ...


@dataclass(frozen=True)
class EncodecOptions:
    """Sizes of an EnCodec; the defaults are those of the 32 kHz model that MusicGen uses.

    Attributes:
        sample_rate: Of the audio (Hz).
        ratios: Strides of the decoder, from the codes to the audio; their product is the hop.
        dim: Size of a code vector.
        filters: Channels at the audio's end; every stride doubles them.
        codebooks: Codes of a frame.
        bins: Values that a code can have, a power of 2.
        residual_layers: Residual blocks at every stride.
        lstm_layers: Layers of the LSTM between encoder and codes.
        kernel: Kernel of the first convolution.
        last_kernel: Kernel of the last convolution.
        residual_kernel: Kernel in residual blocks.
        dilation: Base of the dilations of residual blocks.
        compress: What residual blocks divide their channels by.
        causal: Look at the past alone.
        trim_right: Share of the padding that a causal decoder cuts off on the right.
        pad_mode: Of all convolutions.
        conv_shortcut: Residual blocks have a convolution as their shortcut.
    """

    sample_rate: int = 32000
    ratios: Sequence[int] = (8, 5, 4, 4)
    dim: int = 128
    filters: int = 64
    codebooks: int = 4
    bins: int = 2048
    residual_layers: int = 1
    lstm_layers: int = 2
    kernel: int = 7
    last_kernel: int = 7
    residual_kernel: int = 3
    dilation: int = 2
    compress: int = 2
    causal: bool = False
    trim_right: float = 1.0
    pad_mode: PadMode = "constant"
    conv_shortcut: bool = False


class EncodecCodec(nn.Module):
    """EnCodec as a `NeuralCodec`. A new one has codebooks of zeros, which gradients do not train.

    Args:
        options: Its sizes.

    Raises:
        UsageError: `bins` is no power of 2.
    """

    def __init__(self, options: EncodecOptions):
        super().__init__()
        # Importing transformers takes seconds; only who builds the network pays for it.
        from transformers import EncodecConfig, EncodecModel

        if options.bins < 2 or not log2(options.bins).is_integer():
            raise UsageError(f"bins is {options.bins}: EnCodec takes powers of 2, such as 256 or 1024")
        self.sample_rate = options.sample_rate
        self.hop = prod(options.ratios)
        self.codebooks = options.codebooks
        self.bins = options.bins
        frames_per_sec = -(-options.sample_rate // self.hop)
        config = EncodecConfig(
            # The number of codebooks follows from this by division and rounding down: half a codebook is safe.
            target_bandwidths=[(options.codebooks + 0.5) * log2(options.bins) * frames_per_sec / 1000],
            sampling_rate=options.sample_rate,
            audio_channels=1,
            normalize=False,
            hidden_size=options.dim,
            codebook_dim=options.dim,
            codebook_size=options.bins,
            num_filters=options.filters,
            num_residual_layers=options.residual_layers,
            upsampling_ratios=list(options.ratios),
            kernel_size=options.kernel,
            last_kernel_size=options.last_kernel,
            residual_kernel_size=options.residual_kernel,
            dilation_growth_rate=options.dilation,
            use_causal_conv=options.causal,
            pad_mode=options.pad_mode,
            compress=options.compress,
            num_lstm_layers=options.lstm_layers,
            trim_right_ratio=options.trim_right,
            use_conv_shortcut=options.conv_shortcut,
        )
        self.network: EncodecModel = EncodecModel(config)
        for module in self.network.modules():
            # As buffers, weight averaging rounds them down at decays such as 0.9, and every convolution waits for a GPU
            # to tell them.
            for name in _SIZES & module._buffers.keys():
                setattr(module, name, module._buffers.pop(name).detach())

    def analyse(self, audio: Tensor) -> Tensor:
        """[batch, samples] -> the vectors that are to be quantized, [batch, dim, frames]."""
        return self.network.encoder(audio[:, None])

    def synthesise(self, latents: Tensor) -> Tensor:
        """Vectors [batch, dim, frames] -> audio [batch, frames * hop]."""
        return self.network.decoder(latents)[:, 0]

    def encode(self, audio: Tensor) -> Tensor:
        """See `NeuralCodec.encode`."""
        return self.network.quantizer.encode(self.analyse(audio)).permute(1, 2, 0)

    def decode(self, codes: Tensor) -> Tensor:
        """See `NeuralCodec.decode`."""
        return self.synthesise(self.network.quantizer.decode(codes.permute(2, 0, 1)))

    def latents(self, audio: Tensor) -> Tensor:
        """See `NeuralCodec.latents`."""
        codes = self.encode(audio)
        return self.network.quantizer.decode(codes.permute(2, 0, 1)).transpose(1, 2)


# Published checkpoints


def transformers_options(config: Mapping[str, Any], context: str) -> EncodecOptions:
    """Sizes of an EnCodec that transformers has saved.

    Args:
        config: Content of its config.json.
        context: Names the file in errors.

    Raises:
        CheckpointError: It is of another model, or of one that is not mono or works in chunks.
    """
    from transformers import EncodecConfig

    if config.get("model_type") != "encodec":
        raise CheckpointError(f"{context}: is of a {config.get('model_type')!r}, not of an encodec")
    found = EncodecConfig(**{name: value for name, value in config.items() if name != "model_type"})
    usual = {"audio_channels": 1, "normalize": False, "chunk_length_s": None, "norm_type": "weight_norm"}
    for name, wanted in usual.items():
        if getattr(found, name) != wanted:
            raise CheckpointError(f"{context}: {name} is {getattr(found, name)!r}; only {wanted!r} is supported")
    return EncodecOptions(
        sample_rate=found.sampling_rate,
        ratios=list(found.upsampling_ratios),
        dim=found.hidden_size,
        filters=found.num_filters,
        codebooks=found.num_quantizers,
        bins=found.codebook_size,
        residual_layers=found.num_residual_layers,
        lstm_layers=found.num_lstm_layers,
        kernel=found.kernel_size,
        last_kernel=found.last_kernel_size,
        residual_kernel=found.residual_kernel_size,
        dilation=found.dilation_growth_rate,
        compress=found.compress,
        causal=found.use_causal_conv,
        trim_right=found.trim_right_ratio,
        pad_mode=found.pad_mode,
        conv_shortcut=found.use_conv_shortcut,
    )


_RENAMED = (
    (re.compile(r"^(encoder|decoder)\.model\."), r"\1.layers."),
    (re.compile(r"\.conv(?:tr)?\.conv(?:tr)?\."), ".conv."),
    (re.compile(r"\.weight_g$"), ".parametrizations.weight.original0"),
    (re.compile(r"\.weight_v$"), ".parametrizations.weight.original1"),
    (re.compile(r"^quantizer\.vq\.layers\.(\d+)\._codebook\."), r"quantizer.layers.\1.codebook."),
)


def renamed(name: str) -> str:
    """What transformers calls a tensor of audiocraft's EnCodec, or of a file that older versions of it wrote."""
    for pattern, new in _RENAMED:
        name = pattern.sub(new, name)
    return name


#: Values in audiocraft's configuration that transformers can follow; the first is what is meant where there is none.
_POSSIBLE = {
    "channels": (1,),
    "encodec.renormalize": (False,),
    "seanet.norm": ("weight_norm",),
    "seanet.activation": ("ELU",),
    "seanet.disable_norm_outer_blocks": (0,),
    "seanet.decoder.final_activation": (None,),
    "seanet.pad_mode": ("constant", "reflect"),
}


def audiocraft_options(config: str, context: str) -> EncodecOptions:
    """Sizes of the EnCodec that audiocraft has trained.

    Args:
        config: YAML, `xp.cfg` of its checkpoint.
        context: Names the file in errors.

    Raises:
        CheckpointError: It is no such configuration, or of a codec that transformers cannot be.
    """
    try:
        values = _Config(yaml.safe_load(config))
        read = values.__getitem__
        for name, possible in _POSSIBLE.items():
            if (found := values.get(name, possible[0])) not in possible:
                raise CheckpointError(f"{context}: {name} is {found!r}, which EnCodec of transformers cannot be")
        return EncodecOptions(
            sample_rate=int(read("sample_rate")),
            ratios=[int(ratio) for ratio in read("seanet.ratios")],
            dim=int(read("seanet.dimension")),
            filters=int(read("seanet.n_filters")),
            codebooks=int(read("rvq.n_q")),
            bins=int(read("rvq.bins")),
            residual_layers=int(read("seanet.n_residual_layers")),
            lstm_layers=int(read("seanet.lstm")),
            kernel=int(read("seanet.kernel_size")),
            last_kernel=int(read("seanet.last_kernel_size")),
            residual_kernel=int(read("seanet.residual_kernel_size")),
            dilation=int(read("seanet.dilation_base")),
            compress=int(read("seanet.compress")),
            causal=bool(read("encodec.causal")),
            trim_right=float(read("seanet.decoder.trim_right_ratio")),
            pad_mode=read("seanet.pad_mode"),
            conv_shortcut=not read("seanet.true_skip"),
        )
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        cause = " ".join(str(error).split())
        raise CheckpointError(f"{context}: its xp.cfg is not that of an EnCodec of audiocraft ({cause})") from error


class _Config:
    """A configuration of OmegaConf, whose values may be references such as `${encodec.causal}`."""

    def __init__(self, values: Any):
        self._values = values

    def __getitem__(self, name: str) -> Any:
        value = self._values
        for key in name.split("."):
            value = value[key]
        if isinstance(value, str) and (reference := re.fullmatch(r"\$\{([\w.]+)\}", value)):
            return self[reference[1]]
        return value

    def get(self, name: str, default: Any) -> Any:
        """A value that older versions of audiocraft do not write."""
        try:
            return self[name]
        except KeyError:
            return default


class AudiocraftCodec(nn.Module):
    """A codec of audiocraft as a `NeuralCodec`, for comparisons with what it was trained in.

    Args:
        config: YAML, `xp.cfg` of its checkpoint.
        state: State dict, under audiocraft's names.

    Raises:
        UsageError: audiocraft is not installed.
    """

    def __init__(self, config: str, state: Mapping[str, Tensor]):
        super().__init__()
        if importlib.util.find_spec("audiocraft") is None:
            raise UsageError(f"audiocraft is not installed; the head of {Path(__file__).name} tells how that is done")
        with _stand_ins():
            from audiocraft.models.builders import get_compression_model
            from omegaconf import OmegaConf

        self.network = get_compression_model(OmegaConf.create(config))
        self.network.load_state_dict(dict(state))
        self.network.eval()
        self.sample_rate = int(self.network.sample_rate)
        self.hop = round(self.network.sample_rate / self.network.frame_rate)
        self.codebooks = int(self.network.num_codebooks)
        self.bins = int(self.network.cardinality)

    def encode(self, audio: Tensor) -> Tensor:
        """See `NeuralCodec.encode`."""
        return self.network.encode(audio[:, None])[0].transpose(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        """See `NeuralCodec.decode`."""
        return self.network.decode(codes.transpose(1, 2))[:, 0]

    def latents(self, audio: Tensor) -> Tensor:
        """See `NeuralCodec.latents`."""
        return self.network.decode_latent(self.encode(audio).transpose(1, 2)).transpose(1, 2)


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Empty modules for what audiocraft imports for its language models, and a codec does not need."""
    absent = [name for name in ("xformers", "spacy") if importlib.util.find_spec(name) is None]
    modules = {name: ModuleType(name) for name in absent}
    if "xformers" in modules:
        modules["xformers.ops"] = modules["xformers"].ops = ModuleType("xformers.ops")
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
