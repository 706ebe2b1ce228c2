"""Measure the LightX2V engine, and LightX2V driven directly with the same settings, in one run.

Makes random weights at the full 14B size itself (speed and memory do not depend on their values), in the per-block
layout of the real checkpoint, one precision at a time. "equal" means bit for bit: of an offloaded run to the resident
one, and of the pack to LightX2V itself. One command, on one card, with LightX2V installed or LIGHTX2V_DIR set:

    python tools/bench/lightx2v.py
    python tools/bench/lightx2v.py --precision fp8 --offload none block --attention sage_attn2 sdpa --json out.json
    python tools/bench/lightx2v.py --precision fp8 --offload none --matmul triton scaled_mm sgl_kernel --direct
    python tools/bench/lightx2v.py --precision fp8 --attention sage_attn2 --offload block --as-shipped

Needs disk for one precision in --folder (FP8 and INT8 15 GB, BF16 29 GB) and, for block and phase, as much RAM;
LightX2V's own offload takes about twice that. Rows are printed, and written to --json, as they are done; a case that
fails is a row that says why.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
pack = types.ModuleType("lightx2v_pack")
pack.__path__ = [str(ROOT)]
sys.modules["lightx2v_pack"] = pack
# This file's folder comes first on the path and would make this script the package `lightx2v`.
sys.path.remove(str(Path(__file__).resolve().parent))
if os.environ.get("LIGHTX2V_DIR"):
    sys.path.append(os.environ["LIGHTX2V_DIR"])

from lightx2v_pack.engine.adapters.lightx2v import bootstrap  # noqa: E402
from lightx2v_pack.engine.adapters.lightx2v.config import build_config  # noqa: E402
from lightx2v_pack.engine.adapters.lightx2v.transformer import LightX2VTransformer  # noqa: E402
from lightx2v_pack.engine.backends.table import ATTENTION_CHOICES  # noqa: E402
from lightx2v_pack.engine.checkpoints.files import TransformerFiles, resolve_transformer  # noqa: E402
from lightx2v_pack.engine.constants import (  # noqa: E402
    DISTILL_SHIFT,
    GIB,
    TEXT_ROWS,
)
from lightx2v_pack.engine.interfaces import Hooks  # noqa: E402
from lightx2v_pack.engine.memory.needs import Placement  # noqa: E402
from lightx2v_pack.engine.settings import EngineSettings  # noqa: E402
from lightx2v_pack.engine.shapes import latent_shape  # noqa: E402
from lightx2v_pack.engine.stages.denoise import denoise  # noqa: E402
from lightx2v_pack.engine.stages.schedule import build_schedule  # noqa: E402
from lightx2v_pack.engine.system import compute_device  # noqa: E402
from lightx2v_pack.tools.bench.full_size import (  # noqa: E402
    MODES,
    PRECISIONS,
    TEXT_DIM,
    Shape,
    add_size_options,
    cap_vram,
    describe_run,
    make_template,
    synchronize,
    write_weights,
)

# LightX2V's own op for a back end; the pack's op where it has none.
UPSTREAM_ATTENTION = {
    "sdpa": "torch_sdpa",
    "sage_attn2": "sage_attn2",
    "flash_attn2": "flash_attn2",
    "flash_attn3": "flash_attn3",
}
# What may go wrong in one case and must not cost the others. Out of memory is a RuntimeError.
CASE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(kw_only=True)
class Row:
    """One line of the table."""

    engine: str
    """pack | LightX2V (driven directly, its compute stream put right) | LightX2V as shipped."""
    precision: str
    offload: str
    attention: str
    matmul: str = ""
    compile: bool = False
    load_seconds: float = 0.0
    first_step_seconds: float = 0.0
    step_seconds: float = 0.0
    """Median of the steps after the first."""
    peak_allocated_gib: float = 0.0
    peak_reserved_gib: float = 0.0
    left_gib: float = 0.0
    """Allocated more than before the case, when it was unloaded."""
    finite: bool = False
    equal: bool | None = None
    """pack: to its resident run; LightX2V: to the pack's run of the same settings. None: nothing to compare with."""
    slower: float | None = None
    """Of a LightX2V row: how much longer the pack's step takes, as a share."""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one row measures."""

    engine: str
    precision: str
    offload: str
    attention: str
    matmul: str
    compile: str


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The same for every case."""

    shape: Shape
    noise: torch.Tensor
    context: torch.Tensor
    steps: int
    device: torch.device


