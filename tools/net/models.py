"""Checkpoints for both sides, written once a call below one folder: tiny, wide, big and broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save, save_file

from .. import make_tiny_checkpoint as tiny

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.int8: "I8"}
_ONE = torch.zeros(1)
# One tensor of another model each.
_ALIEN = {
    "unknown": "what.weight",
    "lora": "blocks.0.self_attn.q.lora_down.weight",
    "diffusers": "condition_embedder.time_proj.weight",
    "clip_model": "text_model.encoder.layers.0.mlp.weight",
    "flux": "double_blocks.0.img_mod.weight",
    "language": "model.layers.0.self_attn.q_proj.weight",
    "image_vae": "decoder.mid.block_1.weight",
    "diffusers_vae": "decoder.mid_block.weight",
    "taesd": "decoder.1.weight",
}
# One tensor more than Wan2.1's text-to-video transformer has.
_VARIANTS = {
    "vace": "vace_blocks.0.weight",
    "img_emb": "img_emb.proj.0.weight",
    "camera": "control_adapter.conv.weight",
    "s2v": "casual_audio_encoder.weights",
    "animate": "face_adapter.fuser.weight",
    "nvfp4": "blocks.0.ffn.0.weight_scale_2",
    "extra": "blocks.0.more.weight",
}


def write_tiny(folder: Path) -> None:
    """Write every layout of the three models at sizes for a CPU."""
    tiny.write_checkpoint(folder / "lightx2v" / "tiny")
    transformer = tiny.make_transformer()
    for precision, name in tiny.SINGLE_FILE_NAMES.items():
        tiny.write_single_file(folder / "diffusion_models" / name, transformer, precision)
    prefixed = folder / "diffusion_models" / "prefixed.safetensors"
    tiny.write_single_file(prefixed, transformer, "fp8", prefix="model.diffusion_model.")
    tiny.write_comfy_transformer(folder / "diffusion_models" / tiny.COMFY_SINGLE_FILE_NAME, transformer)
    _write_text_encoders(folder / "text_encoders")
    _write_vaes(folder / "vae", 8)


def write_wide(folder: Path, *, dim: int, ffn_dim: int, layers: int, text_dim: int, vae_dim: int, device: str) -> None:
    """Write a transformer of few but wide blocks in each precision, and VAEs.

    Block i has the first block's rows moved by i, so that a wrong order is noticed.
    """
    sizes = tiny.TinySizes(dim=dim, ffn_dim=ffn_dim, num_layers=1, text_dim=text_dim)
    weights = {name: tensor.to(device) for name, tensor in tiny.make_transformer(sizes).items()}
    for precision, name in tiny.PRECISION_FOLDERS.items():
        target = folder / "lightx2v" / "wide" / name
        stored = tiny.quantize_model(weights, precision, torch.bfloat16)
        block = {name: tensor for name, tensor in stored.items() if name.startswith("blocks.")}
        _save({name: tensor for name, tensor in stored.items() if name not in block}, target / "non_block.safetensors")
        for index in range(layers):
            moved = {name.replace(".0.", f".{index}.", 1): _roll(tensor, index) for name, tensor in block.items()}
            _save(moved, target / f"block_{index}.safetensors")
    _write_text_encoders(folder / "text_encoders")
    _write_vaes(folder / "vae", vae_dim)


def write_big(folder: Path) -> None:
    """Write files of the published sizes that hold headers and no weights; they take no room on the drive."""
    with mock.patch.object(torch, "randn", lambda shape, generator: torch.empty(shape, device="meta")):
        weights = tiny.make_transformer(tiny.TinySizes(dim=5120, ffn_dim=13824, num_layers=1, text_dim=4096))
    home = folder / "lightx2v" / "wan"
    for precision, name in tiny.PRECISION_FOLDERS.items():
        _save_header(tiny.quantize_model(weights, precision, torch.float32), home / name / "transformer.safetensors")
        tiny.write_vae(home / name / tiny.VAE_NAME, tiny.make_vae())
        with (home / name / tiny.TEXT_ENCODER_NAME.format(precision=precision)).open("wb") as file:
            file.truncate({"bf16": 11_362, "fp8": 6_731, "int8": 6_731}[precision] * 10**6)
    tiny.write_tokenizer(home / tiny.TOKENIZER_FOLDER, tiny.train_tokenizer(400))
    _save_header(tiny.quantize_model(weights, "fp8", torch.bfloat16), folder / "lightx2v" / "alone.safetensors")


def write_broken(folder: Path) -> None:
    """Write files and folders that cannot be used, each for a reason of its own, and a checkpoint that can."""
    sizes = tiny.TinySizes(dim=128, ffn_dim=128, text_dim=32)
    tiny.write_checkpoint(folder / "lightx2v" / "good", sizes=sizes, precisions=("fp8",))
    transformer, text, vae = tiny.make_transformer(sizes), tiny.make_text_encoder(sizes), tiny.make_vae(sizes)
    int8, fp8 = (tiny.quantize_model(transformer, precision, torch.bfloat16) for precision in ("int8", "fp8"))
    alien = {name: {tensor: _ONE} for name, tensor in _ALIEN.items()} | {"no_tensors": {}}
    alien |= {"a_transformer": transformer, "a_text": text, "a_picture": vae}
    patches = {"i2v": 36, "ti2v": 48, "channels": 20}
    ffn = "blocks.1.ffn.0.weight"
    transformers = {
        **{name: transformer | {tensor: _ONE} for name, tensor in _VARIANTS.items()},
        **{name: transformer | {"patch_embedding.weight": torch.zeros(128, n, 1, 2, 2)} for name, n in patches.items()},
        "missing_tensor": _without(transformer, "head.head.bias"),
        "missing_weight": _without(transformer, ffn),
        "gap": _renamed(transformer, "blocks.1.", "blocks.2."),
        "shape": transformer | {"blocks.1.ffn.2.bias": torch.zeros(64)},
        "float64": transformer | {ffn: torch.zeros(128, 128, dtype=torch.float64)},
        "int8_no_scales": _without(int8, "_scale"),
        "fp8_one_scale_less": _without(fp8, f"{ffn}_scale"),
        "scale_shape": fp8 | {f"{ffn}_scale": torch.ones(3, 1)},
        "mixed": int8 | {ffn: fp8[ffn]},
    }
    texts = {
        "missing": _without(text, "norm.weight"),
        "v11": _without(text, "blocks.1.pos_embedding.embedding.weight"),
        "gap": _renamed(text, "blocks.1.", "blocks.2."),
        "heads": text | {f"blocks.{i}.pos_embedding.embedding.weight": torch.zeros(32, 3) for i in range(2)},
        "int8_no_scales": _without(tiny.quantize_model(text, "int8", torch.bfloat16), "_scale"),
    }
    wan22 = {"conv2.weight": torch.zeros(48, 48, 1, 1, 1), "decoder.conv1.weight": torch.zeros(32, 48, 3, 3, 3)}
    tae = _make_tae((8, 8, 8, 8))
    vaes = {
        "missing": _without(vae, "decoder.conv1.bias"),
        "missing_head": _without(vae, "decoder.head.2.weight"),
        "wan22": vae | wan22,
        "widths": vae | {"decoder.upsamples.0.residual.6.weight": torch.zeros(12, 12, 3, 3, 3)},
        "int8": vae | {"decoder.conv1.bias": torch.zeros(32, dtype=torch.int8)},
        "tae_channels": tae | {"decoder.1.weight": torch.zeros(8, 8, 3, 3)},
        "tae_missing": _without(tae, "decoder.9.conv.2.bias"),
    }
    for place, files in (("lightx2v", transformers), ("text_encoders", texts), ("vae", vaes)):
        for name, tensors in (alien | files).items():
            _save(tensors, folder / place / f"{name}.safetensors")
        _write_raw(folder / place, save(vae))
    _write_folders(folder / "lightx2v", fp8)


def _write_raw(folder: Path, good: bytes) -> None:
    """Write files that are no safetensors, or not whole."""
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
        "wrong_offsets": good.replace(b'"F32"', b'"F16"', 1),
    }
    for name, data in raw.items():
        (folder / f"raw_{name}.safetensors").write_bytes(data)
    (folder / "raw_cut.pth").write_bytes(raw["zip"])
    torch.save([1, 2], folder / "raw_list.pth")
    torch.save({"state": {"a": _ONE}}, folder / "raw_nested.pth")


def _write_folders(folder: Path, fp8: tiny.Tensors) -> None:
    """Write folders of blocks and shards that are not whole, and repositories that lack a part."""
    for name, lost in (("no_rest", "non_block"), ("no_first_block", "block_0"), ("blocks_alone", "")):
        tiny.write_blocks(folder / name, fp8)
        (folder / name / f"{lost}.safetensors").unlink(missing_ok=True)
    for name in ("shards/model-00001-of-00003", "bad_index/model-00001-of-00002", "two/a", "two/b"):
        _save(fp8, folder / f"{name}.safetensors")
    (folder / "bad_index" / "model.safetensors.index.json").write_text("[]")
    for lost in (tiny.VAE_NAME, tiny.TEXT_ENCODER_NAME.format(precision="fp8"), "google"):
        shutil.copytree(folder / "good", folder / f"without_{lost[:6]}", ignore=shutil.ignore_patterns(lost))


def _write_text_encoders(folder: Path) -> None:
    """Write a tiny text encoder in every layout, and its tokenizer."""
    tensors, spiece = tiny.make_text_encoder(), tiny.train_tokenizer(400)
    for precision in tiny.PRECISION_FOLDERS:
        tiny.write_text_encoder(folder / f"umt5-{precision}.pth", tensors, precision)
    tiny.write_comfy_text_encoder(folder / "umt5_fp16.safetensors", tensors, spiece)
    tiny.write_comfy_text_encoder(folder / "umt5_fp8_scaled.safetensors", tensors, spiece, scaled_fp8=True)
    tiny.write_tokenizer(folder / tiny.TOKENIZER_FOLDER, spiece)


def _write_vaes(folder: Path, dim: int) -> None:
    """Write Wan's VAE, a LightVAE of half its width, and both tiny autoencoders."""
    for name, width in (("wan_2.1_vae", dim), ("lightvaew2_1", dim // 2)):
        tiny.write_vae(folder / f"{name}.safetensors", tiny.make_vae(tiny.TinySizes(vae_dim=width)), torch.bfloat16)
    for name in ("taew2_1", "lighttaew2_1"):
        _save(_make_tae((4 * dim, 2 * dim, dim, dim)), folder / f"{name}.safetensors")


def _make_tae(widths: tuple[int, int, int, int]) -> tiny.Tensors:
    """Return the decoder of a tiny autoencoder. Source of the layers: madebyollin/taehv, taehv.py, class TAEHV."""
    shapes: dict[str, tuple[int, ...]] = {"1": (widths[0], 16, 3, 3), "22": (3, widths[3], 3, 3)}
    for first, frames, width, following in zip((3, 9, 15), (1, 2, 2), widths, widths[1:], strict=False):
        for block in range(first, first + 3):
            shapes |= {f"{block}.conv.{layer}": (width, n * width, 3, 3) for layer, n in ((0, 2), (2, 1), (4, 1))}
        shapes |= {f"{first + 4}.conv": (frames * width, width, 1, 1), f"{first + 5}": (following, width, 3, 3)}
    random = torch.Generator().manual_seed(3)
    tensors = tiny.Tensors()
    for name, shape in shapes.items():
        tensors[f"decoder.{name}.weight"] = torch.randn(shape, generator=random) * 1.15 / max(shape[1] * 9, 50) ** 0.5
        if shape[-1] == 3 and name not in ("8", "14", "20"):
            tensors[f"decoder.{name}.bias"] = torch.full(shape[:1], 0.1)
    return tensors


def _roll(tensor: torch.Tensor, index: int) -> torch.Tensor:
    # Not every device rolls 8-bit floats.
    bits = tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor
    return bits.roll(index, 0).view(tensor.dtype)


def _without(tensors: tiny.Tensors, ending: str) -> tiny.Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(ending)}


def _renamed(tensors: tiny.Tensors, old: str, new: str) -> tiny.Tensors:
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}


def _save(tensors: tiny.Tensors, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Files share tensors here, which safetensors refuses within one.
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)


def _save_header(tensors: tiny.Tensors, path: Path) -> None:
    """Write a safetensors file of forty times the first block, whose weights are a hole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header, end = {}, 0
    for name, tensor in tensors.items():
        for index in range(40 if name.startswith("blocks.0.") else 1):
            start, end = end, end + tensor.nbytes
            entry = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
            header[name.replace("blocks.0.", f"blocks.{index}.")] = entry
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
