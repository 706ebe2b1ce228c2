"""Checkpoints for both sides, written once a call below one folder: tiny, wide, big and broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from lightx2v_pack.tools import make_tiny_checkpoint as tiny
from safetensors.torch import save, save_file

BLOCK_PRECISIONS = ("fp8", "int8")
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.int8: "I8"}
_SMALL = tiny.TinySizes(dim=128, ffn_dim=128, text_dim=32)


def write_tiny(folder: Path) -> None:
    """Write every layout of the three models at sizes for a CPU."""
    tiny.write_checkpoint(folder / "lightx2v" / "tiny")
    transformer, text_encoder, spiece = tiny.make_transformer(), tiny.make_text_encoder(), tiny.train_tokenizer(400)
    singles = folder / "diffusion_models"
    for precision, name in tiny.SINGLE_FILE_NAMES.items():
        tiny.write_single_file(singles / name, transformer, precision)
    tiny.write_single_file(singles / "prefixed.safetensors", transformer, "fp8", prefix="model.diffusion_model.")
    tiny.write_comfy_transformer(singles / tiny.COMFY_SINGLE_FILE_NAME, transformer)
    texts = folder / "text_encoders"
    tiny.write_tokenizer(texts / "google" / "umt5-xxl", spiece)
    for precision in ("fp8", "int8", "bf16"):
        tiny.write_text_encoder(texts / f"umt5-{precision}.pth", text_encoder, precision)
    tiny.write_comfy_text_encoder(texts / "umt5_fp16.safetensors", text_encoder, spiece)
    tiny.write_comfy_text_encoder(texts / "umt5_fp8_scaled.safetensors", text_encoder, spiece, scaled_fp8=True)
    write_vaes(folder / "vae", vae_dim=8, tae_widths=(32, 16, 8, 8))


def write_vaes(folder: Path, *, vae_dim: int, tae_widths: tuple[int, int, int, int]) -> None:
    """Write Wan's VAE, a LightVAE of half its width, and both tiny autoencoders."""
    for name, dim in (("wan_2.1_vae", vae_dim), ("lightvaew2_1", vae_dim // 2)):
        tiny.write_vae(folder / f"{name}.safetensors", tiny.make_vae(tiny.TinySizes(vae_dim=dim)), torch.bfloat16)
    for name in ("taew2_1", "lighttaew2_1"):
        save_file(make_tae(tae_widths), folder / f"{name}.safetensors")


def make_tae(widths: tuple[int, int, int, int], seed: int = 3) -> tiny.Tensors:
    """Return the decoder of a tiny autoencoder. Source of the layers: madebyollin/taehv, taehv.py, class TAEHV."""
    shapes: dict[str, tuple[int, ...]] = {"1": (widths[0], 16, 3, 3), "22": (3, widths[3], 3, 3)}
    stages = (((3, 4, 5), 7, 1), ((9, 10, 11), 13, 2), ((15, 16, 17), 19, 2))
    biased = ["1", "22"]
    for (blocks, grow, frames), width, following in zip(stages, widths, widths[1:], strict=False):
        for block in blocks:
            shapes |= {f"{block}.conv.{layer}": (width, width * (2 - layer // 2 % 2), 3, 3) for layer in (0, 2)}
            shapes |= {f"{block}.conv.{layer}": (width, width, 3, 3) for layer in (2, 4)}
            biased += [f"{block}.conv.{layer}" for layer in (0, 2, 4)]
        shapes |= {f"{grow}.conv": (frames * width, width, 1, 1), f"{grow + 1}": (following, width, 3, 3)}
    random = torch.Generator().manual_seed(seed)
    tensors = {
        f"decoder.{name}.weight": torch.randn(shape, generator=random) * 1.15 / max(shape[1] * 9, 50) ** 0.5
        for name, shape in shapes.items()
    }
    return tensors | {f"decoder.{name}.bias": torch.full((shapes[name][0],), 0.1) for name in biased}


def write_wide(folder: Path, *, dim: int, ffn_dim: int, layers: int, text_dim: int, vae_dim: int, device: str) -> None:
    """Write a transformer of few but wide blocks in each precision, and VAEs.

    Block i has the first block's rows moved by i, so that a wrong order is noticed.
    """
    sizes = tiny.TinySizes(dim=dim, ffn_dim=ffn_dim, num_layers=1, text_dim=text_dim)
    weights = {name: tensor.to(device) for name, tensor in tiny.make_transformer(sizes).items()}
    for precision, name in tiny.PRECISION_FOLDERS.items():
        target = folder / "lightx2v" / "wide" / name
        stored = tiny.quantise_model(weights, precision, torch.float32)
        groups = {"non_block": {name: tensor for name, tensor in stored.items() if not name.startswith("blocks.")}}
        for index in range(layers):
            groups[f"block_{index}"] = {
                name.replace("blocks.0.", f"blocks.{index}."): _roll(tensor, index)
                for name, tensor in stored.items()
                if name.startswith("blocks.")
            }
        target.mkdir(parents=True)
        for group, tensors in groups.items():
            save_file(tensors, target / f"{group}.safetensors")
    write_vaes(folder / "vae", vae_dim=vae_dim, tae_widths=(vae_dim, vae_dim // 2, vae_dim // 4, vae_dim // 4))


def _roll(tensor: torch.Tensor, index: int) -> torch.Tensor:
    # Not every device rolls 8-bit floats.
    bits = tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor
    return bits.roll(index, 0).view(tensor.dtype)


def write_big(folder: Path) -> None:
    """Write files of the published sizes that hold headers and no weights; they take no room on the drive."""
    with mock.patch.object(torch, "randn", lambda shape, generator: torch.empty(shape, device="meta")):
        weights = tiny.make_transformer(tiny.TinySizes(dim=5120, ffn_dim=13824, num_layers=40, text_dim=4096))
    home = folder / "lightx2v" / "wan"
    for precision, name in tiny.PRECISION_FOLDERS.items():
        stored = tiny.quantise_model(weights, precision, torch.float32)
        write_header(home / name / "transformer.safetensors", stored)
        tiny.write_vae(home / name / tiny.VAE_NAME, tiny.make_vae())
        num_bytes = {"fp8": 6_731, "int8": 6_731, "bf16": 11_362}[precision] * 10**6
        with (home / name / tiny.TEXT_ENCODER_NAME.format(precision=precision)).open("wb") as file:
            file.truncate(num_bytes)
    tiny.write_tokenizer(home / tiny.TOKENIZER_FOLDER, tiny.train_tokenizer(400))
    write_header(folder / "lightx2v" / "alone.safetensors", tiny.quantise_model(weights, "fp8", torch.bfloat16))


def write_header(path: Path, tensors: tiny.Tensors) -> None:
    """Write a safetensors file whose weights are a hole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def write_broken(folder: Path) -> None:
    """Write files and folders that cannot be used, each for a reason of its own, and one that can, to try them with."""
    tiny.write_checkpoint(folder / "lightx2v" / "good", sizes=_SMALL, precisions=("fp8",))
    transformer, text_encoder, vae = (
        make(_SMALL) for make in (tiny.make_transformer, tiny.make_text_encoder, tiny.make_vae)
    )
    int8, fp8 = (tiny.quantise_model(transformer, precision, torch.bfloat16) for precision in ("int8", "fp8"))
    one = torch.zeros(1)
    anything: dict[str, tiny.Tensors] = {
        "no_tensors": {},
        "unknown": {"what.weight": one},
        "lora": {"blocks.0.self_attn.q.lora_down.weight": one},
        "diffusers": {"condition_embedder.time_proj.weight": one, "blocks.0.attn1.to_q.weight": one},
        "clip_model": {"text_model.encoder.layers.0.mlp.weight": one},
        "flux": {"double_blocks.0.img_mod.weight": one},
        "language": {"model.layers.0.self_attn.q_proj.weight": one},
        "image_vae": {"decoder.mid.block_1.weight": one},
        "diffusers_vae": {"decoder.mid_block.weight": one},
        "taesd": {"decoder.1.weight": torch.zeros(64, 4, 3, 3)},
    }
    change = {
        "missing_tensor": _without(transformer, "head.head.bias"),
        "missing_weight": _without(transformer, "blocks.1.ffn.0.weight"),
        "gap": {name.replace("blocks.1.", "blocks.2."): tensor for name, tensor in transformer.items()},
        "extra": transformer | {"blocks.0.more.weight": one},
        "shape": transformer | {"blocks.1.ffn.2.bias": torch.zeros(64)},
        "i2v": transformer | {"patch_embedding.weight": torch.zeros(128, 36, 1, 2, 2)},
        "ti2v": transformer | {"patch_embedding.weight": torch.zeros(128, 48, 1, 2, 2)},
        "channels": transformer | {"patch_embedding.weight": torch.zeros(128, 20, 1, 2, 2)},
        "vace": transformer | {"vace_blocks.0.weight": one},
        "img_emb": transformer | {"img_emb.proj.0.weight": one},
        "camera": transformer | {"control_adapter.conv.weight": one},
        "s2v": transformer | {"casual_audio_encoder.weights": one},
        "animate": transformer | {"face_adapter.fuser.weight": one},
        "nvfp4": transformer | {"blocks.0.ffn.0.weight_scale_2": one},
        "float64": transformer | {"blocks.0.ffn.0.weight": torch.zeros(128, 128, dtype=torch.float64)},
        "int8_no_scales": {name: tensor for name, tensor in int8.items() if not name.endswith("_scale")},
        "fp8_one_scale_less": _without(fp8, "blocks.1.ffn.0.weight_scale"),
        "scale_shape": fp8 | {"blocks.1.ffn.0.weight_scale": torch.ones(3, 1)},
        "mixed": int8 | {"blocks.1.ffn.0.weight": fp8["blocks.1.ffn.0.weight"]},
    }
    for name, tensors in (anything | change | {"text": text_encoder, "picture": vae}).items():
        _save(tensors, folder / "lightx2v" / f"{name}.safetensors")
    texts = {
        "missing": _without(text_encoder, "norm.weight"),
        "v11": _without(text_encoder, "blocks.1.pos_embedding.embedding.weight"),
        "gap": {name.replace("blocks.1.", "blocks.2."): tensor for name, tensor in text_encoder.items()},
        "heads": text_encoder | {f"blocks.{i}.pos_embedding.embedding.weight": torch.zeros(32, 3) for i in range(2)},
        "int8_no_scales": _without(tiny.quantise_model(text_encoder, "int8", torch.bfloat16), "_scale"),
        "wide": tiny.make_text_encoder(tiny.TinySizes(text_dim=48)),
    }
    for name, tensors in (anything | texts | {"wan": transformer, "picture": vae}).items():
        _save(tensors, folder / "text_encoders" / f"{name}.safetensors")
    vaes = {
        "missing": _without(vae, "decoder.conv1.bias"),
        "missing_head": _without(vae, "decoder.head.2.weight"),
        "wan22": vae
        | {"conv2.weight": torch.zeros(48, 48, 1, 1, 1), "decoder.conv1.weight": torch.zeros(32, 48, 3, 3, 3)},
        "widths": vae | {"decoder.upsamples.0.residual.6.weight": torch.zeros(12, 12, 3, 3, 3)},
        "int8": vae | {"decoder.conv1.bias": torch.zeros(32, dtype=torch.int8)},
        "tae_channels": {
            name: t[:, :8] if name == "decoder.1.weight" else t for name, t in make_tae((8, 8, 8, 8)).items()
        },
        "tae_missing": _without(make_tae((8, 8, 8, 8)), "decoder.9.conv.2.bias"),
    }
    for name, tensors in (anything | vaes | {"wan": transformer, "text": text_encoder}).items():
        _save(tensors, folder / "vae" / f"{name}.safetensors")
    _write_raw(folder, save({name: tensor.contiguous() for name, tensor in vae.items()}))
    _write_folders(folder / "lightx2v", fp8)


def _write_raw(folder: Path, good: bytes) -> None:
    """Write files that are no safetensors, or not whole."""
    size = int.from_bytes(good[:8], "little")
    raw = {
        "zero_bytes": b"",
        "short": b"123",
        "web_page": b"<!DOCTYPE html>" + bytes(100),
        "gguf": b"GGUF" + bytes(100),
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "zip": b"PK\x03\x04" + bytes(100),
        "cut": good[:-100],
        "cut_header": good[:200],
        "longer": good + b"more",
        "bad_json": good[:8] + b"{" * 50 + good[58:],
        "no_header": (2).to_bytes(8, "little") + b"[]",
        "wrong_offsets": good[:8] + good[8 : 8 + size].replace(b'"F32"', b'"F16"') + good[8 + size :],
    }
    for name, data in raw.items():
        for place in ("lightx2v", "text_encoders", "vae"):
            (folder / place / f"raw_{name}.safetensors").write_bytes(data)
    for place in ("text_encoders", "vae"):
        (folder / place / "raw_cut.pth").write_bytes(b"PK\x03\x04" + bytes(100))
        torch.save([1, 2], folder / place / "raw_list.pth")
        torch.save({"state": {"a": torch.zeros(1)}}, folder / place / "raw_nested.pth")


def _write_folders(folder: Path, fp8: tiny.Tensors) -> None:
    """Write folders of blocks and shards that are not whole, and repositories that lack a part."""

    def blocks(name: str, spoil: Callable[[Path], object]) -> None:
        tiny.write_blocks(folder / name, fp8)
        spoil(folder / name)

    blocks("no_rest", lambda path: (path / "non_block.safetensors").unlink())
    blocks("no_first_block", lambda path: (path / "block_0.safetensors").unlink())
    blocks("nothing_else", lambda path: None)
    blocks("twice", lambda path: shutil.copy(path / "block_0.safetensors", path / "block_7.safetensors"))
    _save(fp8, folder / "shards" / "model-00001-of-00003.safetensors")
    _save(fp8, folder / "bad_index" / "model-00001-of-00002.safetensors")
    (folder / "bad_index" / "model.safetensors.index.json").write_text("[]")
    _save(fp8, folder / "two_models" / "a.safetensors")
    _save(fp8, folder / "two_models" / "b.safetensors")
    for part in ("Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-fp8.pth", "google"):
        target = folder / f"without_{part.partition('.')[0].partition('_')[0].lower()}"
        shutil.copytree(folder / "good", target)
        found = target / "distill_fp8" / part
        shutil.rmtree(found) if found.is_dir() else found.unlink()


def _without(tensors: tiny.Tensors, ending: str) -> tiny.Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(ending)}


def _save(tensors: tiny.Tensors, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
