"""What the loaders return: weights come when needed, go when told, and go with the last reference."""

import gc
from dataclasses import replace
from functools import partial

import pytest
import torch
from lightx2v_pack.engine import engines, handles, pipeline, system
from lightx2v_pack.engine.backends import block_ops as select_blocks
from lightx2v_pack.engine.backends import trials
from lightx2v_pack.engine.checkpoints.tae import TaeFormat
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.engine.errors import CheckpointError, NothingFitsError, UnsupportedHardwareError
from lightx2v_pack.engine.handles import held, unload_others
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.kernels import attention, matmul, vae_ops
from lightx2v_pack.engine.memory.budget import Host
from lightx2v_pack.engine.memory.decoder import decode_bytes, tae_decode_bytes
from lightx2v_pack.engine.memory.needs import RAM_FIXED_BYTES, Need
from lightx2v_pack.engine.memory.plan import Budget, HostPolicy
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings, SamplingSettings
from safetensors.torch import save_file
from support import checkpoints
from support.pretended_card import pretend_card

SHAPE = (16, 1, 4, 4)


def load(mode="auto"):
    settings = EngineSettings(engine="portable")
    return pipeline.load_checkpoint(
        checkpoints.repository(), precision="bf16", settings=settings, offload=OffloadSettings(mode=mode)
    )


@pytest.fixture
def loaded():
    return load()


def test_loading_a_checkpoint_reads_no_weights(loaded):
    assert not any(handle.is_loaded for handle in (loaded.transformer, loaded.text_encoder, loaded.vae))


def test_weights_stay_for_the_next_run_and_go_when_told(loaded):
    handle = loaded.transformer
    engine = handle.acquire(SHAPE, Hooks())
    assert handle.acquire(SHAPE, Hooks()) is engine
    handle.unload()
    assert not handle.is_loaded
    with pytest.raises(AssertionError, match="before load"):
        engine.predict_flow(torch.zeros(SHAPE), 1000.0, torch.zeros(512, 64), Hooks())
    handle.unload()
    assert handle.acquire(SHAPE, Hooks()) is not engine


def test_weights_go_with_the_last_reference_at_once():
    loaded = load()
    engine = loaded.transformer.acquire(SHAPE, Hooks())
    gc.disable()
    try:
        del loaded
        with pytest.raises(AssertionError, match="before load"):
            engine.predict_flow(torch.zeros(SHAPE), 1000.0, torch.zeros(512, 64), Hooks())
    finally:
        gc.enable()


def test_the_text_encoder_is_gone_after_encoding(loaded):
    pipeline.encode_text(loaded.text_encoder, "a red fox", hooks=Hooks())
    assert not loaded.text_encoder.is_loaded


def test_what_the_text_encoder_holds_is_predicted_once(loaded, monkeypatch):
    """Its weights lie in RAM before the stage `encode` begins."""
    monkeypatch.setattr(pipeline, "encoding_need", lambda num_bytes, device: Need(vram=0, ram=100 * GIB))
    rows = pipeline.encode_text(loaded.text_encoder, "a red fox", hooks=Hooks())
    loading, encoding = pipeline.report_of(rows)["stages"]
    assert (loading["stage"], encoding["stage"]) == ("load_text_encoder", "encode")
    assert 100 * GIB < loading["predicted_ram_bytes"] < 110 * GIB
    assert encoding["predicted_ram_bytes"] < 10 * GIB


def test_frames_without_ram_are_refused_and_the_latents_stay(loaded, monkeypatch):
    latents = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    video = pipeline.decode(loaded.vae, latents, hooks=Hooks())
    assert torch.equal(video, torch.cat([pipeline.decode(loaded.vae, clip[None], hooks=Hooks()) for clip in latents]))
    monkeypatch.setattr(system, "free_ram_bytes", lambda: 1000)
    with pytest.raises(NothingFitsError, match=r"The frames of 3 clips of .* do not fit in RAM"):
        pipeline.decode(loaded.vae, latents, hooks=Hooks())


def test_the_host_makes_room_for_a_decode_only_where_that_helps(loaded):
    claims = []
    latents = torch.zeros(1, *SHAPE)
    pipeline.decode(loaded.vae, latents, hooks=Hooks(), host=Host(claim=lambda _, num_bytes: claims.append(num_bytes)))
    assert claims == [0]


