"""Video decoders of both engines, loaded."""

import torch
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.wan.vae import PortableVideoDecoder


def loaded(decoder):
    """Load a decoder and return it."""
    decoder.load(Hooks())
    return decoder


def load_portable(path, device="cpu"):
    """Return the pack's own decoder of a file, loaded."""
    return loaded(PortableVideoDecoder(path, torch.device(device)))
