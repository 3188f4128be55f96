"""A plucked string whose harmonics are learned: MIDI in, audio out.

    midisynth fit --config pluck/tiny
    midisynth predict tune.mid --model pluck --ckpt_path last.ckpt

A small network maps pitch and velocity of a note to the level and the decay rate of each of its harmonics; additive
synthesis turns these into sound (`network.py`). It is trained on recordings, here on strings simulated by the
algorithm of Karplus and Strong (`corpus.py`). There is no `checkpoint.py`: nobody has published weights of this model.
"""

from midisynth_pluck.corpus import KarplusStrong
from midisynth_pluck.data import PluckData
from midisynth_pluck.model import Pluck

__all__ = ["KarplusStrong", "Pluck", "PluckData"]
