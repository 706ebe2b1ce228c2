"""LoRAs as a property of a view: what is planned for them, and what another view of the same weights loads."""

import pytest
import torch
from lightx2v_pack.engine import pipeline
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.engine.errors import LightX2VError, NothingFitsError
from lightx2v_pack.engine.handles import TransformerHandle
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.lora.changes import Change, Lora
from lightx2v_pack.engine.lora.report import LoraReport
from lightx2v_pack.engine.memory.clip import Clip
from lightx2v_pack.engine.memory.needs import Budget, activations, sampling_need, weights_ram, weights_vram
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.memory.plan import Wish, plan_run
from lightx2v_pack.engine.offload import streamer
from lightx2v_pack.engine.report_table import fact_rows
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings, SamplingSettings
from support import loras
from support.cancel import CancelAfter, Cancelled
from support.checkpoints import distilled, transformer_weights
from support.engine import conditioning_of
from support.tensors import normal
from support.wan_14b import choose_kernels, make_files

WEIGHTS = transformer_weights()
CLIP_480P = Clip(width=832, height=480, num_frames=81)
CONDITIONING = [conditioning_of(normal(7, 64, seed=1))]
SAMPLES = torch.zeros(1, 16, 1, 4, 4)


def pretended_lora(rank, name="x"):
    """Return pairs of every linear layer of the 14B blocks, without tensors."""
    model = make_files("fp8").header
    targets = [f"blocks.{index}.{layer}.weight" for index in range(40) for layer in loras.LAYERS]
    assert all(target in model for target in targets)
    changes = tuple(Change(target=target, names=("down", "up"), rank=rank) for target in targets)
    return Lora(identity=name, title=name, changes=changes, tensors={}, report=LoraReport(title=name, matched={}))


def handle_14b(*ranks, precision="fp8"):
    handle = TransformerHandle(make_files(precision), EngineSettings(), OffloadSettings())
    for number, rank in enumerate(ranks):
        handle = handle.with_lora(pretended_lora(rank, f"lora{number}"))
    return handle


def sizes_14b(*ranks, precision="fp8"):
    return handle_14b(*ranks, precision=precision).sizes(CLIP_480P, choose_kernels(precision, "sage_attn2"))


# What is planned


@pytest.mark.parametrize(("rank", "mib"), [(64, 439), (128, 877)])
def test_a_rank_takes_its_bytes_in_every_place(rank, mib):
    """Per block and rank: down 8 linears of 5120 columns and one of 13824 in 8 bits, q, k, v of each attention among
    them; up nine of 5120 rows and one of 13824 in BF16. By hand: 59,904 + 2 * 59,904 bytes, and a few for scales."""
    plain, sizes = sizes_14b(), sizes_14b(rank)
    added = sizes.weights.block - plain.weights.block
    assert added == sizes.weights.lora_block == pytest.approx(rank * (9 * 5120 + 13824) * 3, rel=0.02)
    assert sizes.weights.num_blocks * added / 2**20 == pytest.approx(mib, abs=10)
    assert sizes.weights.others == plain.weights.others
    resident, streamed = Placement(mode="none"), Placement(mode="block", resident_blocks=10)
    for placement, blocks in ((resident, 40), (streamed, 12)):
        difference = weights_vram(sizes.weights, placement) - weights_vram(plain.weights, placement)
        assert difference == pytest.approx(blocks * added, abs=blocks * 2**21)
    for mode in ("block", "disk"):
        placement = Placement(mode=mode, resident_blocks=10)
        assert weights_ram(sizes.weights, placement) - weights_ram(plain.weights, placement) == 30 * added


def test_five_loras_take_what_one_of_their_ranks_together_takes():
    assert sizes_14b(32, 32, 32, 32, 32) == sizes_14b(160)


def test_a_rank_is_filled_up_to_what_every_kernel_takes():
    assert sizes_14b(1) == sizes_14b(16) != sizes_14b(17)
    assert sizes_14b(17) == sizes_14b(32)


def test_the_product_with_down_is_planned():
    """That of q, k and v is the widest."""
    assert activations(sizes_14b(64)) - activations(sizes_14b()) == CLIP_480P.tokens * 3 * 64 * 2


