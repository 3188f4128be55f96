"""Note arrays, MIDI files, scores, pedal, rolls and segments. Imports NumPy; never torch."""
