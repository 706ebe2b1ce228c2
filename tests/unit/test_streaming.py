"""Weights that come and go: every placement gives the same tensors, and an aborted pass leaves nothing wrong behind.

The device here is the CPU, whose streams and events (torch.cpu) do nothing, so order is checked by a
recording stand-in; races on a real GPU are tests/gpu/test_portable_gpu.py.
"""

import ctypes
import gc
import itertools
import mmap
import os
import re
import threading
import time
import weakref
from types import SimpleNamespace

import pytest
import torch
from lightx2v_pack.engine.errors import CheckpointError
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.memory.rounding import ALIGNMENT, round_up
from lightx2v_pack.engine.offload import (
    Joined,
    Unit,
    WeightStreamer,
    load_tensors,
    make_units,
    place_weights,
    reader,
)
from lightx2v_pack.engine.offload import streamer as conveyor
from lightx2v_pack.engine.offload.pinned import HostBuffer, locked_bytes
from lightx2v_pack.engine.offload.residence import Course
from lightx2v_pack.engine.offload.shared import SharedHome
from lightx2v_pack.engine.parallel.channel import Region
from lightx2v_pack.engine.wan.layout import PHASES
from safetensors.torch import save_file
from support.alive import Snapshot, alive, num_bytes, tensors
from support.cancel import CancelAfter, Cancelled
from support.mapped_files import MAPS, mapped_below
from support.sources import FileSource, before_every_read

CPU = torch.device("cpu")
PASSES = 3
PLACES = [
    ("none", 0), ("block", 0), ("block", 1), ("block", 3), ("block", 4), ("block", 5),
    ("phase", 0), ("phase", 3), ("disk", 0), ("disk", 2), ("disk", 3), ("disk", 4),
]  # fmt: skip


class Files(FileSource):
    """Blocks of several sizes and dtypes, one file each, as a source that counts what it converts."""

    def __init__(self, folder, widths):
        generator = torch.Generator().manual_seed(0)
        self.num_layers = len(widths)
        self.paths = []
        for index, width in enumerate(widths):
            block = {
                "modulation": torch.randn(1, 6, 5, generator=generator),
                "self_attn.q.weight": torch.randn(width, 7, generator=generator).to(torch.float8_e4m3fn),
                "self_attn.q.weight_scale": torch.rand(width, 1, generator=generator),
                "norm3.weight": torch.randn(5, generator=generator).double(),
                "cross_attn.k.weight": torch.randn(3, width, generator=generator).bfloat16(),
                "ffn.0.weight": torch.randn(2 * width, 9, generator=generator),
                "ffn.2.bias": torch.randint(-128, 128, (11,), generator=generator, dtype=torch.int8),
            }
            self.paths.append(folder / f"block_{index}.safetensors")
            save_file({f"blocks.{index}.{name}": tensor for name, tensor in block.items()}, self.paths[-1])
        super().__init__(self.paths, {torch.float64: torch.bfloat16})
        self.expected = {spec.name: self.weights[spec.name].to(spec.dtype, copy=True) for spec in self.specs}
        self.converted = []

    def read(self, spec, elements=None):
        count = spec.shape.numel() if elements is None else elements.stop - elements.start
        self.converted.append((spec.name, count))
        return super().read(spec, elements)

    def units(self, mode="block"):
        return make_units(self.specs, self.num_layers, PHASES, mode == "phase")


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path, (16, 40, 16, 24))


@pytest.fixture(autouse=True)
def no_thread_stays():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture
def opened(monkeypatch):
    """Close these conveyors in the end, while what the test has patched still is."""
    conveyors = []
    yield conveyors
    for each in conveyors:
        each.close()


@pytest.fixture
def bring(opened):
    """bring(files, mode, resident_blocks) -> a conveyor whose units go through memory as on a GPU."""

    def load_units(files, mode, resident_blocks=0, hooks=None, finish=None, **placement):
        place = Placement(mode=mode, resident_blocks=resident_blocks, **placement)
        residence = conveyor.load_units(files.units(mode), files, place, CPU, hooks or Hooks(), finish)
        opened.append(WeightStreamer(residence, CPU))
        return opened[-1]

    return load_units


