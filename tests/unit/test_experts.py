"""Two experts of Wan2.2 as one model: the same latents as both by hand, wherever their weights rest."""

import functools
import gc
import itertools
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from lightx2v_pack.engine import engines, pipeline
from lightx2v_pack.engine.checkpoints.files import resolve_experts, resolve_transformer
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.engine.errors import CheckpointError, NothingFitsError
from lightx2v_pack.engine.handles import TransformerHandle
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.latent_space import denormalize
from lightx2v_pack.engine.memory import room
from lightx2v_pack.engine.memory.clip import Clip
from lightx2v_pack.engine.memory.needs import Budget, weights_ram, weights_vram
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.memory.plan import Wish, plan_run
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings, SamplingSettings
from lightx2v_pack.engine.stages.denoise import run_steps, start
from lightx2v_pack.engine.stages.schedule import build_schedule, experts_of
from safetensors.torch import load_file, save_file
from support import loras
from support.alive import Snapshot, tensors
from support.cancel import CancelAfter, Cancelled
from support.checkpoints import expert_files, expert_weights, experts
from support.contract_of_a_transformer import travel_as_on_a_gpu
from support.engine import CPU, conditioning_of, open_transformer
from support.tensors import normal
from support.wan_14b import choose_kernels, make_expert_sizes, make_sizes

SHAPE = (16, 2, 6, 8)
CONDITIONING = (conditioning_of(normal(9, 64, seed=1)), conditioning_of(normal(5, 64, seed=2)))
PLACES = [
    Placement(mode="none"), Placement(mode="block"), Placement(mode="block", reads_second_expert=True),
    Placement(mode="phase", resident_blocks=1, reads_second_expert=True), Placement(mode="disk", resident_blocks=1),
]  # fmt: skip
HALVES = (("high", range(2)), ("low", range(2, 4)))
CLIP_480P = Clip(width=832, height=480, num_frames=81)


def opened(path, placement=None):
    transformer = open_transformer(resolve_transformer(path), placement=placement)
    transformer.load(Hooks())
    return transformer


@functools.cache
def by_hand(shares, *, method="lcm", seed=5, batch=1, precision="fp8", conditioning=CONDITIONING[:1]):
    """Return latents [B, 16, T, h, w] of two transformers that are loaded alone; shares: (expert, its steps)."""
    alone = {noise: opened(experts(precision) / f"{noise}_noise_model") for noise in ("high", "low")}
    clips = []
    for index in range(batch):
        state = start(SHAPE, seed + index, CPU)
        for noise, steps in shares:
            entry = conditioning[index % len(conditioning)]
            run_steps(alone[noise], entry, state, build_schedule(4, 5.0), steps, method=method, hooks=Hooks())
        clips.append(denormalize(state.latents))
    return torch.stack(clips)


def handle_of(path=None, mode="auto", **pairing):
    settings, offload = EngineSettings(), OffloadSettings(mode=mode)
    return pipeline.load_transformer(path or experts(), settings=settings, offload=offload, **pairing)


def sample(handle, batch=1, hooks=None, conditioning=CONDITIONING[:1], **settings):
    samples, settings = torch.zeros(batch, *SHAPE), SamplingSettings(seed=5, **settings)
    return pipeline.sample(handle, conditioning, samples, settings, hooks=hooks or Hooks())


def details_of(samples):
    return next(stage["details"] for stage in pipeline.report_of(samples)["stages"] if stage["stage"] == "sample")


# The same as both by hand


@pytest.mark.parametrize(("precision", "method"), [("bf16", "lcm"), ("fp8", "euler"), ("int8", "lcm")])
def test_latents_are_those_of_both_transformers_one_after_the_other(precision, method):
    expected = by_hand(HALVES, method=method, precision=precision)
    assert torch.equal(sample(handle_of(experts(precision)), method=method), expected)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["phase", "disk"])