def main() -> int:
    started = time.perf_counter()
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    bootstrap.import_lightx2v()
    device = compute_device()
    cap_vram(arguments, device)
    shape = latent_shape(arguments.width, arguments.height, arguments.frames)
    title = describe_run(arguments, shape, device)
    print(title, flush=True)
    generator = torch.Generator().manual_seed(0)
    # LightX2V carries latents in bfloat16: with such noise both engines start from the same numbers.
    noise = torch.randn(shape, generator=generator).bfloat16().float()
    context = torch.randn(TEXT_ROWS, TEXT_DIM, generator=generator).bfloat16()
    context[40:] = 0
    inputs = Inputs(shape=shape, noise=noise, context=context, steps=arguments.steps, device=device)
    template = make_template(arguments)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        for precision in arguments.precision:
            folder = Path(temporary) / precision
            write_weights(folder, template, precision, arguments.layers, device)
            files = resolve_transformer(folder)
            flows: dict[Case, torch.Tensor] = {}
            for case in list_cases(arguments, precision):
                if arguments.time_limit and time.perf_counter() - started > arguments.time_limit:
                    print(f"time limit: left out {case}", flush=True)
                    continue
                rows.append(measure_case(case, files, inputs, flows, rows))
                print(json.dumps(asdict(rows[-1])), flush=True)
                write_json(arguments.json, title, rows)
            if arguments.cancel and precision == arguments.precision[0]:
                measure_cancel(files, arguments, inputs)
            shutil.rmtree(folder)
    print(table(rows))
    return 0 if all(row.finite and row.equal is not False for row in rows if not row.problem) else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--offload", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--attention", nargs="+", choices=ATTENTION_CHOICES, default=("auto", "sdpa"))
    parser.add_argument("--matmul", nargs="+", default=("auto",), help="rows of the adapter's MATMUL_BACKENDS")
    parser.add_argument(
        "--compile", nargs="+", choices=("auto", "on", "off"), default=("off",), help="off: LightX2V's own compute"
    )
    parser.add_argument(
        "--direct", nargs="*", choices=MODES, default=("none", "block"), help="offload modes to run LightX2V itself in"
    )
    parser.add_argument("--as-shipped", action="store_true", help="also LightX2V's offload on its own compute stream")
    parser.add_argument("--cancel", action="store_true", help="also time a cancel in the middle of a step")
    add_size_options(parser)
    parser.add_argument("--time-limit", type=float, default=0, help="seconds after which no further case is started")
    parser.add_argument("--json", type=Path, help="write the rows there too, as they are done")
    return parser.parse_args()


def list_cases(arguments: argparse.Namespace, precision: str) -> Iterator[Case]:
    """Yield the cases of a precision; a run of LightX2V itself comes right after the pack's of the same settings."""
    matmuls = ("bf16",) if precision == "bf16" else arguments.matmul
    for compile_mode in arguments.compile:
        for attention in arguments.attention:
            for matmul in matmuls:
                for mode in arguments.offload:
                    case = Case(
                        engine="pack",
                        precision=precision,
                        offload=mode,
                        attention=attention,
                        matmul=matmul,
                        compile=compile_mode,
                    )
                    yield case
                    if mode in arguments.direct:
                        yield replace(case, engine="LightX2V")
                    if mode in ("block", "phase") and arguments.as_shipped:
                        yield replace(case, engine="LightX2V as shipped")


def measure_case(
    case: Case, files: TransformerFiles, inputs: Inputs, flows: dict[Case, torch.Tensor], rows: list[Row]
) -> Row:
    """Run one case and compare its first flow with that of the case it should equal."""
    row = Row(engine=case.engine, precision=case.precision, offload=case.offload, attention=case.attention)
    row.matmul, row.compile = case.matmul, case.compile == "on"
    before = allocated(inputs.device)
    try:
        run = run_pack if case.engine == "pack" else run_upstream
        flows[case] = run(case, files, inputs, row)
    except CASE_ERRORS as error:
        row.problem = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    clean_up(inputs.device)
    row.left_gib = (allocated(inputs.device) - before) / GIB
    partner = replace(case, offload="none") if case.engine == "pack" else replace(case, engine="pack")
    if case in flows and partner in flows and partner != case:
        row.equal = torch.equal(flows[case], flows[partner])
    if case.engine == "LightX2V" and rows and rows[-1].step_seconds and row.step_seconds:
        row.slower = rows[-1].step_seconds / row.step_seconds - 1
    return row


