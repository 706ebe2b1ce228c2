"""`auto` measures: it takes what is clearly the fastest here, remembers it, and measures again after a change."""

import functools
import logging
from dataclasses import replace

import pytest
import torch
from lightx2v_pack.engine import kernel_choice, pipeline
from lightx2v_pack.engine.backends import measure, remembered, trial_process, trials
from lightx2v_pack.engine.backends.choose import Wanted, attention_problem, choose, matmul_problem
from lightx2v_pack.engine.backends.table import Machine
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.engine.interfaces import Hooks, Host
from lightx2v_pack.engine.memory.clip import Clip
from lightx2v_pack.engine.memory.needs import Budget
from lightx2v_pack.engine.memory.plan import Wish, plan_run
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings, SamplingSettings
from support import checkpoints
from support.cancel import CancelAfter, Cancelled
from support.engine import conditioning_of
from support.pretended_machine import pretend_machine
from support.slow_kernels import Clock
from support.wan_14b import make_sizes

CPU = torch.device("cpu")
MACHINE = Machine(
    capability=(8, 9),
    system="linux",
    torch="2.13.0",
    packages={"sageattention": "2.2.0", "flash_attn": "2.7.0"},
)
SHAPE = (1, 16, 2, 6, 8)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "user" / "kernels.jsonl"


@pytest.fixture
def clock(monkeypatch, path):
    """A card with SageAttention and FlashAttention, both as fast as torch's, on which nothing was measured yet."""
    pretend_machine(monkeypatch, MACHINE)
    monkeypatch.setattr(trial_process, "run_apart", lambda named, *_: ((each, "") for each in named))
    remembered.keep_in(path)
    trials.forget_trials()
    clock = Clock(monkeypatch)
    clock.attention(sage_attn2=0.01, sage_triton=0.01, flash_attn2=0.01, sdpa=0.01)
    clock.matmuls(scaled_mm=0.001, scaled_mm_tensor=0.001)
    yield clock
    trials.forget_trials()


def load(precision="fp8", **settings):
    path = checkpoints.distilled(precision)
    return pipeline.load_transformer(path, settings=EngineSettings(**settings), offload=OffloadSettings())


def run(handle, hooks=None, shape=SHAPE):
    """Return latents and the facts of the sampling."""
    samples = pipeline.sample(
        handle,
        [conditioning_of(torch.ones(3, 64))],
        torch.zeros(shape),
        SamplingSettings(seed=5, steps=1),
        hooks=hooks or Hooks(),
        host=Host(device=CPU),
    )
    stages = {stage["stage"]: stage for stage in pipeline.report_of(samples)["stages"]}
    return samples, stages["sample"]["details"]


def start_anew(path):
    """As if the program had been started anew."""
    trials.forget_trials()
    remembered.keep_in(None)
    remembered.keep_in(path)


def never(*given):
    pytest.fail("something was measured")


def test_what_was_slowed_on_purpose_is_not_taken_and_a_second_process_measures_nothing(
    clock, path, monkeypatch, caplog
):
    clock.attention(sage_attn2=0.02, sage_triton=0.009, flash_attn2=0.011, sdpa=0.05)
    clock.matmuls(scaled_mm=0.002, scaled_mm_tensor=0.001)
    told = []
    handle = load()
    with caplog.at_level(logging.INFO):
        samples, details = run(handle, Hooks(on_progress=lambda *given: told.append(given)))
    assert (details["attention"], details["matmul"]) == ("sage_triton", "scaled_mm_tensor")
    assert {what for _, _, what in told} >= {"measuring attention", "measuring fp8 matmul"}
    (line,) = [record.getMessage() for record in caplog.records if "measured here, 32 tokens" in record.getMessage()]
    factor = 1000 * 32**2 / 24**2 * 2 / 2  # of tokens; both heads were timed
    expected = {"sage_triton": 9, "flash_attn2": 11, "sage_attn2": 20, "sdpa": 50}
    for name, milliseconds in expected.items():
        assert f"{name} {milliseconds / 1000 * factor:.3g}" in line
    (times,) = [seconds for problem, seconds in details["measured"].items() if "heads" in problem]
    assert times == pytest.approx({name: each / 1e6 * factor for name, each in expected.items()})

    # What is loaded is measured no more, and neither is anything in another process.
    for name in ("_time_attention", "_time_linears"):
        monkeypatch.setattr(kernel_choice, name, never)
    assert torch.equal(run(handle)[0], samples)
    start_anew(path)
    clock.attention(sage_attn2=0.001)
    again, details = run(load())
    assert torch.equal(again, samples)
    assert (details["attention"], details["matmul"]) == ("sage_triton", "scaled_mm_tensor")


