"""The engine that runs anywhere: Wan's transformer, its VAE and TAE, and UMT5, from the same files."""
