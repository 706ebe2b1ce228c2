"""diffusers' Wan2.1 autoencoder: what the pack's VAE is compared with."""

from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers


def reference_vae(weights):
    """Return diffusers' autoencoder with the weights put in by diffusers' own converter."""
    model = AutoencoderKLWan(base_dim=weights["decoder.head.0.gamma"].shape[0])
    model.load_state_dict(convert_wan_vae_to_diffusers(dict(weights)))
    return model.requires_grad_(False).eval()


def reference_means(model, frames):
    """Return the mean [16, T, h, w] of frames [F, H, W, 3] in [0, 1], of the model's float type."""
    video = (frames.permute(3, 0, 1, 2)[None] * 2 - 1).to(model.dtype)
    return model.encode(video).latent_dist.mean[0]
