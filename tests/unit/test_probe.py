"""Trial runs of kernels: what they say, and what is remembered of it."""

import pytest
import torch
from lightx2v_pack.engine.backends import trials
from lightx2v_pack.engine.backends.table import Backend, Machine
from lightx2v_pack.engine.backends.trials import after_trials, select_kernel
from lightx2v_pack.engine.errors import UnsupportedHardwareError

CPU = torch.device("cpu")
TABLE = (
    Backend(name="fast", dtypes=frozenset({"bf16"}), rank=2),
    Backend(name="plain", dtypes=frozenset({"bf16"}), rank=1),
)


class Kernel:
    """Fails as often as there are failures, then gives ones; counts its calls."""

    def __init__(self, *failures):
        self._failures = list(failures)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self._failures:
            raise self._failures.pop(0)
        return torch.ones(2)


def run(kernel, device):
    return kernel()


@pytest.fixture(autouse=True)
def process_without_a_past(monkeypatch):
    monkeypatch.setattr(trials, "_failed_trials", {})


def select(kernel, requested="auto", task="task"):
    kernels = {"fast": kernel, "plain": plain}
    choice, _ = select_kernel(task, TABLE, requested, CPU, dtype="bf16", kernels=kernels, reference="plain", trial=run)
    return choice


def plain():
    return torch.ones(2)


@pytest.mark.parametrize(
    "failure",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["torch", "triton", "cuda", "cublas"],
)
def test_a_full_card_says_nothing_of_a_kernel(failure):
    kernel = Kernel(failure)
    with pytest.raises(RuntimeError) as raised:
        select(kernel)
    assert raised.value is failure
    assert not after_trials(Machine(), "task", TABLE, CPU).problems
    assert select(kernel).name == "fast" and kernel.calls == 2


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        ImportError("cannot import name 'kernel'"),
        # May also mean that the card is full, but is more often for good.
        RuntimeError("unable to find an engine to execute this computation"),
        # Triton raises it when a card's shared memory is too small.
        ValueError("out of resource: shared memory, Required: 131072, Hardware limit: 101376"),
    ],
)
def test_a_kernel_that_fails_is_tried_once(failure):
    kernel = Kernel(failure)
    for _ in range(2):
        choice = select(kernel)
        assert choice.name == "plain" and str(failure) in choice.passed_over["fast"]
    assert kernel.calls == 1
    with pytest.raises(UnsupportedHardwareError, match="its trial run failed"):
        select(kernel, "fast")


def test_what_failed_is_remembered_for_its_task_and_device():
    select(Kernel(RuntimeError("no C compiler")), task="attention")
    machine = Machine(capability=(9, 0), problems={"package": "is broken"})
    learned = after_trials(machine, "attention", TABLE, CPU)
    assert learned.problems == {
        "package": "is broken",
        "fast": "its trial run failed (RuntimeError: no C compiler)",
    }
    assert learned.capability == (9, 0)
    for task, device in (("matmul", CPU), ("attention", torch.device("cuda", 0))):
        assert after_trials(machine, task, TABLE, device) == machine