def test_the_mode_changes_nothing(monkeypatch, mode):
    travel_as_on_a_gpu(monkeypatch)
    assert torch.equal(sample(handle_of(mode=mode)), by_hand(HALVES))


@pytest.mark.parametrize(("high_steps", "expected"), [(0, [0, 4]), (3, [3, 1]), (9, [4, 0])])
def test_the_number_of_the_step_decides(high_steps, expected):
    shares = (("high", range(expected[0])), ("low", range(expected[0], 4)))
    latents = sample(handle_of(), high_steps=high_steps)
    assert torch.equal(latents, by_hand(shares))
    assert details_of(latents)["experts"] == ["high"] * expected[0] + ["low"] * expected[1]


def test_another_shift_moves_nothing():
    latents = sample(handle_of(), shift=12.0)
    assert details_of(latents)["experts"] == ["high", "high", "low", "low"]


def test_a_batch_changes_over_once_and_each_clip_is_the_one_it_is_alone(monkeypatch):
    calls = []
    build = engines.build_transformer

    def watched(*arguments):
        made = build(*arguments)
        predict = made.predict_flow

        def note(latents, timestep, conditioning, hooks, expert=0, then=0):
            calls.append((expert, then))
            return predict(latents, timestep, conditioning, hooks, expert, then)

        made.predict_flow = note
        return made

    monkeypatch.setattr(engines, "build_transformer", watched)
    steps = []
    hooks = Hooks(on_step=lambda step, steps_in_all, _: steps.append((step, steps_in_all)))
    latents = sample(handle_of(), batch=3, hooks=hooks, conditioning=CONDITIONING)
    assert calls == [(0, 0)] * 5 + [(0, 1)] + [(1, 1)] * 5 + [(1, 0)]
    assert steps == [(number, 12) for number in range(1, 13)]
    assert [len(each) for each in details_of(latents)["step_seconds"]] == [4, 4, 4]
    assert torch.equal(latents, by_hand(HALVES, batch=3, conditioning=CONDITIONING))


# Where they rest


@pytest.fixture(scope="module")
def flows():
    """Of each expert alone."""
    alone = [opened(experts() / f"{noise}_noise_model") for noise in ("high", "low")]
    return [each.predict_flow(normal(*SHAPE, seed=3), 937.5, CONDITIONING[0], Hooks()) for each in alone]


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACES, ids=str)
def test_every_placement_gives_each_experts_flow_in_any_order(monkeypatch, flows, placement):
    """Also where another expert comes than was expected."""
    travel_as_on_a_gpu(monkeypatch)
    pair = opened(experts(), placement)
    for expert, then in [(0, 0), (0, 1), (1, 0), (0, 0), (1, 1), (0, 0)]:
        flow = pair.predict_flow(normal(*SHAPE, seed=3), 937.5, CONDITIONING[0], Hooks(), expert, then)
        assert torch.equal(flow, flows[expert])
    pair.unload()


# What is planned


def sizes_14b(precision="fp8", clip=CLIP_480P):
    return make_expert_sizes(clip, choose_kernels(precision))


def planned(vram, ram, precision="fp8", **wish):
    budget = Budget(vram=int(vram * GIB), ram=int(ram * GIB))
    return plan_run(sizes_14b(precision), budget, Wish(**wish))


def test_both_experts_are_counted_and_the_buffers_once():
    single, both = make_sizes(CLIP_480P).weights, sizes_14b().weights
    assert (both.block, both.num_blocks, both.num_experts) == (single.block, 40, 2)
    assert both.total == 2 * single.total
    streamed = Placement(mode="block")
    assert weights_vram(both, streamed) - weights_vram(single, streamed) == single.others
    assert weights_ram(both, streamed) == 2 * weights_ram(single, streamed)
    reads = Placement(mode="block", reads_second_expert=True)
    assert weights_ram(both, reads) == weights_ram(single, streamed) + 2 * single.block
    assert weights_ram(both, Placement(mode="disk")) == 2 * single.block
    assert weights_vram(both, Placement(mode="none")) == 2 * weights_vram(single, Placement(mode="none"))


