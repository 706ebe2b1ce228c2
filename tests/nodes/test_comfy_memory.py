"""An owner of weights under ComfyUI's memory manager; the real one is in tests/contract/test_comfyui_server.py."""

import gc
import weakref

import pytest
from lightx2v_pack.engine.memory.needs import Need
from lightx2v_pack.engine.memory.owner import WeightOwner


class Engine:
    """An engine that takes no memory."""

    def unload(self):
        pass


class Weights:
    """An owner with one byte of weights that counts what is done to it."""

    def __init__(self):
        self.is_loaded = False
        self.patcher = None
        self.num_bytes = 1
        self.unloads = 0

    def unload(self):
        self.is_loaded = False
        self.unloads += 1


@pytest.fixture
def memory(host, monkeypatch):
    import comfy.model_management as mm
    from lightx2v_pack.engine.adapters.comfy import memory

    monkeypatch.setattr(mm, "current_loaded_models", [])
    return memory


def test_registering_loads_nothing_and_keeps_one_patcher(memory):
    owner = Weights()
    memory.register(owner)
    patcher = owner.patcher
    memory.register(owner)
    assert owner.patcher is patcher
    assert not owner.is_loaded and patcher.loaded_size() == 0 and patcher.model_size() == 1


def test_what_is_claimed_counts_until_it_is_loaded(memory, monkeypatch):
    import comfy.model_management as mm

    asked = []
    monkeypatch.setattr(mm, "load_models_gpu", lambda models, memory_required: asked.append((models, memory_required)))
    owner = WeightOwner("transformer")
    memory.register(owner, 3000, 500)
    assert asked == [([owner.patcher], 500)]
    assert owner.patcher.model_size() == 3000 and owner.patcher.loaded_size() == 0
    owner.load("key", Engine, lambda _: None, Need(vram=2500, ram=0))
    assert owner.patcher.model_size() == owner.patcher.loaded_size() == 2500
    owner.patcher.detach()
    assert not owner.is_loaded and owner.patcher.loaded_size() == 0
    memory.register(owner, 4000)
    assert owner.patcher.model_size() == 4000


def test_loaded_weights_count_and_detach_drops_them(memory):
    owner = Weights()
    memory.register(owner)
    owner.is_loaded = True
    assert owner.patcher.loaded_size() == 1
    assert owner.patcher.current_loaded_device() == owner.patcher.load_device
    owner.patcher.detach()
    assert not owner.is_loaded and owner.unloads == 1 and owner.patcher.loaded_size() == 0


def test_registering_again_keeps_the_weights(memory):
    """ComfyUI detaches with unpatch_all=False and loads again whenever a loaded model is used once more."""
    owner = Weights()
    memory.register(owner)
    owner.is_loaded = True
    owner.patcher.detach(unpatch_all=False)
    owner.patcher.partially_load(owner.patcher.load_device, 1e32, force_patch_weights=False)
    assert owner.is_loaded and owner.unloads == 0


def test_nothing_keeps_a_owner_that_nobody_refers_to(memory):
    """No cycle between owner and patcher: weights go at once, without the garbage collector."""
    owner = Weights()
    memory.register(owner)
    gone = weakref.ref(owner)
    gc.disable()
    try:
        del owner
        assert gone() is None
    finally:
        gc.enable()


def test_a_patcher_outliving_its_owner_is_harmless(memory):
    owner = Weights()
    memory.register(owner)
    patcher = owner.patcher
    del owner
    patcher.detach()
    assert patcher.loaded_size() == 0 and patcher.model_size() == 1 and patcher.clone() is patcher


def test_without_a_gpu_making_room_unloads_nothing(memory, monkeypatch):
    import comfy.model_management as mm

    calls = []
    monkeypatch.setattr(mm, "free_memory", lambda *arguments: calls.append(arguments))
    memory.make_room(2**60)
    assert not calls
    monkeypatch.setattr(mm, "is_device_cpu", lambda device: False)
    memory.make_room(2**60)
    assert calls == [(2**60, mm.get_torch_device())]


def test_the_policy_follows_the_launch_flags(memory, monkeypatch):
    import comfy.cli_args
    import comfy.model_management as mm
    from lightx2v_pack.engine.constants import GIB

    assert memory.host_policy().prefer == "speed" and memory.host_policy().reserved_vram_bytes is None
    monkeypatch.setattr(mm, "vram_state", mm.VRAMState.NO_VRAM)
    monkeypatch.setattr(comfy.cli_args.args, "reserve_vram", 1.5)
    # Came after 0.3.64.
    monkeypatch.setattr(mm, "MAX_PINNED_MEMORY", 40.0, raising=False)
    policy = memory.host_policy()
    assert (policy.prefer, policy.reserved_vram_bytes, policy.pinned_limit_bytes) == ("least", 3 * GIB // 2, 40)
    monkeypatch.setattr(comfy.cli_args.args, "disable_pinned_memory", True, raising=False)
    assert memory.host_policy().pinned_limit_bytes == 0


def test_the_engine_computes_where_comfyui_does(memory, monkeypatch):
    import comfy.model_management as mm
    import torch
    from lightx2v_pack.engine import system
    from lightx2v_pack.engine.adapters.comfy import host as host_module

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    host_module.follow_host_device()
    assert system.compute_device() == torch.device("cpu") and system.free_vram_bytes() is None
    monkeypatch.setattr(mm, "get_torch_device", lambda: torch.device("cuda", 1))
    host_module.follow_host_device()
    assert system.compute_device() == torch.device("cuda", 1)
