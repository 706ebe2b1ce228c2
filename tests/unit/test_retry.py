"""Out of GPU memory: the stage runs once more under a cheaper plan, with the same result; twice is an error."""

import logging
import weakref
from dataclasses import replace

import pytest
import torch
from lightx2v_pack.engine import engines, pipeline
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.engine.handles import TransformerHandle
from lightx2v_pack.engine.interfaces import Hooks, Host
from lightx2v_pack.engine.memory import room
from lightx2v_pack.engine.memory.clip import Clip
from lightx2v_pack.engine.memory.needs import Budget
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings, SamplingSettings
from lightx2v_pack.engine.system import is_out_of_memory
from support import checkpoints
from support.cancel import Cancelled, CancelledError
from support.engine import conditioning_of
from support.tensors import normal
from support.wan_14b import make_sizes

SHAPE = (1, 16, 2, 6, 8)
FULL_SIZE = make_sizes(Clip(width=832, height=480, num_frames=81))
OOM = "CUDA out of memory. Tried to allocate 2.00 GiB."


def out_of_memory():
    return torch.cuda.OutOfMemoryError(OOM)


class Troubled:
    """A real engine that fails when a method is called for the nth time."""

    def __init__(self, engine, method, call, failure):
        self._engine = engine
        self._left = {method: call}
        self._failure = failure
        self.witness = None

    def __getattr__(self, name):
        found = getattr(self._engine, name)
        if name not in self._left:
            return found

        def call(*arguments):
            self._left[name] -= 1
            if self._left[name] == 0:
                held = torch.zeros(10)
                self.witness = weakref.ref(held)
                raise self._failure()
            return found(*arguments)

        return call


@pytest.fixture
def loaded(monkeypatch):
    """The tiny checkpoint, planned for as if it were the 14B model on a card; its engines compute on the CPU."""
    budget = Budget(vram=23 * GIB, ram=32 * GIB)
    monkeypatch.setattr(room, "find_budget", lambda *_, **__: budget)
    monkeypatch.setattr(TransformerHandle, "sizes", lambda _, clip, backends: replace(FULL_SIZE, backends=backends))
    found = pipeline.load_checkpoint(
        checkpoints.repository(), settings=EngineSettings(engine="portable"), offload=OffloadSettings()
    )
    return found


@pytest.fixture
def trouble(monkeypatch):
    """Let the next engines of a kind fail, so many `times`; returns them as they are made."""

    def install(kind, method, call=1, failure=out_of_memory, times=1):
        made = []
        build = getattr(engines, f"build_{kind}")

        def build_troubled(*arguments):
            for earlier in made:
                assert earlier.witness is None or earlier.witness() is None, (
                    "the failed attempt holds on to its tensors"
                )
            engine = build(*arguments)
            made.append(Troubled(engine, method if len(made) < times else "", call, failure))
            return made[-1]

        monkeypatch.setattr(engines, f"build_{kind}", build_troubled)
        return made

    return install


def sample(loaded, make_room=lambda num_bytes: None):
    rooms, steps = [], []

    def record_room(num_bytes):
        rooms.append(num_bytes)
        make_room(num_bytes)

    samples = pipeline.sample(
        loaded.transformer,
        [conditioning_of(torch.ones(3, 64))],
        torch.zeros(SHAPE),
        SamplingSettings(seed=5),
        hooks=Hooks(on_step=lambda step, *_: steps.append(step)),
        host=Host(make_room=record_room),
    )
    return samples, steps, rooms


@pytest.mark.parametrize(
    ("method", "call", "steps"), [("predict_flow", 3, [1, 2, 1, 2, 3, 4]), ("load", 1, [1, 2, 3, 4])]
)
def test_sampling_is_retried_under_a_cheaper_plan_with_the_same_result(loaded, trouble, caplog, method, call, steps):
    expected, _, _ = sample(loaded)
    assert pipeline.report_of(expected)["stages"][-1]["details"]["plan"]["mode"] == "none"
    loaded.transformer.unload()
    made = trouble("transformer", method, call)
    with caplog.at_level(logging.INFO):
        samples, seen, rooms = sample(loaded)
    assert torch.equal(samples, expected) and seen == steps
    assert len(made) == 2 and len(rooms) == 1 and rooms[0] > 0
    details = pipeline.report_of(samples)["stages"][-1]["details"]
    assert details["plan"]["mode"] == details["offload"] == "block"
    assert len(details["step_seconds"]) == 1
    warning = next(record for record in caplog.records if record.levelno == logging.WARNING and "room" in record.name)
    assert "sampling ran out of GPU memory (CUDA out of memory)" in warning.message
    assert details["plan"]["line"] in warning.message