@pytest.mark.parametrize(
    ("vram", "ram", "precision", "mode", "reads"),
    [
        (138, 56, "fp8", "none", False),  # 2 x 14 GB on the card
        (138, 100, "bf16", "none", False),
        (44, 100, "bf16", "block", False),
        (22.8, 56, "fp8", "block", False),  # RAM for both
        (7.2, 56, "fp8", "block", False),
        (11, 26, "fp8", "block", False),  # RAM for what of both is not on the card
        (7.2, 26, "fp8", "phase", False),
        (11, 20, "fp8", "block", True),  # RAM for one of them
        (7.2, 20, "fp8", "block", True),
        (7.2, 11.5, "fp8", "disk", False),
        (15, 40, "bf16", "block", True),
    ],
)
def test_where_the_weights_rest(vram, ram, precision, mode, reads):
    plan = planned(vram, ram, precision)
    assert (plan.placement.mode, plan.placement.reads_second_expert) == (mode, reads)
    assert plan.needs["sample"].fits(plan.budget)


def test_a_plan_line_says_of_which_experts():
    assert "of 40 blocks of each expert resident, the low-noise expert from its files" in str(planned(11, 20))
    assert "expert" not in str(plan_run(make_sizes(CLIP_480P), Budget(vram=11 * GIB, ram=26 * GIB), Wish()))


def test_a_named_mode_may_read_the_second_expert_too():
    plan = planned(11, 20, mode="block")
    assert (plan.placement.mode, plan.placement.reads_second_expert) == ("block", True)


def test_what_is_loaded_with_one_expert_in_files_is_kept_while_there_is_no_room_for_more():
    current = planned(11, 20).placement
    assert planned(11, 20, current=current).placement == current
    assert not planned(11, 56, current=current).placement.reads_second_expert


def test_why_nothing_fits_names_every_way():
    with pytest.raises(NothingFitsError, match="block with the low-noise expert from its files: "):
        planned(2, 8)


# Cancel, lack of memory, unloading


def test_a_cancel_in_either_expert_leaves_the_pair_usable():
    handle, expected = handle_of(), by_hand(HALVES)
    for checks in (4, 10):
        with pytest.raises(Cancelled):
            sample(handle, hooks=Hooks(check_interrupt=CancelAfter(checks)))
        assert torch.equal(sample(handle), expected)


def test_a_cancelled_load_gives_everything_back(monkeypatch):
    travel_as_on_a_gpu(monkeypatch)
    handle, before = handle_of(mode="block"), Snapshot()
    with pytest.raises(Cancelled):
        sample(handle, hooks=Hooks(check_interrupt=CancelAfter(3)))
    gc.collect()
    assert not handle.owner.is_loaded and not large(before)


@pytest.mark.slow
def test_unloading_gives_everything_back_and_the_next_run_loads_both():
    handle, before = handle_of(), Snapshot()
    sample(handle, steps=1)
    handle.unload()
    gc.collect()
    assert not large(before)
    assert torch.equal(sample(handle), by_hand(HALVES))


def large(before):
    """Return what of weights there is since then."""
    return [each for each in tensors(before.made_since()) if each.nbytes > 2**16]


def test_where_memory_runs_out_in_the_second_expert_both_start_again(monkeypatch):
    budget, made = Budget(vram=23 * GIB, ram=64 * GIB), []
    full = sizes_14b()
    monkeypatch.setattr(room, "find_budget", lambda *_, **__: budget)
    monkeypatch.setattr(TransformerHandle, "sizes", lambda _, clip, backends: replace(full, backends=backends))
    build = engines.build_transformer

    def fail_once(*arguments):
        transformer = build(*arguments)
        made.append(arguments[2])
        if len(made) == 1:
            predict = transformer.predict_flow

            def predict_flow(*arguments):
                if arguments[4] == 1:
                    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
                return predict(*arguments)

            transformer.predict_flow = predict_flow
        return transformer

    monkeypatch.setattr(engines, "build_transformer", fail_once)
    assert torch.equal(sample(handle_of()), by_hand(HALVES))
    first, second = made[:2]
    assert second.resident_blocks < first.resident_blocks


