"""Spectrogram diffusion: MIDI -> tokens -> log-mel spectrogram segments by diffusion -> audio by a vocoder.

"Multi-instrument Music Synthesis with Spectrogram Diffusion" (Hawthorne et al. 2022, arXiv 2206.05408), for the
weights of its authors and for those of the PyTorch re-implementation by Yu and others
(`music-spectrogram-diffusion-pytorch`).

    midisynth predict input.mid --model spectrogram_diffusion

Besides the usual files: `tokens.py`, `t5_tokens.py` and `miditok_codec.py`, the ways to write notes as tokens;
`rendering.py`, the spectrogram front end and the rendering of whole pieces; `autoregressive.py`, the paper's second
decoder as a model of its own (`spectrogram_ar`); `evaluation.py`, testing; `t5_checkpoint.py` and `t5x_files.py`, the
official weights.

What differs from the paper: `network.py` and `docs/models/spectrogram_diffusion.md` say.
"""

from midisynth.models.spectrogram_diffusion.autoregressive import SpectrogramAutoregressive
from midisynth.models.spectrogram_diffusion.codec import SpectrogramDiffusionCodec
from midisynth.models.spectrogram_diffusion.data import SpectrogramDiffusionData
from midisynth.models.spectrogram_diffusion.model import SpectrogramDiffusion

__all__ = [
    "SpectrogramAutoregressive",
    "SpectrogramDiffusion",
    "SpectrogramDiffusionCodec",
    "SpectrogramDiffusionData",
]
