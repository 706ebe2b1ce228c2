"""The algorithms on tensors: encode, denoise, decode. Models arrive as arguments."""
