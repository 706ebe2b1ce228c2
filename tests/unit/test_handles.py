"""What the loaders return: weights come when needed, go when told, and go with the last reference."""

import gc
import logging
from dataclasses import replace

import pytest
import torch
from lightx2v_pack.engine import engines, handles, pipeline, system
from lightx2v_pack.engine.checkpoints.companions import resolve_vae
from lightx2v_pack.engine.checkpoints.tae import TaeFormat
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.engine.errors import CheckpointError, NothingFitsError, UnsupportedHardwareError
from lightx2v_pack.engine.handles import weight_sizes
from lightx2v_pack.engine.interfaces import Hooks, Host
from lightx2v_pack.engine.memory import room
from lightx2v_pack.engine.memory.clip import Clip
from lightx2v_pack.engine.memory.decoder import decode_bytes, tae_decode_bytes
from lightx2v_pack.engine.memory.needs import RAM_FIXED_BYTES, Budget, Need
from lightx2v_pack.engine.memory.owner import WeightOwner, held, unload_others
from lightx2v_pack.engine.settings import EngineSettings, HostPolicy, OffloadSettings, SamplingSettings
from safetensors.torch import save_file
from support import checkpoints
from support.engine import conditioning_of
from support.pretended_card import pretend_card
from support.tensors import normal

SHAPE = (16, 1, 4, 4)
CLIP = Clip.of_latents((1, *SHAPE))
CPU = torch.device("cpu")


def load(mode="auto"):
    settings = EngineSettings(engine="portable")
    return pipeline.load_checkpoint(
        checkpoints.repository(), precision="bf16", settings=settings, offload=OffloadSettings(mode=mode)
    )


def plan_now(handle, host):
    return handle.room(host).plan_run(handle.sizes_now(CLIP, host.device))


def acquire(handle, hooks=None, **host):
    """Return the loaded transformer of a handle, under the plan that a run would make now."""
    found = Host(**host)
    return handle.load(plan_now(handle, found), found.device, hooks or Hooks())


def predict(engine):
    return engine.predict_flow(torch.zeros(SHAPE), 1000.0, conditioning_of(torch.zeros(3, 64)), Hooks())


@pytest.fixture
def loaded():
    return load()


def test_loading_a_checkpoint_reads_no_weights(loaded):
    assert not any(handle.owner.is_loaded for handle in (loaded.transformer, loaded.text_encoder, loaded.vae))


def test_weights_stay_for_the_next_run_and_go_when_told(loaded):
    handle = loaded.transformer
    engine = acquire(handle)
    assert acquire(handle) is engine
    handle.unload()
    assert not handle.owner.is_loaded
    with pytest.raises(AssertionError, match="before load"):
        predict(engine)
    handle.unload()
    assert acquire(handle) is not engine


def test_weights_go_with_the_last_reference_at_once():
    loaded = load()
    engine = acquire(loaded.transformer)
    gc.disable()
    try:
        del loaded
        with pytest.raises(AssertionError, match="before load"):
            predict(engine)
    finally:
        gc.enable()


def test_the_text_encoder_is_gone_after_encoding(loaded):
    pipeline.encode_text(loaded.text_encoder, "a red fox", hooks=Hooks())
    assert not loaded.text_encoder.owner.is_loaded


def test_what_the_text_encoder_holds_is_predicted_once(loaded, monkeypatch):
    """Its weights lie in RAM before the stage `encode` begins."""
    monkeypatch.setattr(handles, "encoding_need", lambda num_bytes, device: Need(vram=0, ram=100 * GIB))
    rows = pipeline.encode_text(loaded.text_encoder, "a red fox", hooks=Hooks())
    loading, encoding = pipeline.report_of(rows)["stages"]
    assert (loading["stage"], encoding["stage"]) == ("load_text_encoder", "encode")
    assert 100 * GIB < loading["predicted_ram_bytes"] < 110 * GIB
    assert encoding["predicted_ram_bytes"] < 10 * GIB


