"""A card that begins to page is named, with what to do; on pretended cards, with steps that take what the test says."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightx2v_pack.engine import system
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.memory import paging
from lightx2v_pack.engine.memory.clip import Clip
from lightx2v_pack.engine.memory.needs import Budget
from lightx2v_pack.engine.memory.paging import StepWatch
from lightx2v_pack.engine.memory.plan import Wish, plan_run
from support.pretended_card import pretend_card
from support.wan_14b import choose_kernels, make_sizes

CLIP = Clip(width=832, height=480, num_frames=81)
CARD = torch.device("cuda", 0)


class Run:
    """Steps on a card of 8 GiB under Windows."""

    def __init__(self, monkeypatch):
        self._patch, self._now = monkeypatch, 0.0
        pretend_card(monkeypatch, "NVIDIA GeForce RTX 4060", (8, 9), 8, 0.1)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: int(6.9 * GIB))
        monkeypatch.setattr(paging, "time", SimpleNamespace(perf_counter=lambda: self._now))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
        monkeypatch.setattr(paging, "_fastest", {})
        monkeypatch.setattr(system, "sys", SimpleNamespace(platform="win32"))
        self.tokens = CLIP.tokens
        self.plan = plan_run(make_sizes(CLIP), Budget(vram=7 * GIB, ram=64 * GIB), Wish())

    def measured(self, attention, linears):
        """Let kernels have been measured; seconds of a step of theirs."""
        kernels = choose_kernels()
        wanted = replace(kernels.wanted, tokens=32_768, num_heads=40)
        parts = {
            part: replace(choice, measured={choice.name: seconds / 40}, problem=part)
            for part, choice, seconds in (
                ("attention", kernels.attention, attention),
                ("matmul", kernels.matmul, linears),
            )
        }
        self.plan = replace(self.plan, backends=replace(kernels, wanted=wanted, **parts))

    def free(self, gib):
        self._patch.setattr(torch.cuda, "mem_get_info", lambda *_: (int(gib * GIB), 8 * GIB))

    def on(self, name):
        self._patch.setattr(system, "sys", SimpleNamespace(platform=name))

    def steps(self, *seconds):
        """Return the warnings of a run with steps of so many seconds."""
        watch, left = StepWatch(self.plan, self.tokens, CARD), list(seconds)

        def predict_flow(latents, timestep, conditioning, hooks):
            self._now += left.pop(0)
            return latents

        transformer = watch.watched(SimpleNamespace(predict_flow=predict_flow, moved_bytes=7))
        assert transformer.moved_bytes == 7
        for _ in seconds:
            latents = torch.zeros(1)
            assert transformer.predict_flow(latents, 1000.0, None, Hooks()) is latents
            # What lies between the steps is no step.
            self._now += 1000
        return watch.warnings


@pytest.fixture
def run(monkeypatch):
    return Run(monkeypatch)


def test_a_step_that_is_several_times_slower_on_a_full_card_is_named_once(run, caplog):
    with caplog.at_level(logging.WARNING):
        (warning,) = run.steps(12, 9, 9.2, 41, 44)
    assert warning.startswith("Close other programs") and "vram_budget_gib of 'LightX2V Offload' to 6" in warning
    assert "a step took 41 s where 9.0 s are to be expected, and 0.1 GiB of VRAM are free" in warning
    assert caplog.messages == [f"LightX2V: {warning}"]


def test_what_an_earlier_run_took_is_known(run):
    assert not run.steps(30, 9, 9)
    assert "a step took 40 s where 9.0 s" in run.steps(40)[0]


def test_what_was_measured_of_the_kernels_is_known_in_the_first_run(run):
    assert not run.steps(60, 50, 50)
    run.measured(attention=5.0, linears=3.0)
    assert "a step took 60 s where 8.0 s" in run.steps(60, 50)[0]


def test_the_first_step_of_all_compiles(run):
    run.measured(attention=5.0, linears=3.0)
    assert not run.steps(60, 12, 12, 12)


def test_a_card_with_room_and_a_slow_step_has_another_reason(run):
    run.free(1.0)
    assert not run.steps(12, 9, 41)


@pytest.mark.parametrize(
    ("platform", "release", "is_named"), [("linux", "6.8.0", False), ("linux", "5-Microsoft", True)]
)
def test_linux_pages_inside_windows_only(run, monkeypatch, platform, release, is_named):
    run.on(platform)
    monkeypatch.setattr(system.platform, "release", lambda: release)
    assert bool(run.steps(12, 9, 41)) == is_named


def test_another_size_is_not_compared_with(run):
    assert not run.steps(12, 3, 3)
    run.tokens *= 4
    assert not run.steps(48, 48, 48)
    assert "a step took 150 s where 48.0 s" in run.steps(150)[0]


def test_steps_that_vary_are_nothing(run):
    assert not run.steps(12, 9, 20, 26, 9)
