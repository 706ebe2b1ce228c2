"""LoRAs: what the names in their files mean, a stack of them as tensors, where these rest, and how they are added."""
