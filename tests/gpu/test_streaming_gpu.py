"""Streaming on a CUDA device: the right bytes whatever is slow, page-locked memory, and all of it given back."""

import gc
import threading
import time

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.memory.plan import Placement
from lightx2v_pack.engine.offload import load_tensors, make_units, place_weights
from lightx2v_pack.engine.offload.pinned import HostBuffer, locked_bytes
from lightx2v_pack.engine.system import compute_device
from lightx2v_pack.engine.wan.layout import PHASES
from safetensors.torch import save_file
from support.slow_gpu import delay_copies
from support.sources import FileSource, before_every_read

pytestmark = pytest.mark.gpu

DEVICE = compute_device()
NUM_LAYERS = 7
PLACES = [
    ("none", 0), ("block", 0), ("block", 3), ("block", 5), ("block", 6), ("phase", 0), ("phase", 2), ("disk", 0),
    ("disk", 4),
]  # fmt: skip
# 10 ms of GPU time at about 1.7 GHz.
SLEEP = 17_000_000


class Files(FileSource):
    """Blocks of 8 MB, some of it to be converted."""

    def __init__(self, folder):
        generator = torch.Generator().manual_seed(0)
        self.tensors = {}
        for index in range(NUM_LAYERS):
            block = {
                f"blocks.{index}.self_attn.q.weight": torch.randn(2000, 1000, generator=generator).bfloat16(),
                f"blocks.{index}.norm3.weight": torch.randn(1000, generator=generator),
                f"blocks.{index}.ffn.0.weight": torch.randn(1000, 4001, generator=generator).to(torch.float8_e4m3fn),
            }
            self.tensors |= block
            save_file(block, folder / f"block_{index}.safetensors")
        super().__init__(sorted(folder.glob("*.safetensors")), {torch.float32: torch.bfloat16})
        self.expected = {spec.name: self.tensors[spec.name].to(spec.dtype).to(DEVICE) for spec in self.specs}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def bring(files):
    """bring(mode, resident_blocks) -> (units, conveyor), closed in the end."""
    conveyors = []

    def settled(mode, resident_blocks=0, **placement):
        units = make_units(files.specs, NUM_LAYERS, PHASES, mode == "phase")
        place = Placement(mode=mode, resident_blocks=resident_blocks, **placement)
        conveyors.append(place_weights(units, files, place, DEVICE, Hooks()))
        return units, conveyors[-1]

    yield settled
    for conveyor in conveyors:
        conveyor.close()
    assert threading.active_count() == 1


def run_pass(units, conveyor, files, before_use=lambda: None, after_use=lambda: None):
    """Compare all tensors on the device, without waiting for it; returns a flag for each unit."""
    flags = []
    for index, unit in enumerate(units):
        with conveyor.unit(index) as tensors:
            before_use()
            for name, tensor in tensors.items():
                expected = files.expected[f"{unit.path}.{name}"]
                flags.append((tensor.view(torch.uint8) == expected.view(torch.uint8)).all())
            after_use()
    return flags


@pytest.mark.parametrize("slow", ["nothing", "compute", "copies", "reads"])
@pytest.mark.parametrize(("mode", "resident_blocks"), PLACES)
def test_the_right_bytes_whatever_is_slow(bring, files, monkeypatch, mode, resident_blocks, slow):
    """Make one side much slower than the other: a missing wait shows as wrong bytes."""
    units, conveyor = bring(mode, resident_blocks)
    if slow == "copies":
        delay_copies(monkeypatch, SLEEP)
    if slow == "reads":
        before_every_read(monkeypatch, lambda piece: time.sleep(0.005))
    wait = (lambda: torch.cuda._sleep(SLEEP)) if slow == "compute" else (lambda: None)
    flags = [flag for _ in range(3) for flag in run_pass(units, conveyor, files, wait, wait)]
    assert all(bool(flag) for flag in flags)


def test_tensors_outside_of_blocks_are_on_the_device(files):
    found = load_tensors(files.specs, files, DEVICE, Hooks())
    assert all(torch.equal(found[n].view(torch.uint8), t.view(torch.uint8)) for n, t in files.expected.items())


def test_copies_run_beside_compute(bring, files):
    """Where a unit computes for much longer than it is copied, streaming takes no longer than the compute."""
    units, conveyor = bring("block")
    run_pass(units, conveyor, files)
    for _ in range(2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for index in range(len(units)):
            with conveyor.unit(index):
                torch.cuda._sleep(SLEEP)
        torch.cuda.synchronize()
        streamed_seconds = time.perf_counter() - start
    start = time.perf_counter()
    for _ in units:
        torch.cuda._sleep(SLEEP)
    torch.cuda.synchronize()
    assert streamed_seconds < 1.1 * (time.perf_counter() - start)


def requested_bytes():
    """Return what is allocated, without what torch adds where it does not split a block of its cache."""
    return torch.cuda.memory_stats()["requested_bytes.all.current"]


@pytest.mark.parametrize(("mode", "resident_blocks"), PLACES)
def test_closing_gives_all_memory_back(bring, files, mode, resident_blocks):
    gc.collect()
    before, requested, locked = torch.cuda.memory_allocated(), requested_bytes(), locked_bytes()
    units, conveyor = bring(mode, resident_blocks)
    sizes = [unit.num_bytes for unit in units if mode != "none" and unit.block >= resident_blocks]
    held = sum(unit.num_bytes for unit in units) - sum(sizes)
    slots = min(2, len(sizes)) * max(sizes, default=0)
    assert requested_bytes() - requested <= held + slots + 2**10
    run_pass(units, conveyor, files)
    conveyor.close()
    gc.collect()
    assert torch.cuda.memory_allocated() == before
    assert locked_bytes() == locked


def test_weights_in_ram_are_page_locked_up_to_the_limit(bring, files):
    units, conveyor = bring("block")
    assert locked_bytes() == sum(-(-unit.num_bytes // 4096) * 4096 for unit in units)
    conveyor.close()
    assert locked_bytes() == 0
    _, conveyor = bring("block", pinned_limit_bytes=3 * units[0].num_bytes)
    assert 2 * units[0].num_bytes <= locked_bytes() <= 3 * units[0].num_bytes
    assert all(bool(flag) for flag in run_pass(units, conveyor, files))


def test_host_memory_is_page_locked_and_unlocked():
    buffer = HostBuffer(3_000_000)
    assert buffer.lock()
    assert buffer.tensor.is_pinned()
    memory = buffer.tensor
    del buffer
    gc.collect()
    assert not memory.is_pinned()


def test_a_thread_locks_memory_for_all():
    buffer = HostBuffer(3_000_000)
    thread = threading.Thread(target=buffer.lock)
    thread.start()
    thread.join()
    assert buffer.is_locked and buffer.tensor.is_pinned()
    assert torch.equal(buffer.tensor.to(DEVICE, non_blocking=True).cpu(), buffer.tensor)