def run_pack(case: Case, files: TransformerFiles, inputs: Inputs, row: Row) -> torch.Tensor:
    """Sample as the nodes do; fills `row` and returns the first step's flow."""
    settings = EngineSettings(engine="lightx2v", attention=case.attention, compile=case.compile)
    matmul = "auto" if case.matmul == "bf16" else case.matmul
    transformer = LightX2VTransformer(files, settings, Placement(mode=case.offload), matmul=matmul)
    try:
        start = time.perf_counter()
        transformer.load(inputs.shape, Hooks())
        synchronize(inputs.device)
        row.load_seconds = time.perf_counter() - start
        facts = transformer.describe()
        row.attention, row.matmul = facts["attention"], facts["matmul"]
        recorder = Recorder(transformer, inputs)
        steps = Steps(inputs.device)
        denoise(
            recorder,
            inputs.context,
            inputs.shape,
            build_schedule(inputs.steps, DISTILL_SHIFT),
            method="euler",
            seed=0,
            hooks=Hooks(on_step=lambda *_: steps.done()),
        )
        steps.fill(row)
        row.finite = bool(recorder.flow.isfinite().all())
        return recorder.flow
    finally:
        transformer.unload()


class Recorder:
    """A transformer that begins with the common noise and keeps its first flow."""

    def __init__(self, transformer: LightX2VTransformer, inputs: Inputs) -> None:
        self._transformer = transformer
        self._noise: torch.Tensor | None = inputs.noise
        self.flow = torch.empty(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transformer, name)

    def predict_flow(self, latents: torch.Tensor, timestep: float, context: torch.Tensor, hooks: Hooks) -> torch.Tensor:
        if self._noise is None:
            return self._transformer.predict_flow(latents, timestep, context, hooks)
        noise, self._noise = self._noise.to(latents.device), None
        flow = self._transformer.predict_flow(noise, timestep, context, hooks)
        self.flow = flow.cpu()
        return flow


def run_upstream(case: Case, files: TransformerFiles, inputs: Inputs, row: Row) -> torch.Tensor:
    """Sample with LightX2V's own model, loader, offload and scheduler; fills `row`, returns the first step's flow."""
    start = time.perf_counter()
    model, scheduler, row.attention, row.matmul = build_upstream(case, files, inputs.device)
    synchronize(inputs.device)
    row.load_seconds = time.perf_counter() - start
    infer = model.transformer_infer
    if hasattr(infer, "offload_manager") and case.engine == "LightX2V" and inputs.device.type == "cuda":
        infer.offload_manager.compute_stream = torch.cuda.default_stream(inputs.device)
    try:
        scheduler.prepare(0, list(inputs.shape))
        scheduler.latents = inputs.noise.to(inputs.device)
        context = inputs.context.to(inputs.device)[None]
        steps, flow = Steps(inputs.device), None
        for index in range(inputs.steps):
            scheduler.step_pre(index % scheduler.infer_steps)
            model.infer({"text_encoder_output": {"context": context}, "image_encoder_output": None})
            flow = scheduler.noise_pred.float().cpu() if flow is None else flow
            scheduler.step_post()
            steps.done()
        steps.fill(row)
        assert flow is not None
        row.finite = bool(flow.isfinite().all()) and bool(scheduler.latents.isfinite().all())
        return flow
    finally:
        # LightX2V's objects refer to themselves and to each other.
        scheduler.__dict__.clear()
        infer.__dict__.clear()
        model.__dict__.clear()


def build_upstream(case: Case, files: TransformerFiles, device: torch.device) -> tuple[Any, Any, str, str]:
    """Return LightX2V's model and scheduler, and the names of the back ends in them."""
    from lightx2v.models.networks.wan.distill_model import WanDistillModel
    from lightx2v.models.schedulers.wan.step_distill.scheduler import WanStepDistillScheduler
    from lightx2v.utils.set_config import get_default_config
    from lightx2v_pack.engine.adapters.lightx2v.ops import select_attention, select_matmul

    attention, attention_op = select_attention(case.attention, device)
    requested = "auto" if case.matmul == "bf16" else case.matmul
    matmul, matmul_op = select_matmul(case.precision, requested, device)
    config = {
        **get_default_config(),
        **build_config(
            files.format.architecture,
            attention_op=UPSTREAM_ATTENTION.get(attention, attention_op),
            matmul_op=matmul_op,
            use_compile=case.compile == "on",
            use_triton=device.type == "cuda",
        ),
    }
    if case.offload != "none":
        granularity = "phase" if case.offload == "phase" else "block"
        config |= {"cpu_offload": True, "offload_granularity": granularity, "lazy_load": case.offload == "disk"}
    home = torch.device("cpu") if case.offload != "none" else device
    model_class = type("DirectModel", (WanDistillModel,), {"_check_dit_quantized": lambda self: None})
    model = model_class(str(files.files[0].parent), config, home)
    scheduler = WanStepDistillScheduler(config)
    model.set_scheduler(scheduler)
    return model, scheduler, attention, matmul


