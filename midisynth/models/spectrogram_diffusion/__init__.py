"""Spectrogram diffusion: MIDI -> tokens -> log-mel spectrogram segments by diffusion -> audio by a vocoder.

"Multi-instrument Music Synthesis with Spectrogram Diffusion" (Hawthorne et al. 2022, arXiv 2206.05408), after the
PyTorch re-implementation by Yu and others (`music-spectrogram-diffusion-pytorch`), without its context encoder and its
autoregressive decoder.

    midisynth predict input.mid --model spectrogram_diffusion

What differs from the paper: `network.py` and `docs/models/spectrogram_diffusion.md` say.
"""

from midisynth.models.spectrogram_diffusion.codec import SpectrogramDiffusionCodec
from midisynth.models.spectrogram_diffusion.data import SpectrogramDiffusionData
from midisynth.models.spectrogram_diffusion.model import SpectrogramDiffusion

__all__ = ["SpectrogramDiffusion", "SpectrogramDiffusionCodec", "SpectrogramDiffusionData"]
