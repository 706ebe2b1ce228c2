"""Trial runs of kernels: what they say, and what is remembered of it."""

import pytest
import torch
from lightx2v_pack.engine.backends import trials
from lightx2v_pack.engine.backends.choose import Wanted, choose_fused
from lightx2v_pack.engine.backends.table import ATTENTION_BACKENDS, Machine
from lightx2v_pack.engine.errors import UnsupportedHardwareError
from lightx2v_pack.engine.kernels import attention
from support.cancel import CancelledError
from support.pretended_machine import pretend_machine

CPU = torch.device("cpu")
# Its best attention without packages is cuDNN's, the next one plain torch's.
HOPPER = Machine(capability=(9, 0), problems={"triton": "is broken"})
CUDNN = next(row for row in ATTENTION_BACKENDS if row.name == "sdpa_cudnn")


class Kernel:
    """Fails as often as there are failures, then attends; counts its calls."""

    def __init__(self, *failures):
        self._failures = list(failures)
        self.calls = 0

    def __call__(self, q, k, v):
        self.calls += 1
        if self._failures:
            raise self._failures.pop(0)
        return attention.sdpa(q, k, v)


@pytest.fixture(autouse=True)
def process_without_a_past():
    trials.forget_trials()
    yield
    trials.forget_trials()


@pytest.fixture
def select(monkeypatch):
    """Return a function that chooses an attention on a card for which cuDNN's kernel is the given one."""
    pretend_machine(monkeypatch, HOPPER)

    def confirm(kernel, requested="auto"):
        monkeypatch.setitem(attention.KERNELS, CUDNN.name, kernel)
        return trials.confirm(Wanted(precision="bf16", dim=256, ffn_dim=512, attention=requested), CPU).attention

    return confirm


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
def test_a_full_card_says_nothing_of_a_kernel(select, failure):
    kernel = Kernel(failure)
    with pytest.raises(RuntimeError) as raised:
        select(kernel)
    assert raised.value is failure
    assert not trials.find_machine(CPU).failed_trials
    assert select(kernel).name == "sdpa_cudnn" and kernel.calls == 2


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
def test_a_kernel_that_fails_is_tried_once(select, failure):
    kernel = Kernel(failure)
    for _ in range(2):
        choice = select(kernel)
        assert choice.name == "sdpa" and str(failure) in choice.passed_over["sdpa_cudnn"]
    assert kernel.calls == 1
    with pytest.raises(UnsupportedHardwareError, match="its trial run failed"):
        select(kernel, "sdpa_cudnn")
    trials.forget_trials()
    assert select(kernel).name == "sdpa_cudnn" and kernel.calls == 2


def test_a_kernel_that_passes_is_tried_once(select):
    kernel = Kernel()
    for _ in range(2):
        assert select(kernel).name == "sdpa_cudnn"
    assert kernel.calls == 1


def test_an_exception_that_is_no_kernels_passes_and_is_not_remembered(select):
    """ComfyUI's Cancel is one."""
    kernel = Kernel(CancelledError())
    with pytest.raises(CancelledError):
        select(kernel)
    assert select(kernel).name == "sdpa_cudnn" and kernel.calls == 2


def test_what_failed_is_remembered_for_its_task_and_device(select, monkeypatch):
    select(Kernel(RuntimeError("no C compiler")))
    problem = "its trial run failed (RuntimeError: no C compiler)"
    learned = trials.find_machine(CPU)
    assert learned.failed_trials == {("attention", CUDNN): problem}
    assert (learned.capability, learned.problems) == (HOPPER.capability, HOPPER.problems)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: HOPPER.capability)
    assert trials.find_machine(torch.device("cuda", 0)) == HOPPER


def test_one_row_may_fail_for_one_task_and_serve_another(monkeypatch):
    machine = Machine(capability=(9, 0), packages={"triton": "3.6.0"})
    pretend_machine(monkeypatch, machine)
    choice = choose_fused("one task", machine)
    assert choice.name == "triton"

    def fail(name, device):
        raise RuntimeError("no C compiler")

    trials.trial_problem(trials.Trial("one task", choice.backend, "torch", fail), CPU)
    assert choose_fused("one task", trials.find_machine(CPU)).name == "torch"
    assert choose_fused("another", trials.find_machine(CPU)) == choose_fused("another", machine)
