"""Checkpoints of every layout as named tensors of known dtype and shape, and where their bytes lie."""

import pytest
import torch
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.checkpoints.source import TransformerCheckpoint
from support.checkpoints import comfy_transformer, repository, single_file, transformer_weights

LAYOUTS = {
    "file": lambda: single_file("fp8"),
    "prefixed file": lambda: single_file("int8", prefix="model.diffusion_model."),
    "folder": lambda: repository() / "distill_fp8",
    "bf16": lambda: single_file("bf16"),
    "comfy": comfy_transformer,
}


def open_checkpoint(layout, float32=None):
    return TransformerCheckpoint(resolve_transformer(LAYOUTS[layout]()), float32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_shapes_and_dtypes_are_the_same_whatever_the_file(layout):
    checkpoint = open_checkpoint(layout)
    specs = {spec.name: spec for spec in checkpoint.specs}
    weights = transformer_weights()
    assert {name for name in specs if not name.endswith("_scale")} == set(weights)
    for name, spec in specs.items():
        tensor = checkpoint.read(spec)
        assert (tensor.dtype, tensor.shape) == (spec.dtype, spec.shape)
        if name.endswith("_scale"):
            assert tensor.shape == (len(weights[name.removesuffix("_scale")]), 1)
            assert tensor.dtype == torch.float32
        elif f"{name}_scale" not in specs:
            assert tensor.dtype == torch.bfloat16
    assert checkpoint.num_bytes == sum(checkpoint.read(spec).nbytes for spec in checkpoint.specs)
    assert {spec.name for spec in checkpoint.others} == {name for name in weights if not name.startswith("blocks.")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_lie_where_it_says(layout):
    checkpoint = open_checkpoint(layout, float32=r"^blocks\.\d+\.modulation$")
    num_found = 0
    for spec in checkpoint.specs:
        place = checkpoint.location(spec)
        if place is None:
            continue
        num_found += 1
        with place.path.open("rb") as file:
            file.seek(place.offset)
            raw = torch.frombuffer(bytearray(file.read(place.num_bytes)), dtype=torch.uint8)
        stored = raw.view(spec.dtype).view(spec.shape)
        assert torch.equal(stored.float(), checkpoint.read(spec).float())
    # Two blocks of ten linear layers are stored as they are used in every layout.
    assert num_found >= 20


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_part_of_a_tensor_is_what_the_whole_has_there(layout):
    checkpoint = open_checkpoint(layout, float32=r"^blocks\.\d+\.modulation$")
    for spec in checkpoint.specs:
        whole = checkpoint.read(spec).flatten()
        part = checkpoint.read(spec, slice(3, 10))
        assert torch.equal(part.to(spec.dtype).float(), whole[3:10].float())


def test_what_must_be_changed_has_no_place():
    checkpoint = open_checkpoint("comfy", float32=r"^blocks\.\d+\.modulation$")
    places = {spec.name: checkpoint.location(spec) for spec in checkpoint.specs}
    assert places["blocks.0.ffn.0.weight"] is not None
    assert places["blocks.0.ffn.0.weight_scale"] is None  # one number for all channels


@pytest.mark.parametrize("layout", ["file", "folder", "comfy"])
def test_fp8_may_come_with_its_bytes_as_int8(layout):
    """What requantizes them in place wants them so; nothing else changes, and the files are read as before."""
    plain = open_checkpoint(layout)
    other = TransformerCheckpoint(resolve_transformer(LAYOUTS[layout]()), eight_bit=torch.int8)
    weights = 0
    for spec, wanted in zip(other.specs, plain.specs, strict=True):
        assert other.location(spec) == plain.location(wanted)
        found, stored = other.read(spec), plain.read(wanted)
        assert torch.equal(found.view(torch.uint8), stored.view(torch.uint8)) and found.shape == stored.shape
        part = other.read(spec, slice(3, 10))
        if wanted.dtype == torch.float8_e4m3fn:
            weights += 1
            assert spec.dtype == found.dtype == part.dtype == torch.int8
        else:
            assert spec.dtype == wanted.dtype
    assert weights == 20


def test_names_may_be_kept_in_float32():
    dtypes = {spec.name: spec.dtype for spec in open_checkpoint("bf16", float32=r"modulation$").specs}
    assert dtypes["blocks.1.modulation"] == dtypes["head.modulation"] == torch.float32
    assert dtypes["blocks.1.norm3.weight"] == torch.bfloat16


def test_closed_files_open_again():
    checkpoint = open_checkpoint("folder")
    first = checkpoint.read(checkpoint.specs[0]).clone()
    checkpoint.close()
    assert torch.equal(checkpoint.read(checkpoint.specs[0]), first)
