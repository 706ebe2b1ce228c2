"""Weights that come and go: every mode computes the same, and an aborted pass leaves nothing wrong behind.

The device here is the CPU, whose streams and events (torch.cpu) do nothing, so order is checked by a
recording stand-in; races on a real GPU are tests/gpu/test_portable_gpu.py.
"""

import gc
import weakref

import pytest
import torch
from lightx2v_pack.engine.adapters import streaming
from lightx2v_pack.engine.adapters.portable.streaming import settle
from lightx2v_pack.engine.adapters.streaming import FileHome, HostBuffer, RamHome, Streamed, TensorSpec, Unit
from lightx2v_pack.engine.interfaces import Hooks
from torch.nn import Linear

CPU = torch.device("cpu")
WIDTH = 8


class Cancelled(BaseException):
    """Stands for the host's interrupt."""


class Block(torch.nn.Module):
    """A residual block with parameters of several sizes and dtypes."""

    def __init__(self, hidden):
        super().__init__()
        self.up = Linear(WIDTH, hidden)
        self.down = Linear(hidden, WIDTH)
        self.gain = torch.nn.Parameter(torch.randn(WIDTH).bfloat16())

    def forward(self, x, shift=0.0):
        return x + self.gain * self.down(torch.tanh(self.up(x))) + shift


class Stack(torch.nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.head = Linear(WIDTH, WIDTH)
        self.blocks = torch.nn.ModuleList(Block(width) for width in hidden)

    def forward(self, x):
        x = self.head(x)
        for block in self.blocks:
            x = block(x, shift=0.5)
        return x


class DictSource:
    """A source that counts what is read."""

    def __init__(self, tensors):
        self.tensors = tensors
        self.reads = []
        self.closed = 0

    def read(self, spec):
        self.reads.append(spec.name)
        return self.tensors[spec.name].to(spec.dtype)

    def close(self):
        self.closed += 1


def specs_of(model):
    return [TensorSpec(name, tensor.dtype, tensor.shape) for name, tensor in model.named_parameters()]


def make_stack(hidden=(16, 16, 32)):
    """Return a model with weights, the same on the meta device, and a source of the weights."""
    torch.manual_seed(0)
    model = Stack(hidden).requires_grad_(False)
    with torch.device("meta"):
        empty = Stack(hidden).requires_grad_(False)
    return model, empty, DictSource(dict(model.named_parameters()))


def unit_paths(count, parts=()):
    blocks = [f"blocks.{index}" for index in range(count)]
    return [f"{block}.{part}" for block in blocks for part in parts] if parts else blocks


def settled(empty, source, *, mode="none", paths=None, hooks=None):
    return settle(
        empty,
        specs_of(empty),
        unit_paths(len(empty.blocks)) if paths is None else paths,
        mode=mode,
        device=CPU,
        source=source,
        pinned_limit_bytes=None,
        hooks=hooks or Hooks(),
    )


def streamed_stack(home, hidden=(16, 16, 32)):
    """Return a model whose blocks go through two buffers, as on a GPU, with its source and residence."""
    model, empty, source = make_stack(hidden)
    conveyor = settled(empty, source, mode="disk")
    units = [Unit(path, [spec for spec in specs_of(model) if spec.name.startswith(f"{path}.")])
             for path in unit_paths(len(hidden))]  # fmt: skip
    homes = {"ram": lambda: RamHome(units, source, None, Hooks()), "file": lambda: FileHome(units, source)}
    conveyor.residence = Streamed(units, homes[home](), CPU)
    source.reads.clear()
    return model, empty, source, conveyor


X = torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH)


@pytest.mark.parametrize("mode", ["none", "block", "phase", "disk"])
def test_every_mode_computes_the_same(mode):
    model, empty, source = make_stack()
    paths = unit_paths(3, parts=("up", "down")) if mode == "phase" else None
    settled(empty, source, mode=mode, paths=paths)
    assert torch.equal(empty(X), model(X))
    assert torch.equal(empty(X), model(X))


def test_moved_bytes_counts_every_copy_once():
    model, empty, _, conveyor = streamed_stack("ram", (16, 16, 32))
    paths = unit_paths(3)
    units = [Unit(path, [spec for spec in specs_of(model) if spec.name.startswith(f"{path}.")]) for path in paths]
    first, *others = (unit.num_bytes for unit in units)
    for passes in (1, 2):
        empty(X)
        # After the last unit the first one is fetched again for the next pass.
        assert conveyor.residence.moved_bytes == first + passes * (sum(others) + first)


@pytest.mark.parametrize("home", ["ram", "file"])
@pytest.mark.parametrize("hidden", [(16,), (16, 16), (16, 40, 16), (8, 16, 24, 32, 40)], ids=str)
def test_streaming_computes_the_same_pass_after_pass(home, hidden):
    model, empty, _, _ = streamed_stack(home, hidden)
    for _ in range(3):
        assert torch.equal(empty(X), model(X))


@pytest.mark.parametrize("home", ["ram", "file"])
def test_a_pass_that_was_cancelled_leaves_a_usable_model(home):
    model, empty, _, conveyor = streamed_stack(home, hidden=(16, 16, 32, 8, 16))
    for stop_at in range(5):
        calls = iter(range(5))

        def check(calls=calls, stop_at=stop_at):
            if next(calls) == stop_at:
                raise Cancelled

        conveyor.check_interrupt = check
        with pytest.raises(Cancelled):
            empty(X)
        conveyor.check_interrupt = lambda: None
        assert torch.equal(empty(X), model(X))


