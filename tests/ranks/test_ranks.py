"""Several ranks compute what one process computes, bit for bit."""

import pytest
import torch
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.memory.placement import Placement
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


def files_of(precision, sizes=SIZES):
    return resolve_transformer(checkpoints.single_file(precision, sizes=sizes))


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
    return GroupTransformer(files_of(precision, sizes), backends, Placement(mode="none"), members)


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
