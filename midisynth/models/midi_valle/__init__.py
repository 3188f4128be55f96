"""MIDI-VALLE: plays a performance in the sound of a prompt, three seconds of a recording with its notes.

`neural_codec_model.py`, `neural_codec_data.py` and `codebooks.py` are the neural codec and its training. `codec.py`
turns notes into rows, `segments.py` cuts performances, `prompts.py` reads prompts, `joining.py` puts the audio of
segments together.

`network.py` has the two language models, with `decoders.py`, `layers.py` and `losses.py`; `decoding.py` has what they
write, with `frames.py`; `checkpoint.py` reads published ones.

`model.py` trains them, on what `pieces.py` prepares, `examples.py` cuts and `data.py` batches; `rendering.py` plays
whole performances, `evaluation.py` the stretches of a test. `codecs.py` finds neural codecs by name, `options.py` says
which options fit together.
"""

from midisynth.models.midi_valle.codec import NoteRows
from midisynth.models.midi_valle.data import MidiValleData
from midisynth.models.midi_valle.model import MidiValle
from midisynth.models.midi_valle.neural_codec_data import PianoCodecData
from midisynth.models.midi_valle.neural_codec_model import PianoCodec

__all__ = ["MidiValle", "MidiValleData", "NoteRows", "PianoCodec", "PianoCodecData"]