# Which step is whose, of samplers of a host


@pytest.mark.parametrize(
    ("steps", "shift", "expected"),
    [(4, 5.0, 2), (4, 8.0, 2), (4, 1.0, 2), (6, 5.0, 3), (8, 12.0, 4), (1, 5.0, 1), (3, 5.0, 2), (5, 5.0, 3)],
)
def test_half_of_a_schedule_is_the_high_noise_experts(steps, shift, expected):
    sigmas = build_schedule(steps, shift).sigmas
    assert experts_of(sigmas, shift) == [0] * expected + [1] * (steps - expected)
    assert experts_of(sigmas, shift, 1) == [0] + [1] * (steps - 1)


@pytest.mark.parametrize("shift", [1.0, 5.0, 8.0])
@pytest.mark.parametrize("steps", [4, 8])
def test_a_part_of_a_schedule_has_the_experts_of_that_part(shift, steps):
    sigmas = build_schedule(steps, shift).sigmas
    whole = experts_of(sigmas, shift)
    for first, last in itertools.combinations(range(steps + 1), 2):
        assert experts_of(sigmas[first : last + 1], shift) == whole[first:last], (first, last)


def test_schedules_that_are_not_evenly_spaced_are_split_by_number():
    assert experts_of([1.0, 0.99, 0.98, 0.97, 0.0], 5.0) == [0, 0, 1, 1]
    assert experts_of([1.0, 0.2, 0.1, 0.05, 0.0], 5.0) == [0, 0, 1, 1]


# LoRAs


@pytest.fixture
def lora_file(tmp_path):
    def lora_file(seed, name="style", **options):
        drawn = loras.draw(expert_weights("high"), seed=seed, size=0.3, **options)
        return loras.write(tmp_path / f"{name}.safetensors", drawn)

    return lora_file


@pytest.fixture(scope="module")
def step_latents():
    return normal(*SHAPE, seed=3)


def expert_flows(handle):
    """Return the flow of each expert of a handle with its LoRAs, or of a single transformer."""
    sample(handle, steps=1)
    transformer = handle.owner.engine
    latents = normal(*SHAPE, seed=3)
    return [
        transformer.predict_flow(latents, 937.5, CONDITIONING[0], Hooks(), expert)
        for expert in range(len(handle.files.experts))
    ]


@pytest.mark.parametrize("expert", ["both", "high", "low"])
def test_a_lora_goes_on_the_experts_that_are_chosen(flows, lora_file, expert):
    handle = handle_of()
    path = lora_file(1)
    found = expert_flows(handle.with_lora(handle.read_lora(path, expert), 0.8))
    for noise, flow, plain in zip(("high", "low"), found, flows, strict=True):
        alone = handle_of(experts() / f"{noise}_noise_model", second="alone")
        (expected,) = expert_flows(alone.with_lora(alone.read_lora(path), 0.8))
        is_on = expert in ("both", noise)
        assert torch.equal(flow, expected if is_on else plain)
        assert torch.equal(expected, plain) is False


def test_each_expert_may_have_its_own_loras_with_strengths_of_their_own(lora_file):
    handle, (one, two) = handle_of(), (lora_file(1, "one"), lora_file(2, "two"))
    both = handle.with_lora(handle.read_lora(one, "high"), 3.0).with_lora(handle.read_lora(two, "low"), -1.0)
    facts = details_of(sample(both))["loras"]
    assert [(fact["expert"], fact["lora"], fact["strength"]) for fact in facts] == [
        ("high", "one.safetensors", 3.0), ("low", "two.safetensors", -1.0),
    ]  # fmt: skip
    assert not torch.equal(sample(both), sample(handle))


