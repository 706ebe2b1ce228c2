"""The engine that runs anywhere: diffusers' transformer and VAE, transformers' UMT5, from the same checkpoints."""