def test_running_out_twice_is_torchs_error_with_advice(loaded, trouble):
    made = trouble("transformer", "predict_flow", times=2)
    with pytest.raises(torch.cuda.OutOfMemoryError) as error:
        sample(loaded)
    assert str(error.value).startswith(OOM) and "vram_budget_gib" in str(error.value)
    assert isinstance(error.value.__cause__, torch.cuda.OutOfMemoryError)
    assert len(made) == 2 and not loaded.transformer.owner.is_loaded


def test_without_room_for_a_retry_the_error_is_torchs(loaded, trouble, monkeypatch):
    made = trouble("transformer", "predict_flow")
    full = Budget(vram=1, ram=32 * GIB)

    def fill(_):
        monkeypatch.setattr(room, "find_budget", lambda *_, **__: full)

    with pytest.raises(torch.cuda.OutOfMemoryError, match="There is no room for a retry") as error:
        sample(loaded, fill)
    assert len(made) == 1
    # What each mode would need, and what is there.
    text = str(error.value)
    assert text.startswith(OOM) and "\n  phase: " in text and "There are 0.0 GiB of VRAM and 32.0 GiB of RAM." in text


def test_the_retry_fits_what_another_program_left(loaded, trouble, monkeypatch):
    """It took most of the card between the plan and the run."""
    expected, _, _ = sample(loaded)
    loaded.transformer.unload()
    made = trouble("transformer", "load")
    left = Budget(vram=int(4.2 * GIB), ram=32 * GIB)

    def fill(_):
        monkeypatch.setattr(room, "find_budget", lambda *_, **__: left)

    samples, _, _ = sample(loaded, fill)
    plan = pipeline.report_of(samples)["stages"][-1]["details"]["plan"]
    assert torch.equal(samples, expected) and len(made) == 2
    assert plan["needs"]["sample"]["vram_bytes"] < left.vram
    # The next run starts from what is there now and keeps what is loaded.
    sample(loaded)
    assert len(made) == 2


@pytest.mark.parametrize("times", [1, 2])
def test_what_only_looks_like_a_lack_of_memory_is_raised_as_it_is(loaded, trouble, times):
    words = "GET was unable to find an engine to execute this computation"
    trouble("transformer", "predict_flow", failure=lambda: RuntimeError(words), times=times)
    if times == 1:
        assert sample(loaded)[0].isfinite().all()
        return
    with pytest.raises(RuntimeError) as error:
        sample(loaded)
    assert str(error.value) == words and not isinstance(error.value, torch.cuda.OutOfMemoryError)


@pytest.mark.parametrize("failure", [CancelledError, Cancelled, lambda: RuntimeError("shapes differ"), KeyError])
def test_everything_else_passes(loaded, trouble, failure):
    made = trouble("transformer", "predict_flow", failure=failure)
    with pytest.raises(BaseException) as error:
        sample(loaded)
    assert isinstance(error.value, (CancelledError, Cancelled, RuntimeError, KeyError))
    assert not isinstance(error.value, torch.cuda.OutOfMemoryError)
    assert len(made) == 1


def test_a_decode_is_retried_in_tiles(loaded, trouble):
    latents = normal(*SHAPE, seed=1)
    expected = pipeline.decode(loaded.vae, latents, hooks=Hooks())
    loaded.vae.unload()
    made = trouble("decoder", "prepare")
    frames = pipeline.decode(loaded.vae, latents, hooks=Hooks())
    assert torch.equal(frames, expected)  # no larger than a tile
    assert pipeline.report_of(frames)["stages"][-1]["details"]["tiled"]
    assert len(made) == 2


def test_an_encode_is_retried_in_tiles(loaded, trouble):
    frames = torch.rand(5, 48, 64, 3)
    expected = pipeline.encode_video(loaded.vae, frames, hooks=Hooks())
    loaded.vae.unload()
    made = trouble("encoder", "finish")
    latents = pipeline.encode_video(loaded.vae, frames, hooks=Hooks())
    assert torch.equal(latents, expected)  # no larger than a tile
    assert pipeline.report_of(latents)["stages"][-1]["details"]["tiled"]
    assert len(made) == 2


def test_the_prompt_is_encoded_on_the_cpu_where_the_gpu_is_full(loaded, trouble):
    expected = pipeline.encode_text(loaded.text_encoder, "a red fox", hooks=Hooks())
    trouble("text_encoder", "load")
    rows = pipeline.encode_text(loaded.text_encoder, "a red fox", device="gpu", hooks=Hooks())
    assert torch.equal(rows, expected) and not loaded.text_encoder.owner.is_loaded


@pytest.mark.parametrize(
    ("text", "is_oom"),
    [
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", True),
        ("GET was unable to find an engine to execute this computation", True),
        ("Triton Error [CUDA]: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasGemmEx( handle, ...)`", False),
        ("[enforce fail at alloc_cpu.cpp:83] . DefaultCPUAllocator: can't allocate memory", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_what_libraries_say_when_the_gpu_is_full(text, is_oom):
    assert is_out_of_memory(RuntimeError(text)) is is_oom