def test_what_a_name_says_is_reported(lora_file):
    handle, path = handle_of(), lora_file(1, "style_high_noise")
    assert "set expert to 'high'" in str(handle.read_lora(path).report)
    assert "wrong expert" in str(handle.read_lora(path, "low").report)
    assert "name says" not in str(handle.read_lora(path, "high").report)
    assert "name says" not in str(handle.read_lora(lora_file(2, "highway")).report)


def test_a_lora_for_the_other_expert_is_named_on_one_that_is_alone(lora_file):
    alone = handle_of(experts() / "low_noise_model", second="alone")
    assert "wrong one for the low-noise expert" in str(alone.read_lora(lora_file(1, "style_high_noise")).report)
    with pytest.raises(CheckpointError, match="low-noise expert alone"):
        alone.read_lora(lora_file(1), "high")
    assert alone.read_lora(lora_file(1), "low").each[0] is not None


def test_a_file_with_a_half_for_each_gives_each_its_own(tmp_path, lora_file):
    """As diffusers saves it: transformer. and transformer_2."""
    halves = {noise: load_file(lora_file(seed, noise)) for seed, noise in enumerate(("high", "low"), start=1)}
    path, roots = tmp_path / "both.safetensors", {"high": "transformer", "low": "transformer_2"}
    merged = {f"{roots[noise]}.{bare(name)}": each for noise, half in halves.items() for name, each in half.items()}
    save_file(merged, path)
    handle = handle_of()
    lora = handle.read_lora(path)
    assert "each gets its own half" in str(lora.report) and "left out" not in str(lora.report)
    own = handle.with_lora(handle.read_lora(tmp_path / "high.safetensors", "high"))
    own = own.with_lora(handle.read_lora(tmp_path / "low.safetensors", "low"))
    for found, expected in zip(expert_flows(handle.with_lora(lora)), expert_flows(own), strict=True):
        assert torch.equal(found, expected)


def bare(name):
    return name.removeprefix("diffusion_model.")


# Said alone


def test_an_expert_alone_is_said_and_runs(caplog):
    with caplog.at_level(logging.WARNING):
        alone = handle_of(experts() / "high_noise_model", second="alone")
    assert "high-noise expert of Wan2.2 alone" in caplog.text
    assert torch.equal(sample(alone), by_hand((("high", range(4)),)))
    assert details_of(sample(alone))["experts"] == ["high"] * 4


def test_the_log_names_experts_steps_and_noise_levels(caplog):
    with caplog.at_level(logging.INFO):
        sample(handle_of())
    assert "high-noise expert: steps 1 to 2 of 4, sigma 1, 0.9375." in caplog.text
    assert "low-noise expert: steps 3 to 4 of 4, sigma 0.8333, 0.625." in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("high", "low", "is_pair"),
    [
        ("wan2.1_distill_high_quality", "wan2.1_distill_low_quality", False),
        ("Wan2_1-low-vram", "Wan2_1-high-vram", False),
        ("high/wan_distill", "low/wan_distill", True),
        ("my_high", "my_low", True),
    ],
)
def test_words_alone_make_no_experts_of_wan_2_1_and_are_said_elsewhere(high, low, is_pair, tmp_path):
    for name, path in zip((high, low), sorted(expert_files("bf16").iterdir()), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / f"{name}.safetensors")
    found = resolve_experts(tmp_path / f"{high}.safetensors")
    assert (found.second is not None) is is_pair
    assert any("only the words high and low" in note for note in found.warnings) is is_pair


def test_a_pair_of_files_is_the_same_model_as_a_pair_of_folders():
    """Whichever of them is named."""
    high, low = sorted(expert_files("bf16").iterdir())
    short = {"steps": 2, "high_steps": 1}
    expected = sample(handle_of(experts("bf16")), **short)
    for path in (expert_files("bf16"), high, low):
        assert torch.equal(sample(handle_of(path), **short), expected)
