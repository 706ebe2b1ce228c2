"""Time what a step is made of: fused operations, matrix products, attentions; and where one whole step goes.

Every back end that runs on this card is measured at the shapes of a clip, operations beside the speed of a copy.
Self-attentions are measured with the RMS norm and RoPE of q and k before them, which some fuse (`alone_ms` is without),
with their temporaries (bytes per token and unit of width, the result included) and their relative L2 error against fp32
on fewer tokens. `profile` takes one step of the whole model under torch's profiler: kernels by name, and how long the
GPU is idle.

    python tools bench kernels --out kernels.jsonl
    python tools bench kernels --parts profile --precision fp8
    python tools bench kernels --dim 256 --ffn-dim 512 --layers 2 --tokens 64 --error-tokens 48 --frames 5   # any CPU
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

from ..arguments import number, whole
from . import harness, pack
from .harness import Bench, Row
from .weights import PRECISIONS

HEAD_DIM, EPS = 128, 1e-6
# Rows of a prompt, and of the padding that stands for the rest.
NUM_KEYS = harness.NUM_WORDS + 2
EIGHT_BITS = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
PARTS = ("ops", "cross", "matmul", "attention", "profile")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp8", help="of the profiled model")
    parser.add_argument("--tokens", type=whole(), help="instead of those of the clip")
    parser.add_argument("--error-tokens", type=whole(), default=5003, help="tokens of the comparison with fp32 (5003)")
    parser.add_argument("--seconds", type=number(), default=0.3, help="how long a kernel is repeated (0.3)")
    parser.add_argument("--top", type=whole(0), default=25, help="kernels of the profile (25)")
    harness.add_clip_options(parser)


@torch.inference_mode()
def measure(bench: Bench) -> Iterator[Row]:
    """Yield the rows of every part."""
    kernels = Kernels(bench)
    for part in bench.options.parts:
        harness.clean_up(bench.device)
        for row in profile(bench) if part == "profile" else getattr(kernels, part)():
            yield {"kind": part, "tokens": kernels.tokens, **row}
            if bench.seconds_left <= 0:
                return


# q, k and v [N, heads, 128] as their linears leave them; weights of the norms, eps, cosines and sines.
Inputs = tuple[list[torch.Tensor], tuple[Any, float, Any]]


class Kernels:
    """Measures at one size; the method named after a part yields a row for each thing that it measured."""

    def __init__(self, bench: Bench) -> None:
        self.options, self.device = bench.options, bench.device
        self.tokens = self.options.tokens or pack.num_tokens(bench.shape)
        self.dim, self.ffn_dim = self.options.dim, self.options.ffn_dim
        self.heads = max(1, self.dim // HEAD_DIM)
        self.machine = pack.find_machine(self.device)
        self.ops_name = pack.choose_fused(pack.BLOCKS, self.machine).name
        self.fused = pack.load_ops(self.ops_name)
        self._generator = torch.Generator(self.device).manual_seed(0)

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator, device=self.device, dtype=dtype)

    def time(self, call: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
        """Return the median milliseconds of a call, `before` each left out; the first two calls warm up."""
        before()
        call()
        before()
        seconds = [self._time_once(call)]
        for _ in range(min(max(int(self.options.seconds / max(seconds[0], 1e-6)), 3), 1000)):
            before()
            seconds.append(self._time_once(call))
        return 1000 * statistics.median(seconds[1:])

    def _time_once(self, call: Callable[[], object]) -> float:
        return harness.event_seconds(call) if self.device.type == "cuda" else harness.timed(call, self.device)[0]

    def ops(self) -> Iterator[Row]:
        """Every operation of a block, with the bytes that it has to move."""
        ops, size = self.fused, self.tokens * self.dim
        x, y = (self.normal(self.tokens, self.dim) for _ in range(2))
        wide = self.normal(-(-self.tokens // 2), self.ffn_dim)
        gate, mul, add = self.normal(3, self.dim, dtype=torch.float32).mul_(0.01)
        angles = self.normal(self.tokens, HEAD_DIM // 2, dtype=torch.float32)
        rotated = 4 * size + 8 * angles.numel()
        rotary, factors = pack.Rotary(angles.cos(), angles.sin()), gate.new_empty(self.tokens)
        calls: list[tuple[str, str, int, Callable[[], object]]] = [
            ("copy", "bf16", 4 * size, lambda: y.copy_(x)),
            ("residual", "bf16", 6 * size, lambda: ops.residual(x, y, gate)),
            ("RMS + RoPE", "bf16", rotated, lambda: ops.rms_rotary(y, mul, EPS, self.heads, rotary)),
            ("RMS factors", "bf16", 2 * size, lambda: ops.row_factors(y, EPS, factors)),
        ]

        def writing(to: str, dtype: torch.dtype | None) -> None:
            out, wide_out = (torch.empty_like(part, dtype=dtype) for part in (x, wide))
            scale, wide_scale = (mul.new_empty(len(part), 1) if dtype else None for part in (x, wide))
            written = out.element_size() * size
            calls.append(("norm", to, 2 * size + written, lambda: ops.norm(x, mul, add, EPS, out, scale)))
            both = lambda: ops.residual_norm(x, y, gate, mul, add, EPS, out, scale)  # noqa: E731
            calls.append(("residual + norm", to, 6 * size + written, both))
            moved = (2 + out.element_size()) * wide.numel()
            calls.append(("GELU", to, moved, lambda: ops.gelu(wide, wide_out, wide_scale)))
            if scale is not None:
                calls.append(("quantize", to, 2 * size + written, lambda: ops.quantize(x, out, scale)))

        writing("bf16", None)
        rows = [row for row in pack.MATMUL_BACKENDS if row.name != "dequantize"]
        for to, dtype in EIGHT_BITS.items():
            if any(pack.why_not(row, self.machine, to) is None for row in rows):
                writing(to, dtype)
        for what, to, num_bytes, call in calls:
            ms = self.time(call)
            by = "torch" if what == "copy" else self.ops_name
            yield {"what": what, "to": to, "by": by, "ms": ms, "gb_per_s": num_bytes / ms / 1e6}

    def matmul(self) -> Iterator[Row]:
        """Every matrix product of a block, by every back end; activations are quantized before."""
        half, dim, ffn, matmul = -(-self.tokens // 2), self.dim, self.ffn_dim, pack.matmul
        for rows, outputs, inputs in ((self.tokens, dim, dim), (half, ffn, dim), (half, dim, ffn)):
            x, wide, bias = self.normal(rows, inputs), self.normal(outputs, inputs), self.normal(outputs)
            out = x.new_empty(rows, outputs)
            calls = [("bf16", "bf16", (x, None, matmul.Linear(wide, None, bias), out))]
            for precision, dtype in EIGHT_BITS.items():
                stored, weight_scale = wide.new_empty(wide.shape, dtype=dtype), bias.new_empty(outputs, 1).float()
                pack.quantize(wide, stored, weight_scale)
                linear = matmul.Linear(stored, weight_scale, bias)
                quantized, scale = x.new_empty(x.shape, dtype=dtype), weight_scale.new_empty(rows, 1)
                pack.quantize(x, quantized, scale)
                for backend in (
                    row.name for row in pack.MATMUL_BACKENDS if not pack.why_not(row, self.machine, precision)
                ):
                    given = (quantized, scale) if backend in matmul.ACTIVATION_DTYPES else (x, None)
                    calls.append((precision, backend, (*given, linear, out)))
            for precision, backend, call in calls:
                row = {"what": f"{rows} x {outputs} x {inputs}", "precision": precision, "by": backend}
                try:
                    ms = self.time(lambda: matmul.linear(*call, backend=backend))  # noqa: B023
                    yield row | {"ms": ms, "tera_op_per_s": 2 * rows * outputs * inputs / ms / 1e9}
                except RuntimeError as error:
                    yield row | {"problem": harness.first_line(error)}

    def attention(self) -> Iterator[Row]:
        """RMS norm, RoPE and self-attention by every back end, and by those that prepare their inputs in place."""
        given, fewer = (self._self_attention_inputs(tokens) for tokens in (self.tokens, self.options.error_tokens))
        exact = attend_exactly(fewer)
        for backend in pack.ATTENTION_BACKENDS:
            row: Row = {"by": backend.name}
            try:
                pack.choose_backend("attention", pack.ATTENTION_BACKENDS, backend.name, self.machine, dtype="bf16")
                attend = pack.attention.KERNELS[backend.name]
                whole = pack.attention.Normed(self.fused, attend)
                may_run = self.machine.capability in backend.in_place_on and self.ops_name == "triton"
                in_place = pack.attention.IN_PLACE[backend.name] if may_run else None
                row["alone_ms"] = self.time(lambda: attend(*(part[None] for part in given[0])))  # noqa: B023
                yield row | self._attended(whole, given, fewer, exact)
                if in_place is not None:
                    yield {"by": f"{backend.name}, in place", **self._attended(in_place, given, fewer, exact)}
            except (pack.LightX2VError, RuntimeError) as error:
                yield row | {"problem": harness.first_line(error)}

    def _self_attention_inputs(self, tokens: int) -> Inputs:
        angles = self.normal(tokens, HEAD_DIM // 2, dtype=torch.float32)
        norms = self.normal(2, self.heads * HEAD_DIM).mul_(0.1).add_(1)
        parts = [self.normal(tokens, self.heads, HEAD_DIM) for _ in range(3)]
        return parts, (norms.unbind(), EPS, pack.Rotary(angles.cos(), angles.sin()))

    def _attended(self, attend: Any, given: Inputs, fewer: Inputs, exact: torch.Tensor) -> Row:
        work: list[torch.Tensor] = []

        def renew() -> None:  # as what computes may overwrite them
            work[:] = [part.clone() for part in given[0]]

        ms = self.time(lambda: attend(*work, *given[1]), before=renew)
        row = {"ms": ms, "tera_op_per_s": 4 * self.tokens**2 * self.dim / ms / 1e9}
        if self.device.type == "cuda":
            renew()
            torch.cuda.synchronize()
            held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            attend(*work, *given[1])
            row["temporaries"] = (torch.cuda.max_memory_allocated() - held) / (self.tokens * self.dim)
        found = attend(*(part.clone() for part in fewer[0]), *fewer[1]).float()
        return row | {"error": float((found - exact).norm() / exact.norm())}

    def cross(self) -> Iterator[Row]:
        """Cross-attention to a short prompt's rows, and that of normalized queries to all rows with padding."""
        q, out = (self.normal(self.tokens, self.heads, HEAD_DIM) for _ in range(2))
        k, v = (self.normal(NUM_KEYS, self.heads, HEAD_DIM) for _ in range(2))
        repeats, factors = pack.TEXT_ROWS - NUM_KEYS + 1, torch.empty(self.tokens, device=self.device)
        self.fused.row_factors(q.flatten(1), EPS, factors)
        ms = self.time(lambda: self.fused.cross_attention(q, factors, k, v, repeats, out))
        yield {"what": f"cross-attention to {NUM_KEYS} rows", "by": self.ops_name, "ms": ms}
        padded = [torch.cat([part, part[-1:].expand(repeats - 1, -1, -1)])[None] for part in (k, v)]
        q = q.mul_(factors[:, None, None])[None]
        difference = float((pack.attention.sdpa(q, *padded)[0] - out).float().norm() / out.float().norm())
        ms = self.time(lambda: pack.attention.sdpa(q, *padded))
        yield {"what": f"cross-attention to {pack.TEXT_ROWS} rows", "by": "sdpa", "ms": ms, "difference": difference}


