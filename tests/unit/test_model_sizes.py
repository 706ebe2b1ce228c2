"""Predicted weight bytes against the units that the engines make of a checkpoint."""

import pytest
import torch
from lightx2v_pack.engine.checkpoints.files import resolve_checkpoint
from lightx2v_pack.engine.checkpoints.source import TransformerCheckpoint
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.engine.memory.activations import workspace_sizes
from lightx2v_pack.engine.memory.model_sizes import weight_sizes
from lightx2v_pack.engine.offload import make_units
from lightx2v_pack.engine.wan import embeddings
from lightx2v_pack.engine.wan.workspace import Workspace
from support import checkpoints
from support.wan_14b import WAN_14B


@pytest.mark.parametrize("scheme", ["fp8", "int8", "bf16"])
def test_blocks_are_as_large_as_their_units(scheme):
    files = resolve_checkpoint(checkpoints.repository(), scheme).transformer
    checkpoint = TransformerCheckpoint(files, float32=embeddings.FLOAT32)
    sizes = weight_sizes(files.format.architecture, scheme)
    blocks = make_units(checkpoint.specs, files.format.architecture.num_layers, by_phase=False)
    phases = make_units(checkpoint.specs, files.format.architecture.num_layers, by_phase=True)
    assert [unit.num_bytes for unit in blocks] == [sizes.block] * sizes.num_blocks
    assert max(unit.num_bytes for unit in phases) == sizes.phase
    assert sizes.others == sum(spec.num_bytes for spec in checkpoint.others)


@pytest.mark.parametrize(("scheme", "gib"), [("fp8", 13.6), ("int8", 13.6), ("bf16", 26.7)])
def test_the_published_model_has_its_size(scheme, gib):
    """14.29 billion parameters, of which 14.05 in the blocks' linears."""
    assert weight_sizes(WAN_14B, scheme).total / GIB == pytest.approx(gib, abs=0.05)


@pytest.mark.parametrize(("tokens", "dim", "ffn_dim"), [(1, 256, 512), (33, 256, 512), (4096, 256, 2048)])
@pytest.mark.parametrize(("scheme", "dtype"), [("fp8", torch.float8_e4m3fn), ("int8", torch.int8), ("bf16", None)])
def test_a_workspace_takes_what_was_predicted(tokens, dim, ffn_dim, scheme, dtype):
    sizes = workspace_sizes(tokens=tokens, dim=dim, ffn_dim=ffn_dim, scheme=scheme)
    workspace = Workspace(tokens, dim, ffn_dim, dtype, torch.device("cpu"))
    assert workspace.num_bytes == sizes.total
    parts = [
        *workspace.parts,
        workspace.output,
        *(part for each in workspace.chunks for part in (each.wide, each.inputs)),
    ]
    end = max(part.data_ptr() + part.nbytes for part in parts)
    assert end <= workspace.hidden.data_ptr() + sizes.total
