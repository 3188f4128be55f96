"""DExter: from a score to an expressive performance.

    midisynth predict score.musicxml --model dexter

"DExter: Learning and Controlling Performance Expression with Diffusion Models" (Zhang et al. 2024, Applied Sciences
14(15) 6543).

What a network reads and writes: `expression.py` turns performances into five numbers a note and back, with
`pedalling.py` and `playing.py` (what can be played, and MIDI), `published_codec.py` as the original did. `features.py`
is what the page says of a note, with `sounding.py` (what sounds together); `midlevel.py` the seven perceptual features,
with `descriptors.py` (from notes alone). `codec.py` puts them together.

Networks: `network.py` is the DiffWave and what both denoisers share, `unet.py` the U-Net, `losses.py` what they
minimise, `predictor.py` what mid-level features a score lets expect, `levels.py` what tempo and loudness.

Training and use: `validation.py`; `evaluation.py`, whole pieces for `midisynth test`; `rendering.py` plays scores, in
`windows.py`; `plots.py` draws. Of the original: `published_sampling.py`, its samplers; `published_data.py`, its data;
`archives.py`, which reads what it prepared.
"""

from midisynth.models.dexter.archives import DExterArchives
from midisynth.models.dexter.codec import DExterCodec
from midisynth.models.dexter.data import DExterData
from midisynth.models.dexter.model import DExter

__all__ = ["DExter", "DExterArchives", "DExterCodec", "DExterData"]