def attend_exactly(given: Inputs) -> torch.Tensor:
    """Normalize, rotate and attend in fp32 without any shortcut, a head at a time."""

    def attend(*parts: torch.Tensor) -> torch.Tensor:
        heads = zip(*(part[0].unbind(1) for part in parts), strict=True)
        return torch.stack([functional.softmax(q @ k.t() / math.sqrt(HEAD_DIM), -1) @ v for q, k, v in heads], 1)[None]

    parts, (norms, eps, rotary) = given
    whole = pack.attention.Normed(pack.ops_torch, attend)
    return whole(*(part.float() for part in parts), [weight.float() for weight in norms], eps, rotary)


def profile(bench: Bench) -> Iterator[Row]:
    """The third of four steps of the whole model."""
    options = bench.options
    handle = bench.load_transformer(options.precision, mode="none")
    profiler = torch.profiler.profile()

    def profile_the_third(step: int, *_: object) -> None:
        if step == 2:
            profiler.start()
        elif step == 3:
            profiler.stop()

    text = pack.of_rows(harness.text_rows(torch.Generator().manual_seed(0)), handle.text_dim)
    settings, hooks = pack.SamplingSettings(seed=0, steps=4), pack.Hooks(on_step=profile_the_third)
    row = harness.report_row(pack.pipeline.sample(handle, text, torch.zeros(1, *bench.shape), settings, hooks=hooks))
    facts = {key: row[key] for key in ("engine", "attention", "matmul", "ops")}
    yield {"what": "a step", "precision": options.precision, "s": row["step_seconds"][1], **facts}
    yield from summarise(profiler, options.top)
    handle.unload()