def test_another_version_is_measured_anew(clock, path, monkeypatch):
    clock.attention(sage_attn2=0.02)
    assert run(load("bf16"))[1]["attention"] == "sage_triton"
    for newer in (
        replace(MACHINE, torch="2.13.1"),
        replace(MACHINE, capability=(8, 6)),
        replace(MACHINE, packages={**MACHINE.packages, "flash_attn": "2.8.0"}),
    ):
        pretend_machine(monkeypatch, newer)
        assert not trials.find_machine(CPU).measured, newer
    clock.attention(sage_attn2=0.005)
    start_anew(path)
    assert run(load("bf16"))[1]["attention"] == "sage_attn2"
    # What was found with the old ones still holds for them.
    pretend_machine(monkeypatch, MACHINE)
    assert trials.find_machine(CPU).measured
    for what in ("pack_version", "driver_version"):
        with monkeypatch.context() as patch:
            patch.setattr(trials, what, lambda: "another")
            assert not trials.find_machine(CPU).measured, what


def test_another_class_of_sizes_is_measured_anew(clock):
    clock.attention(sage_attn2=0.02)
    handle = load("bf16")
    assert run(handle)[1]["attention"] == "sage_triton"
    clock.attention(sage_attn2=0.005)
    assert run(handle)[1]["attention"] == "sage_triton"
    larger = (1, 16, 3, 12, 16)
    samples, details = run(handle, shape=larger)
    assert details["attention"] == "sage_attn2" and samples.isfinite().all()
    assert run(handle)[1]["attention"] == "sage_triton"


@pytest.mark.parametrize(
    "settings", [{"attention": "sage_attn2"}, {"attention": "sdpa"}, {"engine": "portable", "attention": "flash_attn2"}]
)
def test_who_names_an_attention_gets_it_unmeasured(clock, monkeypatch, settings):
    clock.attention(sage_attn2=0.02, sdpa=0.03)
    for name in ("_time_attention", "_time_linears"):
        monkeypatch.setattr(kernel_choice, name, never)
    assert run(load(**settings))[1]["attention"] == settings["attention"]


def test_without_a_place_for_notes_and_on_a_cpu_nothing_is_measured(clock, path, monkeypatch):
    clock.attention(sage_attn2=0.02)
    for name in ("_time_attention", "_time_linears"):
        monkeypatch.setattr(kernel_choice, name, never)
    remembered.keep_in(None)
    assert run(load("bf16"))[1]["attention"] == "sage_attn2"
    remembered.keep_in(path)
    pretend_machine(monkeypatch, Machine())
    assert run(load("bf16"))[1]["attention"] == "sdpa"
    assert not path.exists()


def test_a_cancel_while_measuring_leaves_no_note(clock, path):
    clock.attention(sage_attn2=0.02)
    handle = load("bf16")
    with pytest.raises(Cancelled):
        run(handle, Hooks(check_interrupt=CancelAfter(3)))
    assert '"seconds"' not in path.read_text()
    assert not handle.owner.is_loaded
    assert run(handle)[1]["attention"] == "sage_triton"


def test_where_nothing_can_be_written_the_process_remembers(clock, path, monkeypatch, caplog):
    clock.attention(sage_attn2=0.02)
    path.parent.write_text("a file in place of the folder")
    assert run(load("bf16"))[1]["attention"] == "sage_triton"
    assert "cannot be kept" in caplog.text
    clock.calls.clear()
    assert run(load("bf16"))[1]["attention"] == "sage_triton"
    assert "flash_attn2" not in clock.calls


def test_of_two_processes_that_measure_at_once_both_go_by_the_first(clock, path):
    clock.attention(sage_attn2=0.02)

    def finish_elsewhere(done, total, what):
        if what == "measuring attention" and done == 1:
            problem = attention_problem(handle.wanted(CPU, Clip.of_latents(SHAPE)), "torch")
            found = {"sage_attn2": 0.03, "sage_triton": 0.02, "flash_attn2": 0.01, "sdpa": 0.02}
            remembered.Notes(path).add_times(trials.combination_of(MACHINE, CPU), problem, found)

    handle = load("bf16")
    _, details = run(handle, Hooks(on_progress=finish_elsewhere))
    assert details["attention"] == "flash_attn2"


def test_what_fails_is_not_measured_and_not_taken(clock, monkeypatch, caplog):
    """In its trial run, or only at the size of the clip."""
    clock.attention(sage_attn2=RuntimeError("no kernel image is available"), flash_attn2=0.001, sage_triton=0.02)
    real = kernel_choice._attentions

    def with_a_broken_one(backends, device):
        for name, kernels in real(backends, device):
            if name == "flash_attn2":
                clock.attention(flash_attn2=RuntimeError("CUDA out of memory. Tried to allocate 9 GiB"))
                kernels = next(each for same, each in real(backends, device) if same == name)
            yield name, kernels

    monkeypatch.setattr(kernel_choice, "_attentions", with_a_broken_one)
    with caplog.at_level(logging.INFO):
        _, details = run(load("bf16"))
    assert details["attention"] == "sdpa"
    assert "attention: flash_attn2 is not measured: CUDA out of memory" in caplog.text
    (times,) = details["measured"].values()
    assert times.keys() == {"sage_triton", "sdpa"}


