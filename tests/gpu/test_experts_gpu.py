"""Two experts that share buffers on a real card: in every mode the latents of both by hand, however slow the copies."""

import pytest
import torch
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.stages.denoise import run_steps, start
from lightx2v_pack.engine.stages.schedule import build_schedule
from lightx2v_pack.engine.system import compute_device
from support.checkpoints import experts
from support.engine import conditioning_of, open_transformer
from support.slow_gpu import LONG_SLEEP, delay_copies
from support.tensors import normal

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = compute_device()
SHAPE = (16, 3, 16, 20)
CONDITIONING = conditioning_of(normal(9, 64, seed=1))
SCHEDULE = build_schedule(4, 5.0)
PLACES = [
    Placement(mode="none"), Placement(mode="block"), Placement(mode="block", resident_blocks=1),
    Placement(mode="block", reads_second_expert=True), Placement(mode="phase"),
    Placement(mode="phase", resident_blocks=1, reads_second_expert=True), Placement(mode="disk"),
]  # fmt: skip


def opened(path, placement=None):
    transformer = open_transformer(resolve_transformer(path), placement=placement, device=DEVICE)
    transformer.load(Hooks())
    return transformer


def run(turns):
    """Return the latents of two steps each of (transformer, expert, the expert after it), one after the other."""
    state = start(SHAPE, 5, DEVICE)
    for (transformer, expert, then), steps in zip(turns, (range(2), range(2, 4)), strict=True):
        run_steps(
            transformer, CONDITIONING, state, SCHEDULE, steps, method="euler", hooks=Hooks(), expert=expert, then=then
        )
    return state.latents.cpu()


@pytest.mark.parametrize("precision", ["fp8", "int8", "bf16"])
def test_every_placement_gives_the_latents_of_both_by_hand(monkeypatch, precision):
    folder = experts(precision)
    expected = run([(opened(folder / f"{noise}_noise_model"), 0, 0) for noise in ("high", "low")])
    for placement in PLACES:
        pair = opened(folder, placement)
        for _ in range(2):
            assert torch.equal(run([(pair, 0, 1), (pair, 1, 0)]), expected), placement
        pair.unload()
    delay_copies(monkeypatch, LONG_SLEEP)
    for placement in PLACES[1:]:
        pair = opened(folder, placement)
        assert torch.equal(run([(pair, 0, 1), (pair, 1, 0)]), expected), placement
        pair.unload()
