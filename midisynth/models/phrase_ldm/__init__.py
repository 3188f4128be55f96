"""PhraseVAE and PhraseLDM: whole songs, bar by bar and track by track, from a latent diffusion model.

Music and tokens: `grid.py` puts notes on positions, `remiz.py` cuts them into bars of tracks, `texts.py` writes and
reads their tokens, which `vocabulary.py` numbers; `operations.py` transposes bars and reads chords, melodies and rolls
off them, `sections.py` reads plans of songs and `layouts.py` which instruments play in them, `arrangements.py` puts
their sections in another order. `codec.py` makes songs of all this, `units.py` cuts them into phrases, bars or
positions, and `rows.py` makes what the autoencoder learns from.

`network.py` is the autoencoder of phrases and `decoding.py` what turns its latents into tokens; `vae.py` and
`vae_data.py` are the model of it. `ldm.py` is the denoiser of songs, `conditions.py` what it can be told of them,
`sampling.py` its diffusion, `latents.py` what is prepared of songs, `composing.py` the way from a request to music, and
`instruments.py` what files play in place of the programs that it knows.
`vae_evaluation.py` and `evaluation.py` are what a test measures of both, the latter by `song_scores.py`.
"""

from midisynth.models.phrase_ldm.codec import PhraseCodec
from midisynth.models.phrase_ldm.data import PhraseLdmData
from midisynth.models.phrase_ldm.model import PhraseLdm
from midisynth.models.phrase_ldm.vae import PhraseVae
from midisynth.models.phrase_ldm.vae_data import PhraseVaeData

__all__ = ["PhraseCodec", "PhraseLdm", "PhraseLdmData", "PhraseVae", "PhraseVaeData"]
