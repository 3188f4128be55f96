"""Vocoder: log-mel spectrogram -> audio at 16, 32 or 44.1 kHz in one pass, on a CPU many times faster than it plays.

    midisynth predict input.wav --model vocoder

A ConvNeXt backbone and inverse-STFT head as in Vocos (Siuzdak 2023, arXiv 2306.00814), and in place of that head an
oscillator bank for one piano. `network.py` explains both; `partials.py` knows where the partials of a piano lie,
`consistency.py` makes the audio agree with the spectrogram, `evaluation.py` compares with Griffin-Lim and other
vocoders. There is no `checkpoint.py`: the weights that Vocos publishes are for other spectrograms (24 kHz, 100 bins),
and of oscillators for this one there are none.
"""

from midisynth.models.vocoder.codec import VocoderCodec
from midisynth.models.vocoder.data import VocoderData
from midisynth.models.vocoder.model import NeuralVocoder

__all__ = ["NeuralVocoder", "VocoderCodec", "VocoderData"]
