"""Audio: the torchaudio door, mel features, reading and writing files, and the vocoder interface."""
