"""Corpus readers: what is on disk, splits and pairs. They know no model."""