def test_frames_without_ram_are_refused_and_the_latents_stay(loaded, monkeypatch):
    latents = normal(3, *SHAPE)
    video = pipeline.decode(loaded.vae, latents, hooks=Hooks())
    assert torch.equal(video, torch.cat([pipeline.decode(loaded.vae, clip[None], hooks=Hooks()) for clip in latents]))
    monkeypatch.setattr(system, "free_ram_bytes", lambda: 1000)
    with pytest.raises(NothingFitsError, match=r"The frames of 3 clips of .* do not fit in RAM"):
        pipeline.decode(loaded.vae, latents, hooks=Hooks())


def test_the_host_makes_room_for_a_decode_only_where_that_helps(loaded):
    claims = []
    latents = torch.zeros(1, *SHAPE)
    pipeline.decode(loaded.vae, latents, hooks=Hooks(), host=Host(claim=lambda *claim: claims.append(claim)))
    ((owner, weight_bytes, activation_bytes),) = claims
    assert owner is loaded.vae.owner and weight_bytes > 0 and activation_bytes == 0


def test_room_is_made_by_unloading_the_others(loaded):
    acquire(loaded.transformer)
    loaded.vae.load_decoder(CPU, Hooks())
    unload_others(loaded.vae.owner)
    assert loaded.vae.owner.is_loaded
    assert not loaded.transformer.owner.is_loaded


class Fake:
    """An engine that takes no memory."""

    def __init__(self, placement):
        self.placement = placement

    def load(self, *_):
        pass

    def use_loras(self, *_):
        pass

    def unload(self):
        pass


@pytest.fixture
def small_card(monkeypatch):
    """A card on which the tiny transformer is loaded, in name only."""
    pretend_card(monkeypatch, "NVIDIA GeForce RTX 4060", (8, 9), 8, 7)
    monkeypatch.setattr(engines, "build_transformer", lambda files, backends, placement, device: Fake(placement))


def test_what_is_held_counts_as_free_for_the_next_run(small_card):
    """Otherwise a second run on a machine with little memory would fall back to a slower mode."""
    before = held()
    transformer = load("block").transformer
    assert held() == before
    acquire(transformer)
    weights, owner = weight_sizes(transformer.files), transformer.owner
    assert owner.held.ram == 2 * weights.block + RAM_FIXED_BYTES
    assert owner.num_bytes == pytest.approx(weights.others + 2 * weights.block, abs=2 * 2**21)
    assert held().ram == before.ram + owner.held.ram and held().vram == before.vram + owner.num_bytes
    assert held(without=owner) == before
    transformer.unload()
    assert held() == before


def test_another_plan_loads_anew_and_the_same_one_does_not(small_card):
    handle = load().transformer
    first = acquire(handle)
    assert first.placement.mode == "none"
    assert acquire(handle) is first
    second = acquire(handle, policy=HostPolicy(prefer="least"))
    assert second.placement.mode == "phase"
    # So few tokens compute for less time than their weights are transferred.
    assert acquire(handle).placement.mode == "none"


def test_another_checkpoint_leaves_before_one_loads_that_has_no_room_beside_it(monkeypatch):
    first, second = load().transformer, load().transformer
    acquire(first)
    monkeypatch.setattr(room, "find_budget", lambda *_, **__: Budget(vram=None, ram=int(1.35 * GIB)))
    budget_holds_one = plan_now(second, Host()).needs["sample"].fits
    assert budget_holds_one(Budget(vram=None, ram=int(1.35 * GIB)))
    run_sample(second)
    assert first.owner.is_loaded  # on a CPU weights are mapped and take no room
    monkeypatch.setattr(WeightOwner, "held", property(lambda owner: Need(vram=0, ram=GIB if owner.is_loaded else 0)))
    run_sample(second)
    assert second.owner.is_loaded and not first.owner.is_loaded


def run_sample(handle, hooks=None, **host):
    settings = SamplingSettings(seed=1, steps=1)
    pipeline.sample(
        handle, [conditioning_of(torch.zeros(1, 64))], torch.zeros(1, *SHAPE), settings, hooks=hooks or Hooks(), **host
    )


