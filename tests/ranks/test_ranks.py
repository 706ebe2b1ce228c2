"""Several ranks compute what one process computes, bit for bit."""

from dataclasses import replace

import pytest
import torch
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.parallel import group as groups
from lightx2v_pack.engine.parallel.transformer import GroupTransformer
from lightx2v_pack.engine.stages.schedule import build_schedule
from lightx2v_pack.tools import make_tiny_checkpoint as tiny
from support import checkpoints
from support.engine import conditioning_of, open_transformer
from support.tensors import normal

# Four heads of 128.
SIZES = tiny.TinySizes(dim=512, ffn_dim=768)
TIMESTEP = build_schedule(4, 5.0).timesteps[1]
# 320 tokens are three blocks of 128; 297 are odd and as many; 60 are one block, fewer than there are ranks.
SHAPES = [(16, 5, 16, 16), (16, 3, 18, 22), (16, 3, 8, 10)]
# As many heads as the 14B model has, 16 wide.
NUM_HEADS = 40
MANY_HEADS = tiny.TinySizes(dim=16 * NUM_HEADS, ffn_dim=768, num_layers=1)
# 1120 tokens are nine blocks, which four and eight ranks have unlike numbers of.
LARGE = (16, 5, 32, 28)


def files_of(precision, sizes=SIZES):
    files = resolve_transformer(checkpoints.single_file(precision, sizes=sizes))
    if sizes is not MANY_HEADS:
        return files
    # Nothing in a file says how wide a head is: 128, everywhere else.
    architecture = replace(files.format.architecture, num_heads=NUM_HEADS)
    return replace(files, format=replace(files.format, architecture=architecture))


def inputs(shape, seed=1):
    rows = torch.zeros(512, SIZES.text_dim)
    rows[:9] = normal(9, SIZES.text_dim, seed=2)
    return normal(*shape, seed=seed), conditioning_of(rows)


def of_one(precision, shape, sizes=SIZES):
    transformer = open_transformer(files_of(precision, sizes))
    transformer.load(Hooks())
    latents, conditioning = inputs(shape)
    flow = transformer.predict_flow(latents, TIMESTEP, conditioning, Hooks())
    backends = transformer._backends
    transformer.unload()
    return flow, backends


def transformer_of(precision, members, sizes=SIZES):
    backends = of_one(precision, SHAPES[-1], sizes)[1]
    return GroupTransformer(files_of(precision, sizes), backends, [Placement(mode="none")] * members.size, members)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "precision"),
    [
        pytest.param(count, precision, marks=[pytest.mark.always] if (count, precision) == (2, "fp8") else [])
        for count in (2, 3, 4)
        for precision in ("bf16", "fp8", "int8")
    ],
)
def test_ranks_give_the_flow_of_one_process(group, count, precision):
    together = transformer_of(precision, group(count).members)
    together.load(Hooks())
    for shape in SHAPES:
        expected, _ = of_one(precision, shape)
        latents, conditioning = inputs(shape)
        for _ in range(2):
            assert torch.equal(together.predict_flow(latents, TIMESTEP, conditioning, Hooks()), expected)
    together.unload()


def test_there_may_be_fewer_heads_than_ranks(group):
    two_heads = tiny.TinySizes(dim=256, ffn_dim=512)
    expected, _ = of_one("fp8", SHAPES[1], two_heads)
    together = transformer_of("fp8", group(3).members, two_heads)
    together.load(Hooks())
    latents, conditioning = inputs(SHAPES[1])
    assert torch.equal(together.predict_flow(latents, TIMESTEP, conditioning, Hooks()), expected)
    together.unload()


@pytest.mark.parametrize("count", [3, 4, 8])
def test_forty_heads_are_shared(members, count):
    # Not kept: eight processes are many beside those of the other tests.
    running = groups.group_of(members(count), Hooks())
    for precision in ("bf16", "fp8", "int8") if count == 8 else ("fp8",):
        together = transformer_of(precision, running.members, MANY_HEADS)
        together.load(Hooks())
        assert together._group is running
        for shape in (LARGE, SHAPES[1]):
            expected, _ = of_one(precision, shape, MANY_HEADS)
            latents, conditioning = inputs(shape)
            found = together.predict_flow(latents, TIMESTEP, conditioning, Hooks())
            assert torch.equal(found, expected) and expected.std() > 0.1
        together.unload()


def test_each_rank_may_keep_other_blocks(group):
    running = group(2)
    placements = [Placement(mode="disk", resident_blocks=count) for count in (0, 2)]
    expected, backends = of_one("fp8", SHAPES[1])
    together = GroupTransformer(files_of("fp8"), backends, placements, running.members)
    together.load(Hooks())
    latents, conditioning = inputs(SHAPES[1])
    assert torch.equal(together.predict_flow(latents, TIMESTEP, conditioning, Hooks()), expected)
    found = together.describe()
    assert found["resident_blocks"] == 0 and [rank["resident_blocks"] for rank in found["ranks"]] == [0, 2]
    together.unload()


def test_two_transformers_take_turns(group):
    """Each keeps what it was given, whichever computed last, and whichever gives back its memory."""
    expected, _ = of_one("fp8", SHAPES[-1])
    one, two = (transformer_of("fp8", group(2).members) for _ in range(2))
    latents, conditioning = inputs(SHAPES[-1])
    other = conditioning_of(normal(512, SIZES.text_dim, seed=3))
    one.load(Hooks())
    two.load(Hooks())
    assert torch.equal(one.predict_flow(latents, TIMESTEP, conditioning, Hooks()), expected)
    assert not torch.equal(two.predict_flow(latents, TIMESTEP, other, Hooks()), expected)
    assert torch.equal(one.predict_flow(latents, TIMESTEP, conditioning, Hooks()), expected)
    two.release_workspace()
    assert torch.equal(one.predict_flow(latents, TIMESTEP, conditioning, Hooks()), expected)
    one.unload()
    two.unload()