def check_pass(conveyor, files, mode="block", during=lambda index: None):
    """Run all units once and compare their tensors with the files."""
    seen = 0
    for index, unit in enumerate(files.units(mode)):
        with conveyor.unit(index) as tensors:
            during(index)
            for name, tensor in tensors.items():
                expected = files.expected[f"{unit.path}.{name}"]
                assert tensor.dtype == expected.dtype and tensor.shape == expected.shape
                assert torch.equal(tensor.view(torch.uint8), expected.view(torch.uint8)), (index, name)
            seen += len(tensors)
    assert seen == len(files.expected)


class Finish:
    """Changes a weight in 8 bits of each block and its scale, and counts how often it does."""

    def __init__(self):
        self.calls = 0

    def __call__(self, tensors):
        if "self_attn.q.weight" not in tensors:  # another phase
            return
        self.calls += 1
        tensors["self_attn.q.weight"].view(torch.int8).bitwise_xor_(1)
        tensors["self_attn.q.weight_scale"].mul_(2)

    def expect(self, files):
        """Let the files' tensors be expected finished."""
        for name, tensor in files.expected.items():
            if name.endswith("q.weight"):
                tensor.view(torch.int8).bitwise_xor_(1)
            elif name.endswith("q.weight_scale"):
                tensor.mul_(2)


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


# Every placement gives the same tensors


@pytest.mark.parametrize(("mode", "resident_blocks"), PLACES)
def test_every_placement_gives_the_tensors_of_the_files(bring, files, mode, resident_blocks):
    conveyor = bring(files, mode, resident_blocks)
    for _ in range(PASSES):
        check_pass(conveyor, files, mode)


@pytest.mark.parametrize(("mode", "resident_blocks"), PLACES)
def test_on_a_cpu_they_are_mapped(opened, files, mode, resident_blocks):
    opened.append(
        place_weights(files.units(mode), files, Placement(mode=mode, resident_blocks=resident_blocks), CPU, Hooks())
    )
    for _ in range(PASSES):
        check_pass(opened[0], files, mode)
    assert opened[0].moved_bytes == 0


@pytest.mark.parametrize("mode", ["block", "disk"])
@pytest.mark.parametrize("widths", [(16,), (16, 16), (16, 40, 16), (8, 16, 24, 32, 40)], ids=str)
def test_any_number_of_units(bring, tmp_path, mode, widths):
    files = Files(tmp_path, widths)
    conveyor = bring(files, mode)
    for _ in range(PASSES):
        check_pass(conveyor, files)


@pytest.mark.parametrize(("mode", "resident_blocks"), PLACES)
def test_moved_bytes_counts_every_copy_once(bring, files, mode, resident_blocks):
    """Resident units are copied once, and one or two streamed ones too, as both slots hold them; others every pass."""
    sizes = [(unit.block, unit.num_bytes) for unit in files.units(mode)]
    held = sum(size for block, size in sizes if mode == "none" or block < resident_blocks)
    streamed = [size for block, size in sizes if mode != "none" and block >= resident_blocks]
    conveyor = bring(files, mode, resident_blocks)
    assert conveyor.moved_bytes == held
    for number in range(1, PASSES + 1):
        check_pass(conveyor, files, mode)
        # After the last unit the first one is on its way again.
        again = number * sum(streamed) + streamed[0] if len(streamed) > 2 else sum(streamed)
        assert conveyor.moved_bytes == held + again


def test_units_follow_the_order_of_compute(files):
    by_block, by_phase = files.units("block"), files.units("phase")
    assert [(unit.block, unit.phases) for unit in by_block] == [(index, (0, 1, 2)) for index in range(4)]
    assert [(unit.block, unit.phases) for unit in by_phase] == [(i, (phase,)) for i in range(4) for phase in range(3)]
    assert set(by_phase[4].specs) == {"norm3.weight", "cross_attn.k.weight"}
    assert {name for unit in by_phase[:3] for name in unit.specs} == set(by_block[0].specs)