def test_a_full_card_measures_another_time(clock, path, monkeypatch, caplog):
    clock.attention(sage_attn2=0.02)
    real = kernel_choice._attentions

    def fill(*given):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(kernel_choice, "_attentions", fill)
    with caplog.at_level(logging.INFO):
        assert run(load("bf16"))[1]["attention"] == "sage_attn2"
    assert "not measured, for lack of memory" in caplog.text
    monkeypatch.setattr(kernel_choice, "_attentions", real)
    assert run(load("bf16"))[1]["attention"] == "sage_triton"


# The rule


def machine_with(problem, **seconds):
    return replace(MACHINE, measured={problem: seconds})


WANTED = Wanted(precision="fp8", dim=5120, ffn_dim=13824, num_heads=40, tokens=32_760)


@pytest.mark.parametrize(
    ("seconds", "name"),
    [
        ({"sage_attn2": 0.100, "flash_attn2": 0.098, "sdpa": 0.2}, "sage_attn2"),
        ({"sage_attn2": 0.100, "flash_attn2": 0.096, "sdpa": 0.2}, "flash_attn2"),
        ({"sage_attn2": 0.100, "sage_triton": 0.080, "flash_attn2": 0.079}, "sage_triton"),
        ({"sage_attn2": 0.100, "sage_triton": 0.080, "flash_attn2": 0.070}, "flash_attn2"),
        ({"sage_triton": 0.080, "flash_attn2": 0.070}, "sage_attn2"),
        ({"sage_attn2": 0.100, "triton": 0.001}, "sage_attn2"),
        ({}, "sage_attn2"),
    ],
)
def test_the_tables_order_stands_unless_another_is_clearly_faster(seconds, name):
    problem = attention_problem(WANTED, "torch")
    chosen = choose(machine_with(problem, **seconds), WANTED)
    assert chosen.attention.name == name
    assert choose(machine_with(problem, **seconds), replace(WANTED, attention="sdpa")).attention.name == "sdpa"
    # It holds for clips of about that size.
    assert choose(machine_with(problem, **seconds), replace(WANTED, tokens=30_000)).attention.name == name
    assert choose(machine_with(problem, **seconds), replace(WANTED, tokens=75_600)).attention.name == "sage_attn2"


def test_matmuls_are_chosen_by_what_was_measured():
    found = {"scaled_mm": 0.02, "scaled_mm_tensor": 0.015}
    chosen = choose(machine_with(matmul_problem(WANTED, "fp8"), **found), WANTED)
    assert chosen.matmul.name == "scaled_mm_tensor"
    assert "measured here" in str(chosen.matmul) and "scaled_mm_tensor 15 ms, scaled_mm 20" in str(chosen.matmul)
    assert chosen.linear_seconds(16_384) == pytest.approx(0.0075) and chosen.attention_seconds(32_760) is None


def test_a_faster_one_that_takes_more_memory_has_to_leave_the_plan_as_it_is():
    """SageAttention holds 7 bytes a token and unit of width, torch 2: 0.8 GiB more here."""
    clip = Clip(width=832, height=480, num_frames=81)
    lean, fast = (choose(MACHINE, replace(WANTED, attention=name)) for name in ("sdpa", "sage_attn2"))
    sizes = replace(make_sizes(clip, fast), leaner=lean)

    def plan(vram, sizes=sizes):
        return plan_run(sizes, Budget(vram=int(vram), ram=64 * GIB), Wish())

    roomy = plan(40 * GIB)
    assert roomy.backends == fast and roomy.placement.mode == "none"
    # With a margin of 3 %.
    vram = roomy.needs["sample"].vram * 1.02
    assert plan(vram).placement.mode == "none" and plan(vram).backends == lean
    assert plan(vram, replace(sizes, leaner=None)).placement.mode == "block"
    # Where both stream, it may take what it needs.
    assert plan(8 * GIB).placement.mode == "block" and plan(8 * GIB).backends == fast


@pytest.mark.parametrize("seconds", [{"a": 0.01, "b": 0.02}, {"a": 0.2, "b": 0.3, "c": 0.4}, {"a": 2.0, "b": 0.1}])
def test_measuring_ends_in_time(monkeypatch, seconds):
    clock = Clock(monkeypatch)
    calls = {name: measure.Timed(call=functools.partial(clock.take, name, each)) for name, each in seconds.items()}
    found = measure.time_calls(calls, CPU, lambda: None, 2.2, (), never, lambda done: None)
    assert found == pytest.approx({name: seconds[name] for name in found}) and next(iter(found)) == "a"
    # What is begun is ended.
    assert clock.now <= 2.2 + 2 * max(seconds.values())
    assert (len(found) == len(seconds)) == (seconds["a"] < 2)