class Steps:
    """Seconds of the steps of a run, and its peaks of VRAM."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: list[float] = []
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._last = time.perf_counter()

    def done(self) -> None:
        synchronize(self._device)
        now = time.perf_counter()
        self._seconds.append(now - self._last)
        self._last = now

    def fill(self, row: Row) -> None:
        row.first_step_seconds = self._seconds[0]
        rest = self._seconds[1:] or self._seconds
        row.step_seconds = sorted(rest)[len(rest) // 2]
        if self._device.type == "cuda":
            row.peak_allocated_gib = torch.cuda.max_memory_allocated(self._device) / GIB
            row.peak_reserved_gib = torch.cuda.max_memory_reserved(self._device) / GIB


class CancelledError(Exception):
    """Stands for the host's interrupt."""


def measure_cancel(files: TransformerFiles, arguments: argparse.Namespace, inputs: Inputs) -> None:
    """Cancel in the middle of a step; print how long it takes until the GPU is idle, and what stays allocated."""
    for mode in arguments.offload:
        settings = EngineSettings(engine="lightx2v", attention=arguments.attention[0])
        transformer = LightX2VTransformer(files, settings, Placement(mode=mode))
        before, is_cancelled, cancelled_at = allocated(inputs.device), threading.Event(), [0.0]

        def check(is_cancelled: threading.Event = is_cancelled) -> None:
            if is_cancelled.is_set():
                raise CancelledError

        def cancel(is_cancelled: threading.Event = is_cancelled, cancelled_at: list[float] = cancelled_at) -> None:
            cancelled_at[0] = time.perf_counter()
            is_cancelled.set()

        def predict(hooks: Hooks, transformer: LightX2VTransformer = transformer) -> torch.Tensor:
            noise = inputs.noise.to(inputs.device)
            return transformer.predict_flow(noise, 1000.0, inputs.context, hooks).cpu()

        try:
            print(json.dumps(cancel_once(transformer, predict, check, cancel, cancelled_at, inputs)), flush=True)
        except CASE_ERRORS as error:
            print(f"cancel, {mode}: {type(error).__name__}: {error}", flush=True)
        finally:
            transformer.unload()
            clean_up(inputs.device)
        print(f"cancel, {mode}: {(allocated(inputs.device) - before) / GIB:.3f} GiB left after unload", flush=True)


def cancel_once(
    transformer: LightX2VTransformer,
    predict: Callable[[Hooks], torch.Tensor],
    check: Callable[[], None],
    cancel: Callable[[], None],
    cancelled_at: list[float],
    inputs: Inputs,
) -> dict[str, Any]:
    transformer.load(inputs.shape, Hooks())
    start = time.perf_counter()
    expected = predict(Hooks())
    step_seconds = time.perf_counter() - start
    timer = threading.Timer(step_seconds / 3, cancel)
    timer.start()
    stopped_in = None
    try:
        predict(Hooks(check_interrupt=check))
    except CancelledError:
        synchronize(inputs.device)
        stopped_in = time.perf_counter() - cancelled_at[0]
    timer.join()
    return {
        "cancel": transformer.describe()["offload"],
        "stopped_in_seconds": stopped_in,
        "next_run_is_equal": torch.equal(predict(Hooks()), expected),
    }


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def clean_up(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def write_json(path: Path | None, title: str, rows: list[Row]) -> None:
    if path is not None:
        path.write_text(json.dumps({"title": title, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def table(rows: list[Row]) -> str:
    columns = ("engine", "precision", "offload", "attention", "matmul", "compile", "load s", "first step s", "s/step")
    columns += ("allocated / reserved GiB", "left GiB", "finite", "equal", "the pack is slower by")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        start = f"| {row.engine} | {row.precision} | {row.offload} | {row.attention} | {row.matmul} "
        start += f"| {'on' if row.compile else 'off'} "
        if row.problem:
            lines.append(f"{start}| {row.problem} |")
            continue
        equal = {None: "", True: "yes", False: "NO"}[row.equal]
        slower = "" if row.slower is None else f"{row.slower:+.1%}"
        lines.append(
            f"{start}| {row.load_seconds:.1f} | {row.first_step_seconds:.2f} | {row.step_seconds:.3f} "
            f"| {row.peak_allocated_gib:.2f} / {row.peak_reserved_gib:.2f} | {row.left_gib:.3f} "
            f"| {'yes' if row.finite else 'NO'} | {equal} | {slower} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