def test_tensors_of_a_unit_are_aligned_and_apart(files):
    (unit, *_) = files.units()
    buffer = torch.zeros(unit.num_bytes + 100, dtype=torch.uint8)
    for value, view in enumerate(unit.views(buffer).values(), start=1):
        assert (view.data_ptr() - buffer.data_ptr()) % ALIGNMENT == 0
        assert not view.view(torch.uint8).any()
        view.view(torch.uint8).fill_(value)
    assert not buffer[unit.num_bytes :].any()


def test_tensors_outside_of_blocks_come_by_their_names(files, monkeypatch):
    found = load_tensors(files.specs, files, CPU, Hooks())
    assert all(torch.equal(found[name].float(), tensor.float()) for name, tensor in files.expected.items())
    unit = Unit("", files.specs)
    (found,) = reader.load_to_device([unit], files, CPU, 0, reader.Progress(Hooks(), 1))
    assert set(found) == set(files.expected)
    assert all(torch.equal(found[name].float(), tensor.float()) for name, tensor in files.expected.items())


# What arrives is finished


@pytest.mark.parametrize(("mode", "resident_blocks"), PLACES)
def test_units_are_finished_once_where_they_rest_in_memory_and_each_time_they_are_read(
    bring, files, mode, resident_blocks
):
    finish = Finish()
    finish.expect(files)
    conveyor = bring(files, mode, resident_blocks, finish=finish)
    for _ in range(PASSES):
        check_pass(conveyor, files, mode)
    num_streamed = 0 if mode == "none" else max(files.num_layers - resident_blocks, 0)
    # Two buffers hold one or two units for good. After the last unit the first one is on its way again.
    arrivals = PASSES * num_streamed + 1 if num_streamed > 2 else num_streamed
    held = files.num_layers - num_streamed
    assert finish.calls == held + (arrivals if mode == "disk" else num_streamed)


@pytest.mark.parametrize("mode", ["none", "block", "disk"])
def test_on_a_cpu_copies_are_finished_and_the_files_stay_as_they_are(opened, files, mode):
    finish, units = Finish(), files.units()
    stored = [path.read_bytes() for path in files.paths]
    finish.expect(files)
    opened.append(place_weights(units, files, Placement(mode=mode), CPU, Hooks(), finish))
    for _ in range(PASSES):
        check_pass(opened[0], files)
    assert [path.read_bytes() for path in files.paths] == stored


