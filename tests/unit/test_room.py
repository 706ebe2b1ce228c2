"""The room of a stage: questions change nothing, claims are bytes, and a trial run may change the plan."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightx2v_pack.engine import handles, pipeline
from lightx2v_pack.engine.backends import trials
from lightx2v_pack.engine.backends.choose import ATTENTION
from lightx2v_pack.engine.backends.table import ATTENTION_BACKENDS, Machine
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.engine.handles import TransformerHandle
from lightx2v_pack.engine.interfaces import Hooks, Host
from lightx2v_pack.engine.kernels import matmul
from lightx2v_pack.engine.memory import room
from lightx2v_pack.engine.memory.clip import Clip
from lightx2v_pack.engine.memory.needs import VAE_BASE_DIM, Budget, vae_weight_bytes
from lightx2v_pack.engine.memory.owner import held
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.panel.forecast import Question, forecast
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings, SamplingSettings
from support import checkpoints
from support.engine import conditioning_of
from support.pretended_card import pretend_card
from support.wan_14b import make_files, make_sizes

SHAPE = (1, 16, 2, 6, 8)
CLIP, FULL_CLIP = Clip.of_latents(SHAPE), Clip(width=832, height=480, num_frames=81)
CPU = torch.device("cpu")


class Fake:
    """An engine that takes no memory."""

    def load(self, *_):
        pass

    def unload(self):
        pass


def hold(owner, plan, device):
    """Let an owner hold what a plan says, in name only."""
    owner.load("pretended", Fake, lambda _: None, plan.needs["load_transformer"], plan.placement)


@pytest.fixture
def full_size(monkeypatch):
    """The published model on a card of 8 GB, on which nothing is loaded."""
    pretend_card(monkeypatch, "NVIDIA GeForce RTX 4060", (8, 9), 8, 7.2, packages={"triton": "3.6.0"})
    return TransformerHandle(make_files("fp8"), EngineSettings(), OffloadSettings())


def test_asking_changes_nothing(full_size, monkeypatch):
    """However often, with whatever else was asked between, loaded or not."""
    monkeypatch.setattr("lightx2v_pack.engine.panel.forecast._resolve_transformer", lambda *_: full_size.files)
    claims = []
    host = Host(claim=lambda *claim: claims.append(claim), make_room=claims.append)
    stage, owner = full_size.room(host), full_size.owner

    def state():
        return owner.engine, owner.key, owner.placement, owner.patcher, owner.held, held(), dict(trials._outcomes)

    def ask():
        sizes = full_size.sizes_now(FULL_CLIP, host.device)
        return (
            sizes,
            stage.plan_run(sizes),
            stage.plan_run(sizes, assume_evicted=False),
            stage.plan_vae("decode", FULL_CLIP, VAE_BASE_DIM),
        )

    def ask_around(plan):
        """Everything that can be asked, of other sizes and after failures too."""
        larger = full_size.sizes_now(Clip(width=1280, height=720, num_frames=81, batch=2), host.device)
        stage.plan_run(larger, failed=plan)
        stage.plan_vae("decode", larger.clip, 24, failed=plan.decode)
        full_size.view().room(Host()).plan_run(larger)
        question = Question(path=Path("model.safetensors"), is_checkpoint=False, clip=larger.clip)
        assert forecast(question).tokens == larger.clip.tokens
        assert full_size.is_loaded_as(plan) is False

    before, first = state(), ask()
    ask_around(first[1])
    assert state() == before and ask() == first
    hold(owner, replace(first[1], placement=Placement(mode="block", resident_blocks=2)), host.device)
    loaded, second = state(), ask()
    assert second[1].placement == Placement(mode="block", resident_blocks=2) != first[1].placement
    ask_around(second[1])
    assert state() == loaded and ask() == second
    owner.unload()
    assert ask() == first and not claims


def test_a_claim_is_of_the_bytes_that_are_planned(full_size):
    """Weights, and what is beside them while sampling."""
    claims, rooms = [], []
    host = Host(claim=lambda *claim: claims.append(claim), make_room=rooms.append)
    plan = full_size.room(host).claim_run(full_size.sizes_now(FULL_CLIP, host.device))
    loading, sampling = plan.needs["load_transformer"].vram, plan.needs["sample"].vram
    assert claims == [(full_size.owner, loading, sampling - loading)] and not rooms
    assert 2 * GIB < loading < sampling < 7.2 * GIB


def test_room_for_a_run_is_asked_for_where_nothing_fits(full_size, monkeypatch):
    left = [Budget(vram=GIB, ram=32 * GIB)]
    monkeypatch.setattr(room, "find_budget", lambda *_, **__: left[0])

    def make_room(num_bytes):
        assert num_bytes > 100 * GIB
        left[0] = Budget(vram=8 * GIB, ram=32 * GIB)

    host = Host(make_room=make_room)
    plan = full_size.room(host).claim_run(full_size.sizes_now(FULL_CLIP, host.device))
    assert plan.needs["sample"].vram < 8 * GIB


def test_a_decode_claims_its_weights_and_its_work_only_where_that_helps(full_size, monkeypatch):
    """With the host's own model on the card a decode would have to be tiled."""
    vae = pipeline.load_vae(checkpoints.vae(), offload=OffloadSettings())
    claims = []
    stage = vae.room(Host(claim=lambda *claim: claims.append(claim)))
    alone = stage.claim_vae("decode", FULL_CLIP, VAE_BASE_DIM, "auto")
    assert claims == [(vae.owner, vae_weight_bytes("decode", VAE_BASE_DIM), 0)] and alone.tile is None
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 5 * GIB)
    stage.claim_vae("decode", FULL_CLIP, VAE_BASE_DIM, "auto")
    owner, weight_bytes, work_bytes = claims[1]
    assert owner is vae.owner and weight_bytes == vae_weight_bytes("decode", VAE_BASE_DIM)
    assert weight_bytes + work_bytes == alone.need.vram


