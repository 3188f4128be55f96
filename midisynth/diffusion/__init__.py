"""Diffusion in continuous time 0 (data) to 1 (noise), free of networks: a sampler takes a denoising callable."""