def test_what_is_finished_takes_no_second_place(bring, files, host_buffers):
    conveyor = bring(files, "block", finish=Finish())
    before = [buffer.tensor.data_ptr() for buffer in host_buffers()]
    Finish().expect(files)
    check_pass(conveyor, files)
    assert [buffer.tensor.data_ptr() for buffer in host_buffers()] == before and len(before) == files.num_layers
    held = [unit.views(buffer.tensor) for unit, buffer in zip(files.units(), host_buffers(), strict=True)]
    for index, unit in enumerate(held):
        expected = files.expected[f"blocks.{index}.self_attn.q.weight"]
        assert torch.equal(unit["self_attn.q.weight"].view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("mode", ["block", "disk"])
def test_a_unit_that_could_not_be_finished_is_brought_again(bring, files, mode):
    finish, failures = Finish(), [True, False]

    def fail_once(tensors):
        if failures and failures.pop(0):
            raise ZeroDivisionError
        finish(tensors)

    finish.expect(files)
    conveyor = bring(files, mode, finish=fail_once)
    with pytest.raises(ZeroDivisionError):
        check_pass(conveyor, files)
    for _ in range(PASSES):
        check_pass(conveyor, files)


# Streaming


@pytest.mark.slow
def test_two_buffers_as_large_as_the_largest_streamed_unit_serve_all(bring, tmp_path):
    files = Files(tmp_path, (400, 8, 64, 16, 8))
    before, largest = Snapshot(), files.units()[2].num_bytes
    conveyor = bring(files, "block", resident_blocks=1)
    buffers = [each.data_ptr() for each in tensors(before.made_since()) if each.shape == (largest,)]
    seen = []
    for index in range(5):
        with conveyor.unit(index) as weights:
            storage = weights["modulation"].untyped_storage()
            seen.append((storage.data_ptr(), storage.nbytes()))
    resident, *streamed = seen
    assert len(buffers) == 2 and set(streamed) == {(address, largest) for address in buffers}
    assert resident not in streamed


def test_the_first_streamed_unit_comes_while_resident_ones_compute(bring, files):
    conveyor = bring(files, "block", resident_blocks=2)
    held = conveyor.moved_bytes
    with conveyor.unit(0):
        assert conveyor.moved_bytes == held
    assert conveyor.moved_bytes == held + files.units()[2].num_bytes


def test_copies_wait_for_compute_and_compute_for_copies(monkeypatch, bring, tmp_path):
    """The copy into a buffer is queued behind the last use of that buffer, and each use behind its copy."""
    log = []
    current = ["compute"]

    class Event:
        def record(self):
            log.append(("record", self, current[0]))

        def wait(self):
            log.append(("wait", self, current[0]))

        def synchronize(self):
            pass

    class Stream:
        def __init__(self, stream=None):
            pass

        def __enter__(self):
            current[0] = "copy"

        def __exit__(self, *_):
            current[0] = "compute"

    monkeypatch.setattr(torch.cpu, "Event", Event)
    monkeypatch.setattr(torch.cpu, "Stream", Stream)
    monkeypatch.setattr(torch.cpu, "stream", Stream)
    files = Files(tmp_path, (8, 8, 8, 8))
    conveyor = bring(files, "block")
    log.clear()
    check_pass(conveyor, files, during=lambda index: log.append(("use", index, current[0])))
    used_of, last_filled = {}, None
    """The two events of each buffer: the copy into it is done, the last use of it is done."""
    for position, (kind, what, stream) in enumerate(log):
        if kind == "record" and stream == "copy":
            before, used, on = log[position - 1]
            assert (before, on) == ("wait", "copy")
            assert used_of.setdefault(what, used) is used
        if kind == "use":
            filled = [what for kind, what, stream in log[:position] if (kind, stream) == ("wait", "compute")][-1]
            assert filled is not last_filled  # the buffers take turns
            assert log[position + 1] == ("record", used_of[filled], "compute")
            last_filled = filled
    assert len(used_of) == len(set(used_of.values())) == 2 and not used_of.keys() & set(used_of.values())


# Reading ahead from disk


@pytest.fixture
def reads(monkeypatch):
    """Every read of a file: (its name, whether a reader's thread did it)."""
    log = []

    def note(piece):
        log.append((piece.place.path.stem, threading.current_thread() is not threading.main_thread()))

    before_every_read(monkeypatch, note)
    return log


def tensors_in_place(files):
    """How many tensors of a block are read as they are."""
    return sum(files.location(spec) is not None for spec in files.units()[0].specs.values())


@pytest.mark.parametrize("mode", ["none", "block", "disk"])
def test_what_must_be_converted_is_converted_in_pieces(bring, files, monkeypatch, mode):
    """A checkpoint in FP32 takes no more RAM on its way than one in BF16."""
    monkeypatch.setattr(reader, "_PIECE_BYTES", 4)
    conveyor = bring(files, mode)
    check_pass(conveyor, files)
    # Of norm3: five numbers of float64, wanted in bfloat16.
    pieces = [count for name, count in files.converted if name == "blocks.0.norm3.weight"]
    assert sorted(pieces[:3]) == [1, 2, 2]  # in whatever order the threads came to them
    assert all(count <= 2 for _, count in files.converted)


def test_disk_reads_the_next_unit_by_itself_while_one_computes(bring, files, reads):
    conveyor = bring(files, "disk")
    assert not reads
    count = tensors_in_place(files)
    for number in range(PASSES):
        for index in range(files.num_layers):
            with conveyor.unit(index):
                # In the body of the `with` nobody asks for anything; the threads read all the same.
                expected = (number * files.num_layers + index + 2) * count
                wait_for(lambda expected=expected: len(reads) >= expected)
    names = [name for name, _ in reads[::count]]
    assert names[:9] == [f"block_{index % 4}" for index in range(9)]
    assert all(is_reader for _, is_reader in reads)


def test_disk_reads_each_unit_once_a_pass(bring, files, reads):
    conveyor = bring(files, "disk", resident_blocks=1)
    reads.clear()
    for _ in range(PASSES):
        check_pass(conveyor, files)
    conveyor.close()
    once = 3 * tensors_in_place(files)
    assert PASSES * once <= len(reads) <= PASSES * once + 2 * tensors_in_place(files)


@pytest.fixture
def host_buffers(monkeypatch):
    """host_buffers() -> the memory made for copies during the test and still held, in the order of its making."""
    made, make = [], HostBuffer.__init__

    def record(buffer, num_bytes):
        make(buffer, num_bytes)
        made.append(weakref.ref(buffer))

    monkeypatch.setattr(HostBuffer, "__init__", record)
    return lambda: alive(made)


def test_disk_keeps_two_units_in_ram(bring, files, host_buffers):
    conveyor = bring(files, "disk")
    for _ in range(PASSES):
        check_pass(conveyor, files)
        largest = max(unit.num_bytes for unit in files.units())
        assert [buffer.num_bytes for buffer in host_buffers()] == [-(-largest // 4096) * 4096] * 2


def test_a_staging_buffer_is_not_read_into_before_its_last_copy(monkeypatch, bring, files, host_buffers):
    """The copy from a staging buffer is queued, not done, when its next read begins on a thread."""
    copied = threading.Event()

    class Event:
        recorded = False

        def record(self):
            self.recorded = True

        def wait(self):
            pass

        def synchronize(self):
            if self.recorded and threading.current_thread() is not threading.main_thread():
                assert copied.wait(10)

    monkeypatch.setattr(torch.cpu, "Event", Event)
    conveyor = bring(files, "disk")
    with conveyor.unit(0):
        pass

    def holders(index):
        name = "ffn.0.weight"
        expected = files.expected[f"blocks.{index}.{name}"]
        views = [files.units()[index].views(buffer.tensor)[name] for buffer in host_buffers()]
        return [number for number, view in enumerate(views) if torch.equal(view, expected)]

    time.sleep(0.05)
    (first,) = holders(0)
    copied.set()
    wait_for(lambda: holders(2) == [first])


# Stops and errors


@pytest.mark.parametrize(("mode", "resident_blocks"), PLACES)
def test_a_pass_that_was_cancelled_leaves_usable_weights(bring, files, mode, resident_blocks):
    conveyor = bring(files, mode, resident_blocks)
    num_units = len(files.units(mode))
    for stop_at in range(num_units):
        conveyor.check_interrupt = CancelAfter(stop_at)
        with pytest.raises(Cancelled):
            check_pass(conveyor, files, mode)
        conveyor.check_interrupt = lambda: None
        check_pass(conveyor, files, mode)


@pytest.mark.parametrize("mode", ["block", "disk"])
def test_a_unit_that_fails_leaves_usable_weights(bring, files, mode):
    conveyor = bring(files, mode)
    with pytest.raises(ZeroDivisionError), conveyor.unit(0):
        raise ZeroDivisionError
    check_pass(conveyor, files)


def test_cancel_is_heard_while_a_slow_drive_is_waited_for(monkeypatch, bring, files):
    go_on = threading.Event()
    before_every_read(monkeypatch, lambda piece: go_on.wait(10))
    conveyor = bring(files, "disk")
    asked = []

    def check():
        asked.append(time.monotonic())
        if len(asked) == 3:
            raise Cancelled

    conveyor.check_interrupt = check
    with pytest.raises(Cancelled), conveyor.unit(0):
        pass
    assert asked[2] - asked[0] < 5
    go_on.set()
    conveyor.check_interrupt = lambda: None
    check_pass(conveyor, files)


@pytest.mark.parametrize("mode", ["none", "block"])
def test_a_load_can_be_cancelled(monkeypatch, bring, files, host_buffers, mode):
    """All that a load has begun ends with it: its threads, see no_thread_stays, and its memory."""
    go_on = threading.Event()
    before_every_read(monkeypatch, lambda piece: go_on.wait(10))
    asked = []

    def check():
        asked.append(1)
        if len(asked) == 4:
            go_on.set()
            raise Cancelled

    with pytest.raises(Cancelled):
        bring(files, mode, hooks=Hooks(check_interrupt=check))
    gc.collect()
    assert not host_buffers()


def test_progress_counts_to_the_end(bring, files):
    seen = []
    hooks = Hooks(on_progress=lambda done, total, what: seen.append((done, total)))
    for mode, resident_blocks, total in (("none", 0, 4), ("block", 1, 4), ("disk", 3, 3), ("disk", 0, 0)):
        seen.clear()
        bring(files, mode, resident_blocks, hooks)
        assert seen == [(done, total) for done in range(total + 1)]


@pytest.mark.parametrize("mode", ["none", "block"])
def test_a_file_that_shrank_is_named(bring, files, mode):
    content = files.paths[2].read_bytes()
    files.paths[2].write_bytes(content[:-200])
    with pytest.raises(
        CheckpointError, match=r"block_2.safetensors (ends at byte|cannot be read|is another file)"
    ) as found:
        bring(files, mode)
    assert re.search("download (it|the file) again", str(found.value))


def test_many_bad_files_do_not_stop_the_good_ones(bring, monkeypatch, tmp_path):
    """The first unit is slow to read and all others cannot be: the error comes once the first unit is there."""
    files = Files(tmp_path, (8,) * 40)

    def only_the_first(piece):
        if piece.place.path != files.paths[0]:
            raise CheckpointError(f"{piece.place.path} is bad")
        time.sleep(0.02)

    before_every_read(monkeypatch, only_the_first)
    with pytest.raises(CheckpointError, match="is bad"):
        bring(files, "none")


def test_a_file_that_went_is_named_and_the_pass_after_its_return_works(bring, files):
    conveyor = bring(files, "disk")
    content = files.paths[2].read_bytes()
    files.paths[2].unlink()
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"block_2.safetensors (is missing|cannot be read)"):
            check_pass(conveyor, files)
    files.paths[2].write_bytes(content)
    check_pass(conveyor, files)


# How weights are loaded


def test_only_what_must_be_converted_is_mapped(bring, files, tmp_path):
    bring(files, "block", resident_blocks=2)
    converted = sorted(name for name, _ in files.converted)
    assert converted == sorted(name for name in files.expected if name.endswith("norm3.weight"))
    if MAPS.exists():
        assert not mapped_below(tmp_path)


@pytest.mark.parametrize(("mode", "resident_blocks"), [("none", 0), ("block", 2), ("disk", 1)])
def test_large_tensors_are_read_in_pieces(monkeypatch, bring, files, reads, mode, resident_blocks):
    monkeypatch.setattr(reader, "_PIECE_BYTES", 100)
    conveyor = bring(files, mode, resident_blocks)
    check_pass(conveyor, files, mode)
    assert len(reads) > 3 * len(files.expected)


def test_resident_weights_pass_through_little_ram(monkeypatch, bring, host_buffers, tmp_path):
    monkeypatch.setattr(reader, "_PIECE_BYTES", 4096)
    held = []
    before_every_read(monkeypatch, lambda piece: held.append(sum(buffer.num_bytes for buffer in host_buffers())))
    files = Files(tmp_path, (3000,) * 6)
    check_pass(bring(files, "none"), files)
    assert 0 < max(held) <= 2 * 8 * 4096 < sum(unit.num_bytes for unit in files.units()) / 5
    gc.collect()
    assert not host_buffers()


@pytest.mark.parametrize("mode", ["block", "disk"])
def test_passes_run_in_and_out_of_inference_mode(bring, files, mode):
    """ComfyUI runs nodes in it; the threads that read are never in it by themselves."""
    conveyor = bring(files, mode, resident_blocks=1)
    with torch.inference_mode():
        check_pass(conveyor, files)
    check_pass(conveyor, files)


# Page-locked memory


@pytest.fixture
def locks(monkeypatch):
    """Locking as on a GPU: the content of each buffer when it was locked, by its address, as long as it is."""
    log = {}

    def register(address, num_bytes, flags):
        log[address] = torch.frombuffer(bytearray(ctypes.string_at(address, num_bytes)), dtype=torch.uint8)
        return 0

    runtime = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=log.pop)
    for name, value in (("is_available", True), ("synchronize", None), ("cudart", runtime)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    return log


def test_host_memory_is_of_exact_size_in_whole_pages():
    buffer = HostBuffer(1_000_000)
    assert buffer.tensor.data_ptr() % 4096 == 0
    assert 1_000_000 <= buffer.tensor.numel() < 1_000_000 + 65536
    assert buffer.tensor.data_ptr() == buffer.tensor.untyped_storage().data_ptr()
    if not torch.cuda.is_available():
        assert buffer.lock() is False and not buffer.is_locked


def test_blocks_are_locked_once_filled_and_unlocked_when_dropped(bring, files, host_buffers, locks):
    gc.collect()
    conveyor = bring(files, "block")
    units = files.units()
    assert len(locks) == 4 and locked_bytes() == sum(-(-unit.num_bytes // 4096) * 4096 for unit in units)
    addresses = [buffer.tensor.data_ptr() for buffer in host_buffers()]
    for address, unit in zip(addresses, units, strict=True):
        at_lock = unit.views(locks[address])["ffn.0.weight"]
        assert torch.equal(at_lock, files.expected[f"{unit.path}.ffn.0.weight"])
    conveyor.close()
    gc.collect()
    assert not locks and locked_bytes() == 0


def test_the_limit_holds_for_all_that_is_loaded(bring, files, locks):
    sizes = [-(-unit.num_bytes // 4096) * 4096 for unit in files.units()]
    first = bring(files, "block", pinned_limit_bytes=sizes[0] + sizes[1])
    assert locked_bytes() == sizes[0] + sizes[1]
    second = bring(files, "block", pinned_limit_bytes=sizes[0] + sizes[1] + sizes[0])
    assert locked_bytes() == sizes[0] + sizes[1] + sizes[0]
    for each in (first, second):
        check_pass(each, files)


@pytest.mark.parametrize("mode", ["none", "block", "disk"])
def test_nothing_is_locked_with_a_limit_of_zero(bring, files, locks, mode):
    check_pass(bring(files, mode, pinned_limit_bytes=0), files, mode)
    assert not locks


def test_disk_locks_its_two_staging_buffers(bring, files, locks):
    bring(files, "disk")
    assert len(locks) == 2


@pytest.mark.slow
def test_closing_gives_all_memory_back(bring, files, host_buffers):
    for mode in ("block", "disk"):
        before = Snapshot()
        conveyor = bring(files, mode, resident_blocks=1)
        check_pass(conveyor, files)
        made, largest = before.made_since(), max(unit.num_bytes for unit in files.units())
        assert num_bytes(tensors(made)) >= 4 * largest and len(host_buffers()) >= 2
        conveyor.close()
        gc.collect()
        assert not tensors(made) and not host_buffers()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux's shared memory")
@pytest.mark.parametrize("mode", ["block", "phase"])
@pytest.mark.parametrize("resident_blocks", [(0, 0), (1, 3), (2, 0), (1, 4)])
def test_of_two_processes_each_streams_what_does_not_rest_on_its_card(files, opened, mode, resident_blocks):
    """From memory that is there once: as large as that of the one which streams most."""
    region, met = Region.new(), []
    least = Placement(mode=mode, resident_blocks=min(resident_blocks))
    for rank, count in enumerate(resident_blocks):
        shared = SharedHome(Region(os.dup(region.descriptor)), least, rank, 2, met.append)
        place = Placement(mode=mode, resident_blocks=count)
        residence = conveyor.load_units(files.units(mode), files, place, CPU, Hooks(), None, shared)
        opened.append(WeightStreamer(residence, CPU))
    # Also the one that has all of them on its card reads its share.
    assert met == [True, True]
    for _ in range(PASSES):
        for each in opened:
            check_pass(each, files, mode)
    streamed = [unit.num_bytes for unit in files.units(mode) if unit.block >= least.resident_blocks]
    assert os.fstat(region.descriptor).st_size == sum(round_up(size, mmap.PAGESIZE) for size in streamed)


# Two experts


@pytest.fixture
def pair(tmp_path, opened):
    """pair(mode, ...) -> (a conveyor of two sources, their course, files, units), as on a GPU."""
    both = []
    for name, widths in (("high", (16, 40, 16, 24)), ("low", (8, 24, 32, 16))):
        (tmp_path / name).mkdir()
        both.append(Files(tmp_path / name, widths))

    def bring_pair(mode, **placement):
        units = [
            unit
            for name, files in zip(("high", "low"), both, strict=True)
            for unit in make_units(files.specs, files.num_layers, PHASES, mode == "phase", name)
        ]
        source, course = Joined(dict(zip(("high", "low"), both, strict=True))), Course(2)
        residence = conveyor.load_units(units, source, Placement(mode=mode, **placement), CPU, Hooks(), course=course)
        opened.append(WeightStreamer(residence, CPU, course))
        return opened[-1], course, both, units

    return bring_pair


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize(("mode", "resident_blocks"), PLACES)
def test_the_units_of_two_experts_share_the_buffers_and_none_is_waited_for(pair, mode, resident_blocks, reads):
    """The first unit of the expert that is expected comes while the last one of the other computes."""
    pair, course, both, units = pair(mode, resident_blocks=resident_blocks, reads_second_expert=reads)
    length, held = len(units) // 2, pair.moved_bytes
    for expert, then in itertools.pairwise([0, 0, 1, 1, 0, 1, 0]):
        course.then = then
        for number in range(length):
            unit, before = units[expert * length + number], pair.moved_bytes
            with pair.unit(expert * length + number) as tensors:
                # Copied before it is asked for, but for the very first.
                assert pair.moved_bytes == before or before == held
                for name, tensor in tensors.items():
                    expected = both[expert].expected[f"{unit.path}.{name}".partition(".")[2]]
                    assert torch.equal(tensor.view(torch.uint8), expected.view(torch.uint8)), (unit.path, name)


@pytest.mark.parametrize("mode", ["block", "phase", "disk"])
def test_an_expert_that_was_not_expected_comes_all_the_same(pair, mode):
    pair, course, both, units = pair(mode)
    length = len(units) // 2
    for expert in (1, 0, 0, 1, 1, 0):
        course.then = expert  # the wrong one where it changes
        for number in range(length):
            unit = units[expert * length + number]
            with pair.unit(expert * length + number) as tensors:
                for name, tensor in tensors.items():
                    expected = both[expert].expected[f"{unit.path}.{name}".partition(".")[2]]
                    assert torch.equal(tensor.view(torch.uint8), expected.view(torch.uint8)), (unit.path, name)


def test_of_the_second_expert_only_two_units_are_in_ram_where_it_rests_in_its_files(pair, host_buffers):
    pair("block", reads_second_expert=True)
    assert len(host_buffers()) == 4 + 2
