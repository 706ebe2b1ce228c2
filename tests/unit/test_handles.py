"""What the loaders return: weights come when needed, go when told, and go with the last reference."""

import gc

import checkpoints
import pytest
import torch
from lightx2v_pack.engine import pipeline
from lightx2v_pack.engine.errors import CheckpointError
from lightx2v_pack.engine.handles import held_ram_bytes, unload_others
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings

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


def test_room_is_made_by_unloading_the_others(loaded):
    loaded.transformer.acquire(SHAPE, Hooks())
    loaded.vae.acquire(Hooks())
    unload_others(loaded.vae)
    assert loaded.vae.is_loaded
    assert not loaded.transformer.is_loaded


def test_ram_that_streamed_weights_rest_in_counts_as_free_for_the_next_run():
    """Otherwise a second run on a machine with little RAM would fall back to disk."""
    before = held_ram_bytes()
    transformer = load("block").transformer
    assert held_ram_bytes() == before
    transformer.acquire(SHAPE, Hooks())
    assert transformer.ram_bytes == transformer.files.num_bytes
    assert held_ram_bytes() == before + transformer.files.num_bytes
    transformer.unload()
    assert held_ram_bytes() == before


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
