"""Building blocks of networks that several models share. Tensors in, tensors out; no Lightning, no files."""
