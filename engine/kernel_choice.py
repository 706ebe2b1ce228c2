"""From a plan to one whose kernels work and are the fastest here: trial runs, and what `auto` measures.

Every attention and matmul that can take a run's place is timed on a part of the run's own problem, once for each card
with its versions and for each class of sizes; backends/remembered.py keeps it, and backends/choose.py goes by it.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from . import engines
from .backends import remembered, trials
from .backends.choose import (
    ATTENTION,
    IN_PLACE,
    LINEAR_TOKENS,
    Backends,
    Wanted,
    attention_rows,
    choose,
    matmul_rows,
    size_class,
)
from .backends.measure import Timed, time_calls
from .backends.table import Backend, Choice, why_not
from .handles import TransformerHandle
from .interfaces import Hooks
from .kernels.launches import has_display
from .kernels.matmul import Linear, linear
from .kernels.ops import Rotary
from .memory.clip import Clip
from .memory.plan import MemoryPlan
from .memory.room import Room
from .sentences.kernels import Running
from .system import is_surely_out_of_memory, release_memory
from .wan.kernels import Kernels, build_kernels

logger = logging.getLogger(__name__)

# Seconds that may be spent on attention and on linears, compilation apart.
_ATTENTION_LIMIT, _LINEAR_LIMIT = 2.2, 0.6
# Seconds that one call may take, and operations of a multiprocessor in a second, of GeForce cards and times more of
# cards for data centres. So much is timed that a last, half-filled round of programs, and what a kernel does once, no
# longer decide: with a fifth of it on an H200 the pack's own kernels seemed up to 20 % slower than they are.
_ATTENTION_CALL, _LINEAR_CALL = 0.1, 0.05
_OPERATIONS, _MORE = 0.8e12, 5
# Rows of a program, and heads that the kernels which prepare q and k take at a time.
_PROGRAM, _HEADS = 128, 8
# More rows of linears tell nothing more.
_MOST_ROWS = 16_384
# Linears of a block that are dim x dim: q, k, v and o of the self-attention, q and o of the cross-attention.
_SQUARE_LINEARS = 6
_EPS = 1e-6
_DTYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


def settle(
    handle: TransformerHandle, plan: MemoryPlan, clip: Clip, room: Room, device: torch.device, hooks: Hooks
) -> MemoryPlan:
    """Return the plan, or another one where its kernels do not work here or others are faster.

    A transformer that is loaded as planned has run with its kernels.

    Raises:
        UnsupportedHardwareError: what the settings name does not work here.
        NothingFitsError: with what works, nothing fits.
    """
    is_new = _measure(handle.wanted(device, clip), device, hooks)
    if handle.is_loaded_as(plan) and not is_new:
        return plan

    def plan_again() -> MemoryPlan:
        return room.plan_run(handle.sizes_now(clip, device), assume_evicted=False)

    found = plan_again() if is_new else plan
    while not engines.work(found.backends, device, hooks):
        found = plan_again()
    if found.backends.names == plan.backends.names:
        return replace(plan, backends=found.backends)
    logger.info("LightX2V: %s.", found)
    return found


def _measure(wanted: Wanted, device: torch.device, hooks: Hooks) -> bool:
    """Time what `auto` may choose from, unless that was done; returns whether anything was."""
    notes = remembered.notes()
    is_free = (wanted.engine, wanted.attention) == ("portable", "auto") and wanted.tokens
    if not notes.are_kept or not is_free or trials.find_machine(device).capability is None:
        return False
    if not _unmeasured(choose(trials.find_machine(device), wanted), device):
        return False
    backends = trials.settle(wanted, device, hooks)
    begun, num_timed = time.perf_counter(), 0
    for problem in _unmeasured(backends, device):
        time_all = _time_attention if problem == backends.attention.problem else _time_linears
        seconds: dict[str, float] = {}
        try:
            with torch.no_grad():
                seconds = time_all(backends, device, hooks)
        except RuntimeError as error:
            if not is_surely_out_of_memory(error):
                raise
            logger.info("LightX2V: %s", Running.NO_MEMORY_TO_MEASURE(problem=problem))
        release_memory(device)
        if seconds:
            notes.add_times(trials.combination_of(trials.find_facts(device), device), problem, seconds)
            num_timed += len(seconds)
    logger.info("LightX2V: %s", Running.MEASURED(num_timed=num_timed, time=time.perf_counter() - begun))
    return num_timed > 0


def _unmeasured(backends: Backends, device: torch.device) -> list[str]:
    """Return the problems for which nothing was measured here yet."""
    problems = [backends.attention.problem, *([backends.matmul.problem] if backends.matmul.backend.inputs else [])]
    known = trials.find_machine(device).measured
    return [problem for problem in problems if problem not in known]


def _time_attention(backends: Backends, device: torch.device, hooks: Hooks) -> dict[str, float]:
    """Return the seconds of a block's self-attention by back end, for a clip of its class of sizes."""
    wanted = backends.wanted
    tokens, head_dim = wanted.tokens, wanted.dim // wanted.num_heads
    heads = _share(_ATTENTION_CALL, 4 * tokens**2 * head_dim, device, wanted.num_heads)
    if _HEADS < heads < wanted.num_heads:
        heads -= heads % _HEADS
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    q, k, v = (random(tokens, heads, head_dim) for _ in range(3))
    norms = (random(heads * head_dim), random(heads * head_dim))
    angles = random(tokens, head_dim // 2, dtype=torch.float32)
    rotary = Rotary(angles.cos(), angles.sin())

    def reset() -> None:
        for part in (q, k, v):
            part.normal_(generator=generator)

    calls = {}
    for name, kernels in _attentions(backends, device):
        attention = kernels.attention_for(q)
        calls[name] = Timed(call=functools.partial(attention, q, k, v, norms, _EPS, rotary), reset=reset)
    seconds = _time(calls, backends.attention, device, hooks, _ATTENTION_LIMIT)
    scale = wanted.num_heads / heads * (size_class(tokens) / tokens) ** 2
    return {name: each * scale for name, each in seconds.items()}


def _attentions(backends: Backends, device: torch.device) -> Iterator[tuple[str, Kernels]]:
    """Yield the self-attentions that work here, as a block runs them."""
    for row in attention_rows("auto", is_fused=backends.is_fused):
        if not _works(ATTENTION, row, "bf16", device):
            continue
        wanted = replace(backends.wanted, attention=row.name)
        chosen = choose(trials.find_machine(device), wanted)
        if chosen.is_in_place and trials.trial_problem(trials.trial_of(IN_PLACE, row), device) is not None:
            chosen = choose(trials.find_machine(device), wanted)
        yield row.name, build_kernels(chosen)


def _time_linears(backends: Backends, device: torch.device, hooks: Hooks) -> dict[str, float]:
    """Return the seconds of a block's linears by back end, of those that take the same inputs."""
    wanted, inputs = backends.wanted, backends.inputs
    dim, wide = wanted.dim, wanted.ffn_dim
    operations = 2 * (_SQUARE_LINEARS * dim**2 + 2 * dim * wide) * _PROGRAM
    rows = _PROGRAM * _share(_LINEAR_CALL, operations, device, -(-min(wanted.tokens, _MOST_ROWS) // _PROGRAM))
    generator = torch.Generator(device).manual_seed(0)

    def codes(*shape: int) -> torch.Tensor:
        whole = torch.randint(-100, 100, shape, generator=generator, device=device, dtype=torch.int8)
        return whole.to(_DTYPES[inputs])

    def layer(width: int, height: int) -> tuple[torch.Tensor, torch.Tensor, Linear, torch.Tensor]:
        scales = [torch.rand(size, 1, generator=generator, device=device) for size in (rows, height)]
        bias, out = (torch.zeros(size, device=device, dtype=torch.bfloat16) for size in ((height,), (rows, height)))
        return codes(rows, width), scales[0], Linear(codes(height, width), scales[1], bias), out

    layers = [*[layer(dim, dim)] * _SQUARE_LINEARS, layer(dim, wide), layer(wide, dim)]

    def multiply(name: str) -> None:
        for x, scale, weights, out in layers:
            linear(x, scale, weights, out, backend=name)

    calls = {
        row.name: Timed(call=functools.partial(multiply, row.name))
        for row in matmul_rows(wanted, is_fused=backends.is_fused)
        if row.inputs == inputs and _works(backends.matmul.task, row, wanted.precision, device)
    }
    seconds = _time(calls, backends.matmul, device, hooks, _LINEAR_LIMIT)
    return {name: each * LINEAR_TOKENS / rows for name, each in seconds.items()}


def _works(task: str, row: Backend, dtype: str, device: torch.device) -> bool:
    if why_not(row, trials.find_machine(device), dtype, task) is not None:
        return False
    return trials.trial_problem(trials.trial_of(task, row, dtype), device) is None


def _time(
    calls: Mapping[str, Timed], choice: Choice, device: torch.device, hooks: Hooks, limit: float
) -> dict[str, float]:
    """Time calls, the one that the table would take first."""
    ordered = {name: calls[name] for name in sorted(calls, key=lambda name: name != choice.name)}

    def on_failure(name: str, error: Exception) -> None:
        logger.info(
            "LightX2V: %s", Running.NOT_MEASURED(task=choice.task, name=name, reason=str(error).partition("\n")[0])
        )

    def on_progress(done: int) -> None:
        hooks.on_progress(done, len(calls), Running.MEASURING(task=choice.task))

    return time_calls(ordered, device, hooks.check_interrupt, limit, trials.kernel_errors(), on_failure, on_progress)


def _share(seconds: float, operations: int, device: torch.device, most: int) -> int:
    """Return how many heads, or runs of rows, the device computes in about so many seconds in BF16.

    Args:
        operations: of one.
        most: there are.
    """
    rate = _OPERATIONS
    if device.type == "cuda":
        rate *= torch.cuda.get_device_properties(device).multi_processor_count
        rate *= 1 if has_display(device) else _MORE
    return min(most, max(1, int(seconds * rate / operations)))