def test_a_unit_that_fails_leaves_a_usable_model(monkeypatch):
    model, empty, _, _ = streamed_stack("ram")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "tanh", lambda x: x.this_does_not_exist)
        with pytest.raises(AttributeError):
            empty(X)
    assert torch.equal(empty(X), model(X))


def test_the_next_unit_is_on_its_way_while_one_computes():
    """Disk: each unit is read once a pass, one ahead, and the first one again for the next pass."""
    _, empty, source, _ = streamed_stack("file")
    order = []
    for block in empty.blocks:
        block.inner.register_forward_pre_hook(lambda *_: order.append(len({name[:8] for name in source.reads})))
    empty(X)
    names = [name[:8] for name in source.reads if name.endswith("gain")]
    assert names == ["blocks.0", "blocks.1", "blocks.2", "blocks.0"]
    assert order == [1, 2, 3]
    empty(X)
    assert len([name for name in source.reads if name.endswith("gain")]) == 7


def test_two_buffers_serve_all_units():
    _, empty, _, conveyor = streamed_stack("ram", hidden=(8, 64, 16, 8))
    buffers = {slot.buffer.data_ptr() for slot in conveyor.residence._slots}
    seen = set()
    for block in empty.blocks:
        block.inner.register_forward_pre_hook(lambda module, _: seen.add(module.gain.data_ptr()))
    empty(X)
    assert len(buffers) == 2
    assert seen == buffers
    assert all(parameter.device.type == "meta" for parameter in empty.blocks.parameters())


def test_copies_wait_for_compute_and_compute_for_copies(monkeypatch):
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
    _, empty, _, conveyor = streamed_stack("ram", hidden=(8, 8, 8, 8))
    slots = conveyor.residence._slots
    log.clear()
    for index, block in enumerate(empty.blocks):
        block.inner.register_forward_pre_hook(lambda *_, index=index: log.append(("use", index, current[0])))
    empty(X)
    last = len(log)
    for position, (kind, what, stream) in enumerate(log):
        if kind == "use":
            slot = slots[(what + 1) % 2]  # the first unit goes into the buffer that is not current at the start
            assert ("wait", slot.filled, "compute") in log[:position]
            following = log[position + 1 : last]
            assert following[0] == ("record", slot.used, "compute")
        if kind == "record" and stream == "copy":
            slot = next(slot for slot in slots if slot.filled is what)
            assert log[position - 1] == ("wait", slot.used, "copy")


def test_interrupt_is_asked_before_every_unit_and_while_loading():
    asked = []
    _, empty, source = make_stack()
    conveyor = settled(empty, source, hooks=Hooks(check_interrupt=lambda: asked.append("load")))
    assert len(asked) >= 3
    conveyor.check_interrupt = lambda: asked.append("run")
    empty(X)
    assert asked.count("run") == 3


def test_progress_counts_to_the_end():
    seen = []
    _, empty, source = make_stack()
    settled(empty, source, hooks=Hooks(on_progress=lambda done, total, what: seen.append((done, total))))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_disk_on_a_cpu_keeps_nothing():
    _, empty, source = make_stack()
    settled(empty, source, mode="disk")
    assert {name.split(".")[0] for name in source.reads} == {"head"}
    closed = source.closed
    empty(X)
    assert source.closed == closed + 3
    assert all(parameter.device.type == "meta" for parameter in empty.blocks.parameters())


def test_dropping_the_model_gives_its_memory_back():
    _, empty, _, conveyor = streamed_stack("ram")
    empty(X)
    refs = [weakref.ref(slot) for slot in conveyor.residence._slots]
    refs += [weakref.ref(buffer) for buffer in conveyor.residence._home._buffers]
    conveyor.residence.close()
    del empty, conveyor
    gc.collect()
    assert [ref() for ref in refs] == [None] * len(refs)


def test_tensors_of_a_unit_are_aligned_and_apart():
    dtypes = {"a": torch.int8, "b": torch.float8_e4m3fn, "c": torch.bfloat16, "d": torch.float32}
    unit = Unit("block", [TensorSpec(f"block.{name}", dtype, torch.Size([3, 7])) for name, dtype in dtypes.items()])
    values = {name: (torch.arange(21) + 21 * index).view(3, 7) for index, name in enumerate(dtypes)}
    buffer = torch.zeros(unit.num_bytes + 100, dtype=torch.uint8)
    unit.pack(buffer, DictSource({f"block.{name}": value.to(dtypes[name]) for name, value in values.items()}))
    for name, view in unit.views(buffer).items():
        assert view.dtype == dtypes[name]
        assert (view.data_ptr() - buffer.data_ptr()) % streaming._ALIGNMENT == 0
        assert torch.equal(view.float(), values[name].to(dtypes[name]).float())
    assert not buffer[unit.num_bytes :].any()


def test_host_memory_is_of_exact_size_in_whole_pages():
    buffer = HostBuffer(1_000_000)
    assert buffer.tensor.data_ptr() % 4096 == 0
    assert 1_000_000 <= buffer.tensor.numel() < 1_000_000 + 65536
    assert buffer.tensor.data_ptr() == buffer.tensor.untyped_storage().data_ptr()
    if not torch.cuda.is_available():
        assert buffer.lock() is False
