"""Wan's transformer and VAE, computed by the pack itself."""
