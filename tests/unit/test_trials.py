"""What a trial run finds is a fact of the machine: the next plan, and every later one, counts with it."""

import pytest
import torch
from lightx2v_pack.engine import engines, pipeline
from lightx2v_pack.engine.backends import trial_inputs, trials
from lightx2v_pack.engine.backends.choose import choose_fused
from lightx2v_pack.engine.errors import UnsupportedHardwareError
from lightx2v_pack.engine.handles import TransformerHandle
from lightx2v_pack.engine.kernels import vae_ops
from lightx2v_pack.engine.memory.clip import Clip
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings
from support import checkpoints
from support.pretended_card import pretend_card

CLIP = Clip(width=832, height=480, num_frames=81)
REFERENCES = {"torch", "sdpa", "dequantize", ""}


def agrees(*given):
    """Stand for a trial run whose result is that of plain torch."""
    return torch.ones(2)


def fails(*given):
    """Stand for a trial run that only plain torch survives; the name comes before the device."""
    if given[-2] not in REFERENCES:
        raise RuntimeError("Failed to find C compiler.")
    return torch.ones(2)


@pytest.fixture
def h200(monkeypatch):
    """A card with everything that runs fast on it, LightX2V included, on which nothing has run yet but will."""
    packages = {"triton": "3.6.0", "sageattention": "2.2.0"}
    pretend_card(monkeypatch, "NVIDIA H200", (9, 0), 140, 138, packages=packages, has_lightx2v=True)
    for run in ("run_ops", "run_vae_ops", "attend", "attend_in_place", "multiply", "multiply_joined"):
        monkeypatch.setattr(trial_inputs, run, agrees)
    trials.forget_trials()
    yield torch.device("cuda", 0)
    trials.forget_trials()


@pytest.fixture(scope="module")
def files():
    path = checkpoints.single_file("fp8")
    return pipeline.load_checkpoint(path, settings=EngineSettings(), offload=OffloadSettings()).transformer.files


def handle_of(files, **settings):
    return TransformerHandle(files, EngineSettings(**settings), OffloadSettings())


def planned(files, device, **settings):
    """Return the kernels that a plan for these settings counts with."""
    return handle_of(files, **settings).sizes_now(CLIP, device).backends


def names_of(backends):
    return backends.blocks.name, backends.attention.name, backends.is_in_place, backends.matmul.name


EVERYTHING = ("triton", "sage_attn2", True, "scaled_mm")


def test_what_is_planned_is_what_runs(files, h200):
    for settings in ({}, {"compile": "off"}, {"attention": "sdpa"}):
        expected = planned(files, h200, **settings)
        confirmed = engines.confirm(handle_of(files, **settings).wanted(h200), h200)
        assert confirmed == expected == planned(files, h200, **settings)
    assert names_of(planned(files, h200)) == EVERYTHING


def test_the_next_plan_knows_that_sage_does_not_run_in_place(files, h200, monkeypatch):
    before = planned(files, h200)
    assert (before.attention.name, before.is_in_place, before.engine) == ("sage_attn2", True, "portable")
    for settings in ({"compile": "off"}, {"engine": "lightx2v"}):
        other = planned(files, h200, **settings)
        assert (other.attention.name, other.is_in_place) == ("sage_attn2", False)
    monkeypatch.setattr(trial_inputs, "attend_in_place", fails)
    confirmed = engines.confirm(handle_of(files).wanted(h200), h200)
    after = planned(files, h200)
    assert after == confirmed and names_of(after) == ("triton", "sage_attn2", False, "scaled_mm")
    row = after.attention.backend
    assert (before.attention_bytes, after.attention_bytes) == (row.in_place_bytes, row.bytes)


@pytest.mark.parametrize(
    ("task", "run", "expected"),
    [
        ("VAE kernels", "run_vae_ops", EVERYTHING),
        ("blocks", "run_ops", ("torch", "sage_attn2", False, "scaled_mm")),
        ("attention", "attend", ("triton", "sdpa", False, "scaled_mm")),
        ("fp8 matmul", "multiply", ("triton", "sage_attn2", True, "dequantize")),
    ],
)
def test_the_next_plan_knows_what_failed_its_trial_run(files, h200, monkeypatch, caplog, task, run, expected):
    assert names_of(planned(files, h200)) == EVERYTHING
    own = planned(files, h200, engine="lightx2v")
    monkeypatch.setattr(trial_inputs, run, fails)
    if task == "VAE kernels":
        assert isinstance(trials.confirm_vae_ops(h200), vae_ops.TorchOps)
        assert "its trial run failed" in choose_fused(task, trials.find_machine(h200)).passed_over["triton"]
    else:
        assert names_of(engines.confirm(handle_of(files).wanted(h200), h200)) == expected
        assert ("each product widens its weights" in caplog.text) == (run == "multiply")
    found = planned(files, h200)
    assert names_of(found) == expected
    is_learned = [reason.startswith(task) and "its trial run failed" in reason for reason in found.reasons]
    assert any(is_learned) == (task != "VAE kernels")
    if task == "attention":
        with pytest.raises(UnsupportedHardwareError, match=r"'sage_attn2' was chosen.*its trial run failed"):
            planned(files, h200, attention="sage_attn2")
    else:
        # LightX2V's own compute has block operations and matmuls of its own.
        assert planned(files, h200, engine="lightx2v") == own


def test_the_vae_takes_tritons_operations_where_they_agree(h200, monkeypatch):
    loaded = []
    monkeypatch.setattr(trials, "load_vae_ops", loaded.append)
    trials.confirm_vae_ops(h200)
    assert loaded == ["triton"]
