"""Time what a step is made of: fused operations, matrix products, attentions; and where one whole step goes.

Every back end of backends/table.py that runs on this card is measured at the shapes of a clip (832x480, 81 frames:
32,760 tokens of the 14B model), operations beside the speed of a copy. Self-attentions are measured with the RMS norm
and RoPE of q and k before them, which some fuse (`alone_ms` is without), with their temporaries (bytes per token and
unit of width, the result included) and their relative L2 error against fp32 on fewer tokens. `--profile` then takes one
step of the whole model under torch's profiler, with random weights made here: kernels by name, and how long the GPU is
idle.

    python tools/bench/kernels.py --out kernels.jsonl
    python tools/bench/kernels.py --parts --profile --precision fp8
    python tools/bench/kernels.py --dim 256 --ffn-dim 512 --layers 2 --tokens 64 --error-tokens 48 --profile   # any CPU
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
import types
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[2]
pack = types.ModuleType("lightx2v_pack")
pack.__path__ = [str(ROOT)]
sys.modules["lightx2v_pack"] = pack
# This file's folder comes first on the path and would make lightx2v.py there the package `lightx2v`.
sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).resolve().parent)]

from lightx2v_pack.engine import pipeline  # noqa: E402
from lightx2v_pack.engine.backends.block_ops import select_ops  # noqa: E402
from lightx2v_pack.engine.backends.table import ATTENTION_BACKENDS, MATMUL_BACKENDS, why_not  # noqa: E402
from lightx2v_pack.engine.backends.trials import find_machine  # noqa: E402
from lightx2v_pack.engine.constants import TEXT_ROWS  # noqa: E402
from lightx2v_pack.engine.errors import LightX2VError  # noqa: E402
from lightx2v_pack.engine.interfaces import Hooks  # noqa: E402
from lightx2v_pack.engine.kernels import (  # noqa: E402
    attention,
    matmul,
    ops_torch,
)
from lightx2v_pack.engine.kernels.ops import Ops, Rotary  # noqa: E402
from lightx2v_pack.engine.kernels.quantize import quantise  # noqa: E402
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings  # noqa: E402
from lightx2v_pack.engine.shapes import latent_shape, num_tokens  # noqa: E402
from lightx2v_pack.engine.system import compute_device  # noqa: E402
from lightx2v_pack.tools.bench.full_size import (  # noqa: E402
    PRECISIONS,
    TEXT_DIM,
    add_size_options,
    describe_machine,
    ensure_weights,
    synchronize,
)

HEAD_DIM, EPS = 128, 1e-6
# Rows of a prompt of 40 tokens and of the padding that stands for the rest.
NUM_KEYS = 42
EIGHT_BITS = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
Row = dict[str, Any]


def main() -> int:
    arguments = parse_arguments()
    device = compute_device()
    machine = describe_machine(device)
    tokens = arguments.tokens or num_tokens(latent_shape(arguments.width, arguments.height, arguments.frames))
    print(f"{machine}; {tokens} tokens, width {arguments.dim}", flush=True)
    bench = Bench(arguments, device, tokens)
    with torch.inference_mode():
        for part in [*arguments.parts, *(["profile"] if arguments.profile else [])]:
            print(f"\n{part}", flush=True)
            for row in bench.run(part):
                print("  " + ", ".join(f"{key} {shown(value)}" for key, value in row.items()), flush=True)
                if arguments.out:
                    with arguments.out.open("a") as file:
                        row = {"part": part, "machine": machine, "tokens": tokens, "dim": arguments.dim, **row}
                        file.write(json.dumps(row) + "\n")
    return 0


PARTS = ("ops", "matmul", "attention", "cross")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="none of them: only --profile")
    parser.add_argument("--profile", action="store_true", help="one step of the whole model under torch's profiler")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp8", help="of the profiled model")
    parser.add_argument("--engine", default="auto", help="of the profiled model")
    parser.add_argument("--attention", default="auto", help="of the profiled model")
    parser.add_argument("--tokens", type=int, help="instead of those of the clip")
    parser.add_argument("--error-tokens", type=int, default=5000, help="tokens of the comparison with fp32 (5000)")
    parser.add_argument("--seconds", type=float, default=0.3, help="how long a kernel is repeated (0.3)")
    parser.add_argument("--top", type=int, default=25, help="kernels of the profile (25)")
    parser.add_argument("--weights", type=Path, help="keep the weights in this folder, or find them there")
    parser.add_argument("--out", type=Path, help="append the rows there as JSON lines, as they are done")
    add_size_options(parser)
    return parser.parse_args()


def shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class SelfAttentionInputs:
    """q, k and v [N, heads, 128] as their linears leave them, weights of the norms, cosines and sines."""

    parts: list[torch.Tensor]
    norms: tuple[torch.Tensor, torch.Tensor]
    rotary: tuple[torch.Tensor, torch.Tensor]

    def copy(self) -> SelfAttentionInputs:
        return replace(self, parts=[part.clone() for part in self.parts])

    def restore(self, original: SelfAttentionInputs) -> None:
        for part, other in zip(self.parts, original.parts, strict=True):
            part.copy_(other)


class Bench:
    """Measures on one device at one size; a part yields a row for each thing that it measured."""

    def __init__(self, arguments: argparse.Namespace, device: torch.device, tokens: int) -> None:
        self.arguments = arguments
        self.device = device
        self.tokens = tokens
        self.dim, self.ffn_dim = arguments.dim, arguments.ffn_dim
        self.heads = max(1, self.dim // HEAD_DIM)
        self.machine = find_machine(device)
        self._generator = torch.Generator(device).manual_seed(0)

    def run(self, part: str) -> Iterator[Row]:
        return {
            "ops": self.ops,
            "matmul": self.matmuls,
            "attention": self.attentions,
            "cross": self.cross_attentions,
            "profile": self.profile,
        }[part]()

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator, device=self.device, dtype=dtype)

    def time(self, run: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
        """Return the median milliseconds of a call, `before` each left out; the first two calls warm up."""
        before()
        run()
        before()
        seconds = [self._time_once(run)]
        count = min(max(int(self.arguments.seconds / max(seconds[0], 1e-6)), 3), 1000)
        for _ in range(count):
            before()
            seconds.append(self._time_once(run))
        return 1000 * statistics.median(seconds[1:])

    def _time_once(self, run: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # So that the launches are all queued before the first kernel begins, and none waits for the host.
        torch.cuda._sleep(1_000_000)
        start_event.record()
        run()
        end_event.record()
        end_event.synchronize()
        return start_event.elapsed_time(end_event) / 1000

    def ops(self) -> Iterator[Row]:
        """Every operation of a block, with the bytes that it has to move."""
        name, ops = select_ops("auto", self.device)
        rows, dim, half = self.tokens, self.dim, -(-self.tokens // 2)
        x, y, wide = self.normal(rows, dim), self.normal(rows, dim), self.normal(half, self.ffn_dim)
        gate, mul, add = self.normal(3, dim, dtype=torch.float32).mul_(0.01)
        angles = self.normal(rows, HEAD_DIM // 2, dtype=torch.float32)
        rotary = Rotary(angles.cos(), angles.sin())
        element = rows * dim
        yield self._moved("copy", "torch", 4 * element, lambda: y.copy_(x))
        yield self._moved("residual", name, 6 * element, lambda: ops.residual(x, y, gate))
        table = 2 * 4 * angles.numel()
        yield self._moved(
            "rms_rotary", name, 4 * element + table, lambda: ops.rms_rotary(y, mul, EPS, self.heads, rotary)
        )
        factors = gate.new_empty(rows)
        yield self._moved("row_factors", name, 2 * element, lambda: ops.row_factors(y, EPS, factors))
        for kind, dtype in {**self._eight_bits(), "bf16": None}.items():
            for what, num_bytes, call in self._writing_ops(ops, dtype, (x, y, wide), (gate, mul, add)):
                yield self._moved(f"{what} to {kind}", name, num_bytes, call)

    def _writing_ops(
        self, ops: Ops, dtype: torch.dtype | None, inputs: Sequence[torch.Tensor], vectors: Sequence[torch.Tensor]
    ) -> Iterator[tuple[str, int, Callable[[], object]]]:
        """Yield name, bytes moved and call of the operations that write `dtype` with scales, or BF16 without."""
        (x, y, wide), (gate, mul, add) = inputs, vectors
        out, wide_out = (torch.empty_like(part, dtype=dtype) for part in (x, wide))
        scale, wide_scale = (mul.new_empty(len(part), 1) if dtype else None for part in (x, wide))
        size = out.element_size()
        yield "norm", (2 + size) * x.numel(), lambda: ops.norm(x, mul, add, EPS, out, scale)
        yield (
            "residual_norm", (6 + size) * x.numel(), lambda: ops.residual_norm(x, y, gate, mul, add, EPS, out, scale)
        )  # fmt: skip
        yield "gelu", (2 + size) * wide.numel(), lambda: ops.gelu(wide, wide_out, wide_scale)
        if scale is not None:
            yield "quantise", (2 + size) * x.numel(), lambda: ops.quantise(x, out, scale)

    def _moved(self, what: str, implementation: str, num_bytes: int, call: Callable[[], object]) -> Row:
        ms = self.time(call)
        return {"what": what, "by": implementation, "ms": ms, "gb_per_s": num_bytes / ms / 1e6}

    def _eight_bits(self) -> dict[str, torch.dtype]:
        """Return the 8-bit types that some matrix product of this machine takes."""
        return {
            name: dtype
            for name, dtype in EIGHT_BITS.items()
            if any(why_not(row, self.machine, name) is None for row in MATMUL_BACKENDS if row.name != "dequantize")
        }

    def matmuls(self) -> Iterator[Row]:
        """Every matrix product of a block, by every back end; activations are quantised before."""
        half, dim, ffn = -(-self.tokens // 2), self.dim, self.ffn_dim
        for rows, outputs, inputs in ((self.tokens, dim, dim), (half, ffn, dim), (half, dim, ffn)):
            x = self.normal(rows, inputs)
            wide, bias = self.normal(outputs, inputs), self.normal(outputs)
            out = x.new_empty(rows, outputs)
            operations = 2 * rows * outputs * inputs
            shape = f"{rows} x {outputs} x {inputs}"
            weights = matmul.Linear(wide, None, bias)
            yield self._multiplied(shape, "bf16", "bf16", operations, (x, None, weights, out))
            for precision, dtype in EIGHT_BITS.items():
                stored, weight_scale = wide.new_empty(wide.shape, dtype=dtype), bias.new_empty(outputs, 1).float()
                quantise(wide, stored, weight_scale)
                weights = matmul.Linear(stored, weight_scale, bias)
                quantised, scale = x.new_empty(x.shape, dtype=dtype), weight_scale.new_empty(rows, 1)
                quantise(x, quantised, scale)
                for row in MATMUL_BACKENDS:
                    if why_not(row, self.machine, precision) is None:
                        inputs_of = (quantised, scale) if row.name in matmul.ACTIVATION_DTYPES else (x, None)
                        call = (*inputs_of, weights, out)
                        yield self._multiplied(shape, precision, row.name, operations, call)

    def _multiplied(self, shape: str, precision: str, backend: str, operations: int, call: tuple[Any, ...]) -> Row:
        row = {"what": shape, "precision": precision, "by": backend}
        try:
            ms = self.time(lambda: matmul.linear(*call, backend=backend))
        except RuntimeError as error:
            return row | {"problem": first_line(error)}
        return row | {"ms": ms, "tera_op_per_s": operations / ms / 1e9}

    def attentions(self) -> Iterator[Row]:
        """RMS norm, RoPE and self-attention by every back end, and by those that prepare their inputs in place."""
        _, ops = select_ops("auto", self.device)
        given, fewer = (self._self_attention_inputs(tokens) for tokens in (self.tokens, self.arguments.error_tokens))
        exact = attend_exactly(fewer)
        for backend in ATTENTION_BACKENDS:
            try:
                _, attend = attention.select_attention(backend.name, self.device)
            except LightX2VError as error:
                yield {"what": "self-attention", "by": backend.name, "problem": first_line(error)}
                continue
            whole = composed(ops, attend)
            ways = {backend.name: whole}
            in_place = attention.select_in_place(backend.name, self.device, whole)
            if in_place is not None:
                ways[f"{backend.name}, in place"] = in_place
            for name, way in ways.items():
                row = {"what": "self-attention", "by": name}
                try:
                    if way is whole:
                        row["alone_ms"] = self.time(lambda: attend(*(part[None] for part in given.parts)))  # noqa: B023
                    yield row | self._attended(way, given, fewer, exact)
                except RuntimeError as error:
                    yield row | {"problem": first_line(error)}

    def _self_attention_inputs(self, tokens: int) -> SelfAttentionInputs:
        angles = self.normal(tokens, HEAD_DIM // 2, dtype=torch.float32)
        norms = self.normal(2, self.heads * HEAD_DIM).mul_(0.1).add_(1)
        parts = [self.normal(tokens, self.heads, HEAD_DIM) for _ in range(3)]
        return SelfAttentionInputs(parts, (norms[0], norms[1]), (angles.cos(), angles.sin()))

    def _attended(
        self,
        attend: attention.SelfAttention,
        given: SelfAttentionInputs,
        fewer: SelfAttentionInputs,
        exact: torch.Tensor,
    ) -> Row:
        # What computes may overwrite them.
        work = given.copy()
        ms = self.time(lambda: attend(*work.parts, work.norms, EPS, work.rotary), before=lambda: work.restore(given))
        row = {"ms": ms, "tera_op_per_s": 4 * self.tokens**2 * self.dim / ms / 1e9}
        if self.device.type == "cuda":
            work.restore(given)
            torch.cuda.synchronize()
            held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            attend(*work.parts, work.norms, EPS, work.rotary)
            row["temporaries"] = (torch.cuda.max_memory_allocated() - held) / (self.tokens * self.dim)
        found = attend(*fewer.copy().parts, fewer.norms, EPS, fewer.rotary).float()
        return row | {"error": float((found - exact).norm() / exact.norm())}

    def cross_attentions(self) -> Iterator[Row]:
        """Cross-attention to a short prompt's rows, and that of normalised queries to all rows with padding."""
        name, ops = select_ops("auto", self.device)
        q, out = (self.normal(self.tokens, self.heads, HEAD_DIM) for _ in range(2))
        k, v = (self.normal(NUM_KEYS, self.heads, HEAD_DIM) for _ in range(2))
        repeats, factors = TEXT_ROWS - NUM_KEYS + 1, torch.empty(self.tokens, device=self.device)
        ops.row_factors(q.flatten(1), EPS, factors)
        ms = self.time(lambda: ops.cross_attention(q, factors, k, v, repeats, out))
        yield {"what": f"cross-attention to {NUM_KEYS} rows", "by": name, "ms": ms}
        padded = [torch.cat([part, part[-1:].expand(repeats - 1, -1, -1)])[None] for part in (k, v)]
        q = q.mul_(factors[:, None, None])[None]
        difference = float((attention.sdpa(q, *padded)[0] - out).float().norm() / out.float().norm())
        ms = self.time(lambda: attention.sdpa(q, *padded))
        yield {"what": f"cross-attention to {TEXT_ROWS} rows", "by": "sdpa", "ms": ms, "difference": difference}

    def profile(self) -> Iterator[Row]:
        """One step of the whole model, after two to warm up."""
        arguments, device = self.arguments, self.device
        shape = latent_shape(arguments.width, arguments.height, arguments.frames)
        with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
            folder = arguments.weights or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            handle = pipeline.load_transformer(
                ensure_weights(folder, arguments, arguments.precision, device),
                settings=EngineSettings(engine=arguments.engine, attention=arguments.attention),
                offload=OffloadSettings(mode="none"),
            )
            engine = handle.acquire(shape, Hooks())
        latents, context = self.normal(*shape, dtype=torch.float32), torch.zeros(TEXT_ROWS, TEXT_DIM)
        context[: NUM_KEYS - 2] = torch.randn(NUM_KEYS - 2, TEXT_DIM, generator=torch.Generator().manual_seed(0))
        seconds = []
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        profiler = torch.profiler.profile(activities=activities)
        for number in range(3):
            synchronize(device)
            if number == 2:
                profiler.start()
            start = time.perf_counter()
            engine.predict_flow(latents, 1000.0, context, Hooks())
            synchronize(device)
            seconds.append(time.perf_counter() - start)
        profiler.stop()
        facts = {key: engine.describe()[key] for key in ("engine", "attention", "matmul", "ops")}
        yield {"what": "a step", "s": seconds[1], "profiled_s": seconds[2], **facts}
        yield from summarise(profiler, self.arguments.top)
        handle.unload()


