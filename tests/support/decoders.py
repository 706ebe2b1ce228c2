"""Video decoders of both engines, loaded."""

import torch
from lightx2v_pack.engine.checkpoints.companions import resolve_vae
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.wan.vae import WanVideoDecoder


def loaded(decoder):
    """Load a decoder and return it."""
    decoder.load(Hooks())
    return decoder


def load_decoder(path, device="cpu"):
    """Return the pack's own decoder of a file, loaded."""
    return loaded(WanVideoDecoder(resolve_vae(path), torch.device(device)))
