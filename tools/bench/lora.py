"""What LoRAs cost: seconds a step beside none, resident and streamed; what of one survives, and how soon it is ready.

Cases run one after the other in rounds, on one loaded checkpoint: the step is the median of all rounds, without each
run's first one, which loads the LoRA. A case is ranks joined by +: 32+32 are two LoRAs. "ready" is the time from the
file, in the page cache, to a LoRA that is loaded beside a loaded checkpoint; "again" the same with another strength.
"survives" is how much of the exact change of one layer is in its output; "rounded", how much were if the sum were
rounded to the checkpoint's 8 bits.

    python tools bench lora --out lora.jsonl
    python tools bench lora --dim 256 --ffn-dim 512 --layers 2 --width 64 --height 64 --frames 5   # any CPU
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..arguments import whole
from . import pack
from .harness import Bench, Row, add_clip_options, clean_up, report_row, text_rows, timed
from .weights import PRECISIONS, load_template

NONE = "none"
# Where peers are asked what of a LoRA is there.
LAYER = "blocks.0.ffn.0"
# Of the weights, by their norms: a style at a strength that is used.
_SHARE = 0.01
# The branch may take this share more of a step of FP8 at 832x480x81, by rank.
_MOST = {"H200": {64: 0.04, 128: 0.06}, "H100": {64: 0.06, 128: 0.09}}
_MOST_STREAMED = 0.01
_MOST_READY_SECONDS = 2.0


def add_options(parser: argparse.ArgumentParser) -> None:
    add_clip_options(parser)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp8")
    parser.add_argument("--cases", nargs="+", default=["64", "128", "32+32+32+32+32", "160"], help="ranks of a stack")
    parser.add_argument("--streamed", nargs="+", default=["64"], help="cases that run in mode block too")
    parser.add_argument("--rounds", type=whole(), default=3)


def measure(bench: Bench) -> Iterator[Row]:
    """Yield a row for the survival, then for every case in every mode."""
    options = bench.options
    files = LoraFiles(bench)
    yield survival(bench, files, bench.options.precision)
    for mode, cases in (("none", options.cases), ("block", options.streamed)):
        if bench.seconds_left <= 0:
            return
        handle = bench.load_transformer(options.precision, mode=mode)
        try:
            yield from measure_mode(bench, handle, files, mode, cases)
        finally:
            handle.unload()
            clean_up(bench.device)


class LoraFiles:
    """Random LoRAs for the benchmark's checkpoint of a kind, written once each."""

    def __init__(self, bench: Bench, kind: str = "t2v") -> None:
        self._bench, self._kind = bench, kind
        template = load_template(bench.folder, bench.options, kind)
        prefix = "blocks.0."
        self.weights = {
            name.removeprefix(prefix).removesuffix(".weight"): weight
            for name, weight in template.items()
            if name.startswith(prefix) and name.endswith(".weight") and weight.ndim == 2
        }

    def path(self, rank: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> Path:
        """Return a file with a pair for every linear layer of every block; all blocks have the same."""
        path = self._bench.temporary / f"{self._kind}-rank{rank}-{seed}.safetensors"
        if not path.exists():
            tensors = {}
            for number, (layer, weight) in enumerate(self.weights.items()):
                down, up = self.pair(weight, rank, seed + number)
                for index in range(self._bench.options.layers):
                    start = f"diffusion_model.blocks.{index}.{layer}"
                    tensors[f"{start}.lora_down.weight"] = down.to(dtype, copy=True)
                    tensors[f"{start}.lora_up.weight"] = up.to(dtype, copy=True)
            save_file(tensors, path)
        return path

    def pair(self, weight: torch.Tensor, rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return down [r, K] and up [N, r] whose product is as large as _SHARE of the weight."""
        generator = torch.Generator().manual_seed(seed)
        rows, columns = weight.shape
        down = torch.randn(rank, columns, generator=generator)
        up = torch.randn(rows, rank, generator=generator)
        product = ((down @ down.t()) * (up.t() @ up)).sum().sqrt()
        return down, up * (_SHARE * weight.float().norm() / product)

    def survives(self, change: torch.Tensor, rank: int) -> Row:
        """Return the part of a LoRA's exact change that is in one of LAYER's weight [N, K], and how far off it is."""
        tensors = load_file(self.path(rank, 0))
        prefix = f"diffusion_model.{LAYER}"
        exact = tensors[f"{prefix}.lora_up.weight"].float() @ tensors[f"{prefix}.lora_down.weight"].float()
        return _kept("lora", change, exact)

    def view(self, handle: pack.TransformerHandle, case: str) -> pack.TransformerHandle:
        """Return the handle with a case's LoRAs."""
        if case == NONE:
            return handle
        for number, rank in enumerate(map(int, case.split("+"))):
            handle = handle.with_lora(handle.read_lora(self.path(rank, 100 * number)), 1.0)
        return handle


def measure_mode(
    bench: Bench, handle: pack.TransformerHandle, files: LoraFiles, mode: str, cases: Sequence[str]
) -> Iterator[Row]:
    """Run the cases, and none, in rounds."""
    options, runs = bench.options, {case: [] for case in (NONE, *cases)}  # type: dict[str, list[Row]]
    views: dict[str, Any] = {}
    for case in runs:
        # The file is in the page cache: it was written just now.
        views[case] = files.view(handle, case)
    conditioning = pack.of_rows(text_rows(torch.Generator().manual_seed(1)), handle.text_dim)
    for number in range(options.rounds + 1):
        for case, view in views.items():
            if bench.seconds_left <= 0 and number > 1:
                break
            clean_up(bench.device)
            latents = pack.pipeline.sample(
                view,
                conditioning,
                torch.zeros(1, *bench.shape),
                pack.SamplingSettings(seed=1, method="euler", steps=options.steps),
                hooks=pack.Hooks(),
            )
            if number:  # The first round warms up.
                runs[case].append(report_row(latents))
    common = {"precision": options.precision, "size": f"{options.width}x{options.height}", "frames": options.frames}
    base = statistics.median(step for run in runs[NONE] for step in run["step_seconds"][1:])
    for case, found in runs.items():
        steps = [step for run in found for step in run["step_seconds"][1:]]
        row: Row = {"what": case, "mode": mode, "step": statistics.median(steps), "steps": steps}
        row |= {"more": row["step"] / base - 1, **found[-1]}
        if case != NONE:
            row |= {"swap_seconds": statistics.median(run["load_transformer_seconds"] for run in found)}
        yield common | row
    yield common | {"mode": mode, "what": "rank 64 in FP32"} | readiness(bench, handle, files, mode)


def readiness(bench: Bench, handle: pack.TransformerHandle, files: LoraFiles, mode: str) -> Row:
    """Return how long a LoRA takes from its file to where it rests, and another strength of it."""
    path = files.path(64, 7, torch.float32)
    path.read_bytes()  # into the page cache
    host = pack.Host()
    clip = pack.Clip.of_latents((1, *bench.shape))
    plan = handle.room(host).plan_run(handle.sizes_now(clip, host.device))
    handle.load(plan, host.device, pack.Hooks())

    def load(strength: float) -> None:
        view = handle.with_lora(handle.read_lora(path), strength)
        view.load(plan, host.device, pack.Hooks())

    ready, _ = timed(lambda: load(1.0), bench.device)
    again, _ = timed(lambda: load(0.5), bench.device)
    return {"ready_seconds": ready, "again_seconds": again, "gb": path.stat().st_size / 1e9}


def survival(bench: Bench, files: LoraFiles, precision: str, rank: int = 64) -> Row:
    """Return how much of a LoRA is in a layer's output, and how much rounding its sum with the weight would leave."""
    device = bench.device
    dtype = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}.get(precision)
    row: Row = {"what": "ffn.0, 1 % of the weights", "mode": "one layer", "precision": precision}
    if dtype is None:
        return row | {"problem": "weights that are not in 8 bits round little"}
    weight = files.weights["ffn.0"].to(device).float()
    down, up = (part.to(device) for part in files.pair(weight.cpu(), rank, 3))
    codes, scale = _in_eight_bit(weight, dtype)
    plain = codes.float() * scale
    x = torch.randn(1024, weight.shape[1], generator=torch.Generator().manual_seed(4)).to(device).bfloat16()
    rows, branch = _branch(
        bench, x, pack.Linear(torch.zeros_like(codes), scale, x.new_zeros(len(codes))), down, up, precision
    )
    exact = rows @ down.t() @ up.t()
    merged, merged_scale = _in_eight_bit(plain + up @ down, dtype)
    rounded = rows @ (merged.float() * merged_scale - plain).t()
    return row | _kept("branch", branch, exact) | _kept("rounded", rounded, exact)


def _in_eight_bit(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scale = torch.empty_like(values, dtype=dtype), values.new_empty(len(values), 1, dtype=torch.float32)
    pack.quantize(values, codes, scale)
    return codes, scale


def _branch(
    bench: Bench, x: torch.Tensor, layer: pack.Linear, down: torch.Tensor, up: torch.Tensor, precision: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x as the layer takes it, and what a block's kernels make of a LoRA beside a layer of zeros, in fp32."""
    wanted = pack.Wanted(precision=precision, dim=x.shape[1], ffn_dim=len(up))
    kernels = pack.build_kernels(pack.confirm(wanted, bench.device))
    inputs, tensors = (x, None), {"lora_down": down.bfloat16()}
    if kernels.quantized is not None:
        room = pack.branch_room(len(down), joins_loras=kernels.joins_loras)
        wide = x.new_empty(len(x), room + x.shape[1], dtype=kernels.quantized)
        inputs = kernels.quantize(x, wide[:, room:], x.new_empty(len(x), 1, dtype=torch.float32))
        codes, scale = _in_eight_bit(down, kernels.quantized)
        balance = pack.balance_of(up, layer.weight_scale, down, x.shape[1])
        tensors = {"lora_down": codes, "lora_down_scale": scale, "lora_balance": balance}
    rows = inputs[0].float() * (1 if inputs[1] is None else inputs[1])
    tensors |= {"lora_up": up.bfloat16(), "lora_bias": x.new_zeros(len(down)), **vars(layer)}
    out = x.new_empty(len(x), len(up))
    kernels.linear(inputs, {f"ffn.0.{name}": tensor for name, tensor in tensors.items()}, "ffn.0", out)
    return rows, out.float()


def _kept(name: str, change: torch.Tensor, exact: torch.Tensor) -> Row:
    """Return the part of an exact change that is in another one, and how far that is off, under a name."""
    norm = exact.square().sum()
    error = float((change - exact).norm() / norm.sqrt())
    return {f"{name}_survives": float((change * exact).sum() / norm), f"{name}_error": error}


def check(rows: Sequence[Row]) -> list[str]:
    """Return what misses a target."""
    problems = []
    for row in rows:
        card = next((limits for name, limits in _MOST.items() if name in row.get("card", "")), {})
        more = row.get("more")
        if more is None or "problem" in row:
            continue
        most = card.get(sum(map(int, row["what"].split("+")))) if row["what"] != NONE else None
        if row["mode"] == "none" and most is not None and more > most:
            problems.append(f"rank {row['what']} takes {more:.1%} of a step more, at most {most:.0%} are wanted")
    steps = {(row["mode"], row["what"]): row["step"] for row in rows if "step" in row}
    for (mode, case), step in steps.items():
        resident = steps.get(("none", case))
        if mode == "block" and case != NONE and resident and step > resident * (1 + _MOST_STREAMED):
            problems.append(f"rank {case} streamed takes {step / resident - 1:.1%} longer than resident")
    problems += [
        f"a LoRA of {row['gb']:.1f} GB is ready in {row['ready_seconds']:.1f} s"
        for row in rows
        if row.get("ready_seconds", 0) > _MOST_READY_SECONDS and row["gb"] > 1
    ]
    return problems