def test_room_is_made_by_unloading_the_others(loaded):
    loaded.transformer.acquire(SHAPE, Hooks())
    loaded.vae.acquire(Hooks())
    unload_others(loaded.vae)
    assert loaded.vae.is_loaded
    assert not loaded.transformer.is_loaded


class Fake:
    """An engine that takes no memory."""

    def __init__(self, placement):
        self.placement = placement

    def load(self, *_):
        pass

    def unload(self):
        pass


@pytest.fixture
def small_card(monkeypatch):
    """A card on which the tiny transformer is loaded, in name only."""
    pretend_card(monkeypatch, "NVIDIA GeForce RTX 4060", (8, 9), 8, 7)
    monkeypatch.setattr(engines, "build_transformer", lambda files, settings, placement: Fake(placement))


def test_what_is_held_counts_as_free_for_the_next_run(small_card):
    """Otherwise a second run on a machine with little memory would fall back to a slower mode."""
    before = held()
    transformer = load("block").transformer
    assert held() == before
    transformer.acquire(SHAPE, Hooks())
    weights = transformer.weights
    assert transformer.ram_bytes == 2 * weights.block + RAM_FIXED_BYTES
    assert transformer.num_bytes == pytest.approx(weights.others + 2 * weights.block, abs=2 * 2**21)
    assert held().ram == before.ram + transformer.ram_bytes and held().vram == before.vram + transformer.num_bytes
    assert held(without=transformer) == before
    transformer.unload()
    assert held() == before


def test_another_plan_loads_anew_and_the_same_one_does_not(small_card):
    handle = load().transformer
    first = handle.acquire(SHAPE, Hooks())
    assert first.placement.mode == "none"
    assert handle.acquire(SHAPE, Hooks()) is first
    flags = Host(policy=HostPolicy(prefer="least"))
    second = handle.acquire(SHAPE, Hooks(), handle.plan((1, *SHAPE), flags))
    assert second.placement.mode == "phase"
    # So few tokens compute for less time than their weights are transferred.
    assert handle.acquire(SHAPE, Hooks()).placement.mode == "none"


def test_another_checkpoint_leaves_before_one_loads_that_has_no_room_beside_it(monkeypatch):
    first, second = load().transformer, load().transformer
    first.acquire(SHAPE, Hooks())
    monkeypatch.setattr(handles, "find_budget", lambda *_, **__: Budget(vram=None, ram=int(1.35 * GIB)))
    budget_holds_one = second.plan((1, *SHAPE), Host()).needs["sample"].fits
    assert budget_holds_one(Budget(vram=None, ram=int(1.35 * GIB)))
    run_sample(second)
    assert first.is_loaded  # on a CPU weights are mapped and take no room
    monkeypatch.setattr(handles.TransformerHandle, "ram_bytes", GIB)
    run_sample(second)
    assert second.is_loaded and not first.is_loaded


def run_sample(handle):
    settings = SamplingSettings(seed=1, steps=1)
    pipeline.sample(handle, torch.zeros(1, 1, 64), torch.zeros(1, *SHAPE), settings, hooks=Hooks())


