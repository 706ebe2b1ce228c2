"""Video decoders of both engines and video encoders, loaded."""

import torch
from lightx2v_pack.engine.checkpoints.companions import resolve_vae
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.wan.vae import WanVideoDecoder, WanVideoEncoder


def loaded(part):
    """Load a decoder or an encoder and return it."""
    part.load(Hooks())
    return part


def load_decoder(path, device="cpu"):
    """Return the pack's own decoder of a file, loaded."""
    return loaded(WanVideoDecoder(resolve_vae(path), torch.device(device)))


def in_one_buffer(frames):
    """Yield frames one by one, each over the one before, as they arrive on a GPU."""
    buffer = torch.empty_like(frames[0])
    for frame in frames:
        yield buffer.copy_(frame)


def load_encoder(path, device="cpu"):
    """Return the pack's own encoder of a file, loaded."""
    return loaded(WanVideoEncoder(resolve_vae(path), torch.device(device)))