@pytest.fixture
def ampere(monkeypatch):
    """A machine on which INT8 is multiplied by torch._int_mm, until that fails: the CPU, taken for a card that has it.

    The tiny checkpoint is planned for as the published one.
    """

    def find_machine(device):
        failed = {(ATTENTION, row): "is not for CPUs" for row in ATTENTION_BACKENDS if row.name == "sdpa_cudnn"}
        failed |= {(task, row): problem for (task, row, _), problem in trials._outcomes.items() if problem}
        return Machine(capability=(8, 0), failed_trials=failed)

    for module in (handles, trials):
        monkeypatch.setattr(module, "find_machine", find_machine)
    monkeypatch.setattr(trials, "_outcomes", {})
    # With the tiny autoencoder, so that sampling takes the most.
    full_size = replace(make_sizes(FULL_CLIP), vae_dim=0)
    monkeypatch.setattr(TransformerHandle, "sizes", lambda _, clip, backends: replace(full_size, backends=backends))
    return pipeline.load_checkpoint(
        checkpoints.repository(), precision="int8", settings=EngineSettings(), offload=OffloadSettings()
    ).transformer


def sample(handle):
    samples = pipeline.sample(
        handle,
        [conditioning_of(torch.ones(3, 64))],
        torch.zeros(SHAPE),
        SamplingSettings(seed=5),
        hooks=Hooks(),
        host=Host(device=CPU),
    )
    return samples, {stage["stage"]: stage for stage in pipeline.report_of(samples)["stages"]}


def give(monkeypatch, vram):
    budget = Budget(vram=vram, ram=64 * GIB)
    monkeypatch.setattr(room, "find_budget", lambda *_, **__: budget)


def test_a_trial_run_that_says_no_leads_to_a_plan_for_what_runs(ampere, monkeypatch, caplog):
    """And to weights where that plan wants them, with the kernels that it was made for."""
    give(monkeypatch, 100 * GIB)
    planned = ampere.sizes_now(CLIP, CPU)
    assert planned.backends.matmul.name == "int_mm"
    needed = ampere.room(Host(device=CPU)).plan_run(planned).needs["sample"].vram
    # With a margin of 3 % there is room for all weights beside INT8 activations, but not beside BF16 ones.
    give(monkeypatch, int(needed * 1.031))
    assert ampere.room(Host(device=CPU)).plan_run(planned).placement.mode == "none"

    def broken(*_):
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setitem(matmul.MATMULS, "int_mm", broken)
    with caplog.at_level(logging.INFO):
        samples, stages = sample(ampere)
    assert samples.isfinite().all()
    details = stages["sample"]["details"]
    assert details["matmul"] == "dequantize" and details["offload"] == details["plan"]["mode"] == "block"
    expected = ampere.room(Host(device=CPU)).plan_run(ampere.sizes_now(CLIP, CPU))
    assert expected.backends.matmul.name == "dequantize" and ampere.is_loaded_as(expected)
    assert details["plan"] == expected.as_data()
    assert stages["sample"]["predicted_vram_bytes"] == expected.needs["sample"].vram
    assert stages["load_transformer"]["predicted_vram_bytes"] == expected.needs["load_transformer"].vram
    plans = [record.getMessage() for record in caplog.records if "LightX2V: plan: " in record.getMessage()]
    assert len(plans) == 2 and "plan: resident" in plans[0] and plans[1] == f"LightX2V: {expected}."
    assert any("int8 matmul: not int_mm: its trial run failed" in record.getMessage() for record in caplog.records)
    # The next run knows.
    engine = ampere.owner.engine
    caplog.clear()
    again, _ = sample(ampere)
    assert torch.equal(again, samples) and ampere.owner.engine is engine
    assert not any("trial run failed (" in record.getMessage() for record in caplog.records)


def test_a_trial_run_that_says_yes_leaves_the_plan(ampere, monkeypatch, caplog):
    give(monkeypatch, 100 * GIB)
    expected = ampere.room(Host(device=CPU)).plan_run(ampere.sizes_now(CLIP, CPU))
    with caplog.at_level(logging.INFO):
        _, stages = sample(ampere)
    details = stages["sample"]["details"]
    assert details["matmul"] == "int_mm" and details["plan"] == expected.as_data()
    assert sum("LightX2V: plan: " in record.getMessage() for record in caplog.records) == 1
