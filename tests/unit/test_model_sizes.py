"""Predicted bytes of weights and workspaces against what the engines make."""

from dataclasses import replace

import pytest
import torch
from lightx2v_pack.engine.checkpoints.files import resolve_checkpoint, resolve_transformer
from lightx2v_pack.engine.checkpoints.source import TransformerCheckpoint
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.engine.handles import TransformerHandle, weight_sizes
from lightx2v_pack.engine.memory.activations import workspace_sizes
from lightx2v_pack.engine.memory.clip import Clip
from lightx2v_pack.engine.memory.needs import sampling_need
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.memory.weights import WeightSizes
from lightx2v_pack.engine.offload import make_units
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings
from lightx2v_pack.engine.wan.layout import FLOAT32, PHASES
from lightx2v_pack.engine.wan.workspace import Workspace
from support import checkpoints
from support.wan_14b import WAN_14B, WAN_I2V_14B, choose_kernels, make_files, make_sizes

FP32, BF16 = 4, 2
LINEAR_BYTES = {"fp8": 1, "int8": 1, "bf16": 2}


def aligned(num_bytes):
    """Tensors in a unit begin where CUDA's allocator would put them."""
    return -(-num_bytes // 512) * 512


def by_hand(architecture, precision):
    """Wan2.1's weights from its widths alone; time embedding and modulations are in fp32, as in native Wan."""
    dim, ffn_dim = architecture.dim, architecture.ffn_dim

    def linear(inputs, outputs):
        scales = 0 if precision == "bf16" else aligned(outputs * FP32)
        return aligned(inputs * outputs * LINEAR_BYTES[precision]) + scales + aligned(outputs * BF16)

    attention = 4 * linear(dim, dim) + 2 * aligned(dim * BF16)
    phases = (
        attention + aligned(6 * dim * FP32),
        attention + 2 * aligned(dim * FP32),
        linear(dim, ffn_dim) + linear(ffn_dim, dim),
    )
    patch = dim * (architecture.in_dim * 4 + 1)
    text = dim * (architecture.text_dim + 1) + dim * (dim + 1)
    time_embedding = dim * (architecture.freq_dim + 1) + dim * (dim + 1)
    head = (dim + 1) * 4 * architecture.out_dim
    return WeightSizes(
        block=sum(phases),
        phase=max(phases),
        num_blocks=architecture.num_layers,
        others=BF16 * (patch + text + 6 * dim * (dim + 1) + head) + FP32 * (time_embedding + 2 * dim),
    )


@pytest.mark.parametrize("precision", ["fp8", "int8", "bf16"])
def test_blocks_are_as_large_as_their_units(precision):
    files = resolve_checkpoint(checkpoints.repository(), precision).transformer
    checkpoint = TransformerCheckpoint(files, float32=FLOAT32)
    sizes = weight_sizes(files)
    num_layers = files.format.architecture.num_layers
    blocks, phases = (make_units(checkpoint.specs, num_layers, PHASES, by_phase) for by_phase in (False, True))
    assert [unit.num_bytes for unit in blocks] == [sizes.block] * sizes.num_blocks
    assert max(unit.num_bytes for unit in phases) == sizes.phase
    assert sizes.others == sum(spec.num_bytes for spec in checkpoint.others)
    assert sizes == by_hand(files.format.architecture, precision)


def test_layouts_of_the_same_weights_take_the_same():
    """A file with one scale a tensor, or a prefix before every name, is in memory what a folder of blocks is."""
    expected = weight_sizes(resolve_checkpoint(checkpoints.repository(), "fp8").transformer)
    for file in (
        checkpoints.single_file("fp8"),
        checkpoints.single_file("fp8", prefix="model.diffusion_model."),
        checkpoints.comfy_transformer(),
    ):
        assert weight_sizes(resolve_transformer(file)) == expected


@pytest.mark.parametrize(("precision", "gib"), [("fp8", 13.6), ("int8", 13.6), ("bf16", 26.7)])
def test_the_published_model_has_its_size(precision, gib):
    """14.29 billion parameters, of which 14.05 in the blocks' linears."""
    sizes = weight_sizes(make_files(precision))
    assert sizes == by_hand(WAN_14B, precision)
    assert sizes.total / GIB == pytest.approx(gib, abs=0.05)


def test_the_published_image_model_has_its_size():
    """16.4 billion parameters; 2.1 of them are needed once a clip, and travel in no step."""
    plain, sizes = (weight_sizes(make_files("fp8", each)) for each in (WAN_14B, WAN_I2V_14B))
    assert (sizes.block, sizes.phase) == (plain.block, plain.phase)
    assert 40 * sizes.image_block / 1e9 == pytest.approx(2.10, abs=0.01)
    clip = Clip(width=832, height=480, num_frames=81)
    placement = Placement(mode="block")
    needs = [
        sampling_need(make_sizes(clip, choose_kernels(), each), placement, on_gpu=True)
        for each in (WAN_14B, WAN_I2V_14B)
    ]
    # Keys and values of 257 rows in 40 blocks, two buffers of 50 MiB, the image's embedding.
    assert (needs[1].vram - needs[0].vram) / 2**20 == pytest.approx(201 + 2 * 50 + 17, abs=5)
    assert (needs[1].ram - needs[0].ram) / 2**20 == pytest.approx(2 * 50, abs=2)


def test_lightx2vs_own_compute_moves_the_image_branch_in_every_step():
    """It makes an image's keys and values anew in each: they are in its blocks, and nothing is there once a clip."""
    ours, theirs = (weight_sizes(make_files("fp8", WAN_I2V_14B), engine) for engine in ("auto", "lightx2v"))
    assert (theirs.block, theirs.image_block) == (ours.block + ours.image_block, 0)
    assert theirs.total == ours.total
    assert theirs.phase == pytest.approx(6 * 5120**2, rel=0.01)  # the cross-attention is the largest now
    handle = TransformerHandle(make_files("fp8", WAN_I2V_14B), EngineSettings(engine="lightx2v"), OffloadSettings())
    backends = choose_kernels(engine="lightx2v")
    assert handle.sizes(Clip(width=832, height=480, num_frames=81), backends).weights == theirs
    assert weight_sizes(make_files("fp8"), "lightx2v") == weight_sizes(make_files("fp8"))


def test_another_model_has_another_size():
    """Sizes are remembered by file and format."""
    smaller = replace(WAN_14B, dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
    assert weight_sizes(make_files("fp8", smaller)) == by_hand(smaller, "fp8")
    assert weight_sizes(make_files("fp8")) == by_hand(WAN_14B, "fp8")


@pytest.mark.parametrize(("tokens", "dim", "ffn_dim"), [(1, 256, 512), (33, 256, 512), (4096, 256, 2048)])
@pytest.mark.parametrize(("precision", "dtype"), [("fp8", torch.float8_e4m3fn), ("int8", torch.int8), ("bf16", None)])
def test_a_workspace_takes_what_was_predicted(tokens, dim, ffn_dim, precision, dtype):
    sizes = workspace_sizes(tokens=tokens, dim=dim, ffn_dim=ffn_dim, precision=precision)
    workspace = Workspace(tokens, dim, ffn_dim, dtype, torch.device("cpu"))
    assert workspace.num_bytes == sizes.total
    parts = [
        *workspace.parts,
        workspace.output,
        *(part for each in workspace.chunks for part in (each.wide, each.inputs)),
    ]
    end = max(part.data_ptr() + part.nbytes for part in parts)
    assert end <= workspace.hidden.data_ptr() + sizes.total
