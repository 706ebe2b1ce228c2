"""Tiny checkpoints for tests, written once a session; treat the returned files as read-only.

Every function returns the same path each time it is called with the same arguments. A test that changes
files copies them first (`shutil.copytree`).
"""

import atexit
import functools
import inspect
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from lightx2v_pack.tools import make_tiny_checkpoint as tiny

SEED = 0
# Image to video: Wan2.1's with its image branch, that for a first and a last frame, and Wan2.2's.
I2V_SIZES = tiny.TinySizes(in_dim=36, image_dim=32)
FLF2V_SIZES = tiny.TinySizes(in_dim=36, image_dim=32, image_positions=18)
A14B_I2V_SIZES = tiny.TinySizes(in_dim=36)


Arguments, Made = ParamSpec("Arguments"), TypeVar("Made")


def once(make: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
    """Make each thing once, however its arguments are given: by place, by name, or left to their defaults."""
    signature, made = inspect.signature(make), functools.cache(make)

    @functools.wraps(make)
    def find(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Made:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        return made(*given.args, **given.kwargs)

    return find


@once
def scratch() -> Path:
    """Return a folder that is removed when the interpreter ends."""
    folder = Path(tempfile.mkdtemp(prefix="lightx2v-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@once
def transformer_weights(sizes: tiny.TinySizes = tiny.DEFAULT_SIZES) -> tiny.Tensors:
    """Return the float32 weights that every transformer file here is made from."""
    return tiny.make_transformer(sizes, SEED)


@once
def text_encoder_weights(sizes: tiny.TinySizes = tiny.DEFAULT_SIZES) -> tiny.Tensors:
    """Return the float32 weights, under Wan's names, that every text encoder file here is made from."""
    return tiny.make_text_encoder(sizes, SEED)


@once
def vae_weights(sizes: tiny.TinySizes = tiny.DEFAULT_SIZES) -> tiny.Tensors:
    """Return the float32 weights that every VAE file here is made from."""
    return tiny.make_vae(sizes, SEED)


@once
def spiece_model(sizes: tiny.TinySizes = tiny.DEFAULT_SIZES) -> bytes:
    """Return the trained SentencePiece model."""
    return tiny.train_tokenizer(sizes.vocab_size)


@once
def repository(sizes: tiny.TinySizes = tiny.DEFAULT_SIZES) -> Path:
    """Return a model repository with distill_fp8/, distill_int8/ and distill_models/."""
    return tiny.write_checkpoint(_folder("repository", sizes), sizes=sizes, seed=SEED)


@once
def distilled(precision: str, sizes: tiny.TinySizes = tiny.DEFAULT_SIZES) -> Path:
    """Return the repository's transformer: a folder of blocks in fp8 and int8, one file in bf16."""
    names = {"bf16": "distill_models/distill_model.safetensors", "fp8": "distill_fp8", "int8": "distill_int8"}
    return repository(sizes) / names[precision]


@once
def single_file(precision: str, prefix: str = "", sizes: tiny.TinySizes = tiny.DEFAULT_SIZES) -> Path:
    """Return the transformer as one file of fp8, int8 or bf16, alone in its folder."""
    path = _folder(f"single-{precision}-{prefix}", sizes) / tiny.SINGLE_FILE_NAMES[precision]
    return tiny.write_single_file(path, transformer_weights(sizes), precision, prefix=prefix)


@once
def expert_weights(noise: str, sizes: tiny.TinySizes = tiny.DEFAULT_SIZES) -> tiny.Tensors:
    """Return the float32 weights of one of the experts below: high | low."""
    return tiny.make_transformer(sizes, {"high": 11, "low": 12}[noise])


@once
def experts(precision: str = "fp8", sizes: tiny.TinySizes = tiny.DEFAULT_SIZES) -> Path:
    """Return a folder with the two experts of Wan2.2 in folders of blocks, high_noise_model/ and low_noise_model/."""
    folder = _folder(f"experts-{precision}", sizes)
    for noise in ("high", "low"):
        tiny.write_transformer_folder(folder / f"{noise}_noise_model", expert_weights(noise, sizes), precision)
    return folder


@once
def expert_files(precision: str = "fp8", sizes: tiny.TinySizes = tiny.DEFAULT_SIZES) -> Path:
    """Return a folder with the same as two files, wan2.2_t2v_A14b_{high,low}_noise_<precision>_4step.safetensors."""
    folder = _folder(f"expert-files-{precision}", sizes)
    for noise in ("high", "low"):
        path = folder / f"wan2.2_t2v_A14b_{noise}_noise_{precision}_4step.safetensors"
        tiny.write_single_file(path, expert_weights(noise, sizes), precision)
    return folder


@once
def comfy_transformer(prefix: str = "", has_marker: bool = True, sizes: tiny.TinySizes = tiny.DEFAULT_SIZES) -> Path:
    """Return the transformer as ComfyUI's scaled FP8 file, alone in its folder."""
    path = _folder(f"comfy-{prefix}{has_marker}", sizes) / tiny.COMFY_SINGLE_FILE_NAME
    return tiny.write_comfy_transformer(path, transformer_weights(sizes), prefix=prefix, has_marker=has_marker)


@once
def comfy_text_encoder(scaled_fp8: bool = False, sizes: tiny.TinySizes = tiny.DEFAULT_SIZES) -> Path:
    """Return ComfyUI's umt5_xxl_fp16 or umt5_xxl_fp8_e4m3fn_scaled file, alone in its folder."""
    name = "umt5_xxl_fp8_e4m3fn_scaled" if scaled_fp8 else "umt5_xxl_fp16"
    path = _folder(name, sizes) / f"{name}.safetensors"
    return tiny.write_comfy_text_encoder(path, text_encoder_weights(sizes), spiece_model(sizes), scaled_fp8=scaled_fp8)


@once
def text_encoder(precision: str, suffix: str = ".safetensors", sizes: tiny.TinySizes = tiny.DEFAULT_SIZES) -> Path:
    """Return the text encoder under Wan's names as fp8, int8 or bf16, alone in its folder."""
    path = _folder(f"umt5-{precision}", sizes) / f"models_t5_umt5-xxl-enc-{precision}{suffix}"
    return tiny.write_text_encoder(path, text_encoder_weights(sizes), precision)


@once
def vae(
    suffix: str = ".safetensors", dtype: torch.dtype = torch.float32, sizes: tiny.TinySizes = tiny.DEFAULT_SIZES
) -> Path:
    """Return the VAE as wan_2.1_vae.safetensors or, with suffix .pth, as Wan2.1_VAE.pth."""
    name = tiny.VAE_NAME if suffix == ".pth" else f"wan_2.1_vae{suffix}"
    return tiny.write_vae(_folder(f"vae-{dtype}", sizes) / name, vae_weights(sizes), dtype)


def _folder(name: str, sizes: tiny.TinySizes) -> Path:
    """Return a folder of its own for `name` at `sizes`."""
    folder = scratch() / f"{abs(hash(sizes)):x}" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
