"""midi2wave: MIDI -> audio, one sample after the other, by a WaveNet that is conditioned on the piano roll.

The WaveNet autoencoder of MAESTRO (Hawthorne et al. 2019, arXiv 1810.12247, section 5), in the implementation of
G. Plunkett (`midi2wave`, 2019) with its faults repaired.

    midisynth fit --config midi2wave/demo
    midisynth predict input.mid --ckpt_path my.ckpt

Besides the usual files: `options.py`, what contradicts itself; `pieces.py`, files and stretches of notes as rolls
(`codec.py`); `network.py` with `layers.py`, `heads.py`, `bottleneck.py` and `conditioning.py`; `scheduled.py` and
`aggressive.py`, against posterior collapse; `generation.py` and `engines/`, the loop over samples; `rendering.py`,
files through it; `evaluation.py`, testing; `checkpoint.py`, `published.py` and `nv_wavenet.py`, weights of others.
"""

from midisynth.models.midi2wave.data import Midi2WaveData
from midisynth.models.midi2wave.model import Midi2Wave
from midisynth.models.midi2wave.pieces import PieceCodec

__all__ = ["Midi2Wave", "Midi2WaveData", "PieceCodec"]