def composed(ops: Ops, attend: attention.Attention) -> attention.SelfAttention:
    """Return the self-attention of a block that prepares the inputs with an operation of its own."""

    def run(q: Any, k: Any, v: Any, norms: Any, eps: float, rotary: Any) -> torch.Tensor:
        for part, weight in zip((q, k), norms, strict=True):
            ops.rms_rotary(part.flatten(1), weight, eps, part.shape[1], Rotary(*rotary))
        return attend(q[None], k[None], v[None])[0]

    return run


def attend_exactly(given: SelfAttentionInputs) -> torch.Tensor:
    """Normalise, rotate and attend in fp32 without any shortcut, a head at a time."""
    q, k, v = (part.float() for part in given.parts)
    for part, weight in zip((q, k), given.norms, strict=True):
        ops_torch.rms_rotary(part.flatten(1), weight.float(), EPS, part.shape[1], Rotary(*given.rotary))
    heads = []
    for index in range(q.shape[1]):
        scores = q[:, index] @ k[:, index].t() / math.sqrt(HEAD_DIM)
        heads.append(functional.softmax(scores, dim=-1) @ v[:, index])
    return torch.stack(heads, dim=1)


def summarise(profiler: torch.profiler.profile, top: int) -> Iterator[Row]:
    """Yield what the GPU did, how long it was idle in between, and its kernels, the longest first."""
    events = [event for event in profiler.events() or [] if not event.is_user_annotation]
    on_gpu = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    # Without a GPU, the operators that are called from none other.
    chosen = on_gpu or [event for event in events if event.cpu_parent is None]
    spans = sorted((event.time_range.start, event.time_range.end) for event in chosen)
    gaps, end = [], spans[0][1]
    for start, stop in spans[1:]:
        gaps.append(max(start - end, 0.0))
        end = max(end, stop)
    yield {
        "what": "all",
        "span_ms": (end - spans[0][0]) / 1000,
        "idle_ms": sum(gaps) / 1000,
        "longest_gap_ms": max(gaps, default=0.0) / 1000,
        "kernels": len(spans),
    }
    by_name: dict[str, list[float]] = defaultdict(list)
    for event in chosen:
        by_name[event.name].append((event.time_range.end - event.time_range.start) / 1000)
    total = sum(map(sum, by_name.values()))
    for name, ms in sorted(by_name.items(), key=lambda item: -sum(item[1]))[:top]:
        yield {"ms": sum(ms), "share": sum(ms) / total, "calls": len(ms), "what": name[:120]}


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]


if __name__ == "__main__":
    sys.exit(main())