def summarise(profiler: torch.profiler.profile, top: int) -> Iterator[Row]:
    """Yield what the GPU did, how long it was idle in between, and its kernels, the longest first."""
    events = [event for event in profiler.events() or [] if not event.is_user_annotation]
    on_gpu = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    # Without a GPU, the operators that are called from none other.
    chosen = on_gpu or [event for event in events if event.cpu_parent is None]
    spans = sorted((event.time_range.start, event.time_range.end) for event in chosen)
    gaps, end = [0.0], spans[0][1]
    for start, stop in spans[1:]:
        gaps.append(max(start - end, 0.0))
        end = max(end, stop)
    row = {"what": "all", "ms": (end - spans[0][0]) / 1000, "calls": len(spans)}
    yield row | {"idle_ms": sum(gaps) / 1000, "longest_gap_ms": max(gaps) / 1000}
    by_name: dict[str, list[float]] = defaultdict(list)
    for event in chosen:
        by_name[event.name].append((event.time_range.end - event.time_range.start) / 1000)
    total = sum(map(sum, by_name.values()))
    for name, ms in sorted(by_name.items(), key=lambda item: -sum(item[1]))[:top]:
        yield {"what": name[:120], "ms": sum(ms), "share": sum(ms) / total, "calls": len(ms)}