def test_views_share_what_is_loaded(loaded):
    first = loaded.transformer
    second = first.view()
    assert second is not first and second.owner is first.owner
    reads = []
    hooks = Hooks(on_progress=lambda done, total, what: reads.append(what))
    engine = acquire(first, hooks)
    num_reads = len(reads)
    assert num_reads and acquire(second, hooks) is engine and len(reads) == num_reads
    assert second.owner.is_loaded and second.is_loaded_as(plan_now(second, Host()))
    second.unload()
    assert not first.owner.is_loaded and not first.is_loaded_as(plan_now(first, Host()))
    with pytest.raises(AssertionError, match="before load"):
        predict(engine)


def test_a_view_keeps_the_weights_that_another_handle_loaded():
    transformer = load().transformer
    view = transformer.view()
    engine = acquire(transformer)
    del transformer
    gc.collect()
    assert acquire(view) is engine and predict(engine).isfinite().all()
    del view
    with pytest.raises(AssertionError, match="before load"):
        predict(engine)


def test_a_load_that_fails_leaves_nothing(loaded):
    def cancel(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        acquire(loaded.transformer, Hooks(check_interrupt=cancel))
    assert not loaded.transformer.owner.is_loaded


def test_a_missing_part_is_logged_and_an_error_only_when_it_is_used(tmp_path, caplog):
    folder = checkpoints.single_file("fp8")
    alone = tmp_path / folder.name
    alone.symlink_to(folder)
    found = pipeline.load_checkpoint(alone, settings=EngineSettings(engine="portable"), offload=OffloadSettings())
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for part in ("VAE", "text encoder", "tokenizer"):
        assert any(f"The {part} is missing: expected " in sentence for sentence in said)
    assert weight_sizes(found.transformer.files).total > 0
    with pytest.raises(CheckpointError, match="VAE is missing"):
        pipeline.decode(found.vae, torch.zeros(1, *SHAPE), hooks=Hooks())
    with pytest.raises(CheckpointError, match="text encoder is missing"):
        pipeline.encode_text(found.text_encoder, "a red fox", hooks=Hooks())


@pytest.fixture
def h200(monkeypatch):
    """A card, and LightX2V."""
    pretend_card(monkeypatch, "NVIDIA H200", (9, 0), 140, 138, has_lightx2v=True)
    return torch.device("cuda", 0)


def test_auto_decodes_with_the_faster_decoder(h200):
    files = resolve_vae(checkpoints.vae())
    for engine, expected in (("auto", "portable"), ("portable", "portable"), ("lightx2v", "lightx2v")):
        assert engines.build_decoder(files, engine, h200).describe()["engine"] == expected


def test_lightx2v_is_chosen_by_name_only(h200):
    for engine, expected in (("auto", "portable"), ("portable", "portable"), ("lightx2v", "lightx2v")):
        assert engines.choose_engine(engine, h200) == expected


def test_lightx2v_needs_the_device_that_everything_computes_on(h200):
    """ComfyUI's --cpu leaves the card unused."""
    system.use_cpu_only()
    device = Host().device
    assert torch.cuda.is_available() and device == CPU
    with pytest.raises(UnsupportedHardwareError, match="no CUDA device"):
        engines.build_decoder(resolve_vae(checkpoints.vae()), "lightx2v", device)
    with pytest.raises(UnsupportedHardwareError, match="no CUDA device"):
        engines.choose_engine("lightx2v", device)


def test_a_decode_is_planned_for_the_vae_that_the_file_holds(h200, tmp_path):
    shapes = TaeFormat(widths=(32, 16, 8, 8)).shapes()
    tae = tmp_path / "taew2_1.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tae)
    pruned = checkpoints.vae(sizes=replace(checkpoints.tiny.DEFAULT_SIZES, vae_dim=24))
    clip = Clip(width=832, height=480, num_frames=81)
    for file, expected in (
        (tae, tae_decode_bytes(480, 832, None)),
        (pruned, decode_bytes(480, 832, None, base_dim=24)),
    ):
        handle = pipeline.load_vae(file, offload=OffloadSettings())
        assert handle.room(Host()).plan_vae("decode", clip, handle.files.base_dim, "off").need.vram == expected
        assert not handle.owner.is_loaded