def test_a_load_that_fails_leaves_nothing(loaded):
    def cancel(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loaded.transformer.acquire(SHAPE, Hooks(check_interrupt=cancel))
    assert not loaded.transformer.is_loaded


def test_a_missing_part_is_an_error_only_when_it_is_used(tmp_path):
    folder = checkpoints.single_file("fp8")
    alone = tmp_path / folder.name
    alone.symlink_to(folder)
    found = pipeline.load_checkpoint(alone, settings=EngineSettings(engine="portable"), offload=OffloadSettings())
    assert found.transformer.num_bytes > 0
    with pytest.raises(CheckpointError, match="VAE is missing"):
        pipeline.decode(found.vae, torch.zeros(1, *SHAPE), hooks=Hooks())
    with pytest.raises(CheckpointError, match="text encoder is missing"):
        pipeline.encode_text(found.text_encoder, "a red fox", hooks=Hooks())


@pytest.fixture
def h200(monkeypatch):
    """A card with everything that runs fast on it, LightX2V included; nothing has run yet."""
    packages = {"triton": "3.6.0", "sageattention": "2.2.0"}
    pretend_card(monkeypatch, "NVIDIA H200", (9, 0), 140, 138, packages=packages, has_lightx2v=True)
    monkeypatch.setattr(trials, "_failed_trials", {})
    trials.trial_problem.cache_clear()
    yield torch.device("cuda", 0)
    trials.trial_problem.cache_clear()


def test_the_next_plan_knows_that_sage_does_not_run_in_place(h200, monkeypatch):
    files = load().transformer.files
    expected = handles.run_sizes(files, EngineSettings(), (1, *SHAPE))
    assert (expected.attention, expected.path) == ("sage_attn2_in_place", "lightx2v")
    for settings in (EngineSettings(compile="off"), EngineSettings(compile="off", engine="portable")):
        assert handles.run_sizes(files, settings, (1, *SHAPE)).attention == "sage_attn2"
    monkeypatch.setattr(attention, "trial_problem", lambda *_: "its trial run failed")
    assert attention.select_in_place("sage_attn2", h200, attention._sage_in_place) is None
    assert handles.run_sizes(files, EngineSettings(), (1, *SHAPE)).attention == "sage_attn2"


def broken(*_):
    raise RuntimeError("Failed to find C compiler.")


@pytest.mark.parametrize(
    ("task", "select", "expected"),
    [
        ("VAE kernels", vae_ops.select_ops, ("triton", "sage_attn2_in_place", "scaled_mm")),
        ("blocks", partial(select_blocks.select_ops, "auto"), ("torch", "sage_attn2", "scaled_mm")),
        ("attention", partial(attention.select_attention, "auto", is_fused=True), ("triton", "sdpa", "scaled_mm")),
        ("fp8 matmul", partial(matmul.select_matmul, "fp8"), ("triton", "sage_attn2_in_place", "dequantize")),
    ],
)
def test_the_next_plan_knows_what_failed_its_trial_run(h200, monkeypatch, task, select, expected):
    def chosen(**settings):
        found = engines.choose_backends("fp8", EngineSettings(**settings))
        return (found.blocks and found.blocks.name, found.attention_memory, found.matmul.name), found.reasons

    assert chosen()[0] == ("triton", "sage_attn2_in_place", "scaled_mm")
    own, _ = chosen(engine="lightx2v", compile="off")
    for module in (vae_ops, select_blocks):
        monkeypatch.setattr(module, "_load_triton", broken)
    for kernels, plain in ((attention._KERNELS, "sdpa"), (matmul._MATMULS, "dequantize")):
        for name in kernels.keys() - {plain}:
            monkeypatch.setitem(kernels, name, broken)
    select(h200)
    names, reasons = chosen()
    assert names == expected
    is_learned = [reason.startswith(task) and "its trial run failed" in reason for reason in reasons]
    assert any(is_learned) == (task != "VAE kernels")
    if task == "attention":
        with pytest.raises(UnsupportedHardwareError, match=r"'sage_attn2' was chosen.*its trial run failed"):
            chosen(attention="sage_attn2")
    else:
        # LightX2V's own compute has block operations and matmuls of its own.
        assert chosen(engine="lightx2v", compile="off")[0] == own


def test_auto_decodes_with_the_faster_decoder(h200):
    for engine, expected in (("auto", "portable"), ("portable", "portable"), ("lightx2v", "lightx2v")):
        assert engines.build_decoder(checkpoints.vae(), engine).describe()["engine"] == expected


def test_lightx2v_needs_the_device_that_everything_computes_on(h200, monkeypatch):
    """ComfyUI's --cpu leaves the card unused."""
    assert engines.choose_engine("auto") == "lightx2v"
    monkeypatch.setattr(system, "compute_device", lambda: torch.device("cpu"))
    assert torch.cuda.is_available() and engines.choose_engine("auto") == "portable"
    with pytest.raises(UnsupportedHardwareError, match="no CUDA device"):
        engines.build_decoder(checkpoints.vae(), "lightx2v")


def test_a_decode_is_planned_for_the_vae_that_the_file_holds(h200, tmp_path):
    shapes = TaeFormat(widths=(32, 16, 8, 8)).shapes()
    tae = tmp_path / "taew2_1.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tae)
    pruned = checkpoints.vae(sizes=replace(checkpoints.tiny.DEFAULT_SIZES, vae_dim=24))
    tiny, light = (handles.VaeHandle(file, "auto", OffloadSettings()) for file in (tae, pruned))
    latents = (1, 16, 21, 60, 104)
    assert tiny.plan(latents, "off", Host()).need.vram == tae_decode_bytes(480, 832, None)
    assert light.plan(latents, "off", Host()).need.vram == decode_bytes(480, 832, None, base_dim=24)
    assert not (tiny.is_loaded or light.is_loaded)