@pytest.mark.parametrize("precision", ["fp8", "int8", "bf16"])
def test_a_stack_changes_the_plan_where_there_is_no_room_for_it(precision):
    """Just enough for the base alone: with a LoRA fewer blocks stay on the card; no mode counts on memory it lacks."""
    plain, sizes = sizes_14b(precision=precision), sizes_14b(256, precision=precision)
    need = sampling_need(plain, Placement(mode="none"), on_gpu=True).vram
    budget = Budget(vram=int(need * 1.05) + GIB // 2, ram=64 * GIB)
    assert plan_run(plain, budget, Wish()).placement.mode == "none"
    plan = plan_run(sizes, budget, Wish())
    assert plan.placement.mode == "block" and plan.needs["sample"].fits(budget)
    tight = Budget(vram=64 * GIB, ram=int(1.5 * GIB))
    with pytest.raises(NothingFitsError):
        plan_run(sizes, Budget(vram=int(2 * GIB), ram=tight.ram), Wish())


# Views


@pytest.fixture
def handle():
    return pipeline.load_transformer(distilled("fp8"), settings=EngineSettings(), offload=OffloadSettings())


@pytest.fixture
def lora_of(tmp_path, handle):
    def lora_of(seed, **options):
        path = tmp_path / f"{seed}.safetensors"
        if not path.exists():
            loras.write(path, loras.draw(WEIGHTS, seed=seed, size=0.2, **options))
        return handle.read_lora(path)

    return lora_of


def sample(handle, hooks=None):
    settings = SamplingSettings(seed=1, steps=2)
    return pipeline.sample(handle, CONDITIONING, SAMPLES, settings, hooks=hooks or Hooks())


def details_of(samples):
    return next(stage["details"] for stage in pipeline.report_of(samples)["stages"] if stage["stage"] == "sample")


def test_views_with_other_stacks_share_the_base(handle, lora_of, caplog):
    first, second = handle.with_lora(lora_of(1)), handle.with_lora(lora_of(2), -0.5)
    wanted = {id(view): sample(view) for view in (handle, first, second)}
    engine = handle.owner.engine
    weights = engine._loaded.weights
    for view in (second, handle, first, second, first.with_lora(lora_of(2), -0.5)):
        samples = sample(view)
        assert view.owner.engine is engine and engine._loaded.weights is weights
        if id(view) in wanted:
            assert torch.equal(samples, wanted[id(view)])
    assert len({float(each.sum()) for each in wanted.values()}) == 3
    assert not any(handle.stacks)


def test_the_report_and_the_owner_count_the_loras(handle, lora_of):
    plain = sample(handle)
    assert details_of(plain)["loras"] == []
    assert handle.owner.held.ram == 0
    with_lora = sample(handle.with_lora(lora_of(1), 0.5))
    (facts,) = details_of(with_lora)["loras"]
    assert (facts["lora"], facts["strength"]) == ("1.safetensors", 0.5)
    assert ("LoRA", "1.safetensors at 0.5, 52 of 52 tensors apply") in fact_rows(pipeline.report_of(with_lora))
    assert handle.owner.held.ram > 100_000
    needs = [details_of(each)["plan"]["needs"]["sample"]["ram_bytes"] for each in (plain, with_lora)]
    assert needs[1] > needs[0] + 100_000
    sample(handle)
    assert handle.owner.held.ram == 0


def test_a_cancel_while_loras_load_leaves_the_base_loaded(handle, lora_of):
    plain, view = sample(handle), handle.with_lora(lora_of(1))
    engine = handle.owner.engine
    with pytest.raises(Cancelled):
        sample(view, Hooks(check_interrupt=CancelAfter(0)))
    assert handle.owner.engine is engine
    assert torch.equal(sample(handle), plain)
    assert not torch.equal(sample(view), plain)
    assert handle.owner.engine is engine


def test_unloading_between_two_runs_changes_nothing(handle, lora_of):
    view = handle.with_lora(lora_of(1))
    wanted = sample(view)
    handle.unload()
    assert torch.equal(sample(view), wanted)
    handle.unload()
    handle.unload()
    assert not torch.equal(sample(handle), wanted)


def test_what_is_loaded_of_loras_is_told_as_such(handle, lora_of, monkeypatch):
    monkeypatch.setattr(streamer, "map_units", streamer.load_units)
    told = []
    sample(handle.with_lora(lora_of(1)), Hooks(on_progress=lambda *what: told.append(what)))
    assert (2, 2, "loading the transformer") in told and (2, 2, "loading LoRAs") in told


def test_a_strength_of_zero_is_a_view_without(handle, lora_of):
    assert not any(handle.with_lora(lora_of(1), 0.0).stacks)
    assert torch.equal(sample(handle.with_lora(lora_of(1), 0.0)), sample(handle))


def test_the_lightx2v_engine_refuses_with_a_sentence(lora_of, handle):
    settings = EngineSettings(engine="lightx2v")
    other = TransformerHandle(resolve_transformer(distilled("fp8")), settings, OffloadSettings())
    with pytest.raises(LightX2VError, match=r"Set engine to 'auto' for LoRAs"):
        other.with_lora(lora_of(1))
    assert other.with_lora(lora_of(1), 0.0).settings.engine == "lightx2v"
