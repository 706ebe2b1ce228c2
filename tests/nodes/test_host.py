"""What the stages ask of ComfyUI's memory manager, and what they are told of its flags."""

import json
import os
import shutil

import pytest
import torch
from support import checkpoints

LOADER = {"precision": "auto", "engine": "auto", "attention": "auto", "compile": "off"}


@pytest.fixture
def loaded(run, models_dir):
    shutil.copytree(checkpoints.repository(), models_dir / "lightx2v" / "tiny", copy_function=os.symlink)
    return run("LightX2VLoadCheckpoint", checkpoint="tiny", **LOADER)


def run_graph(run, loaded):
    transformer, _, vae = loaded
    latent = run("LightX2VEmptyLatent", width=64, height=48, num_frames=5, batch_size=1)[0]
    conditioning = [[torch.ones(1, 3, 64), {}]]
    settings = {"seed": 7, "method": "lcm", "steps": 2, "shift": 5.0}
    latent = run("LightX2VSampler", transformer=transformer, conditioning=conditioning, latent=latent, **settings)[0]
    image = run("LightX2VDecode", vae=vae, latent=latent, tiling="auto")[0]
    report = run("LightX2VReport", image=image, latent=latent)[2]
    return {stage["stage"]: stage for stage in json.loads(report)["stages"]}


def test_every_stage_claims_its_weights_and_activations(run, loaded, monkeypatch):
    from lightx2v_pack.engine.adapters.comfy import memory

    claims = []
    monkeypatch.setattr(memory, "register", lambda *claim: claims.append(claim))
    run_graph(run, loaded)
    handles = [loaded[0].model.lightx2v_handle, loaded[2].lightx2v_handle]
    assert [owner for owner, _, _ in claims] == [handle.owner for handle in handles]
    for _, weight_bytes, activation_bytes in claims:
        assert isinstance(weight_bytes, int) and isinstance(activation_bytes, int)
        assert weight_bytes >= 0 and activation_bytes >= 0
    # On a CPU a transformer takes no VRAM; the decoder's weights are what they are.
    assert claims[0][1:] == (0, 0) and claims[1][1] > 0


def test_the_report_puts_predicted_beside_measured(run, loaded):
    stages = run_graph(run, loaded)
    for name in ("load_transformer", "sample", "decode"):
        assert stages[name]["predicted_ram_bytes"] > 0 and stages[name]["peak_ram_bytes"] > 0
    plan = stages["sample"]["details"]["plan"]
    assert plan["line"].startswith("plan: resident, ") and plan["line"].endswith("; decode whole")
    assert set(plan["needs"]) == {"encode", "load_transformer", "sample", "decode"}


def test_launch_flags_reach_the_plan(run, loaded, monkeypatch):
    from lightx2v_pack.engine.adapters.comfy import memory
    from lightx2v_pack.engine.settings import HostPolicy

    monkeypatch.setattr(memory, "host_policy", lambda: HostPolicy(prefer="least"))
    stages = run_graph(run, loaded)
    assert stages["sample"]["details"]["offload"] == "phase"
    assert stages["decode"]["details"]["tiled"]
