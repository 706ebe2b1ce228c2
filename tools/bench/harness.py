"""What the benchmarks share: options, weights, time limits, rows as JSON lines, processes of their own.

A benchmark is a module. Its docstring is the help of `python tools bench NAME`, `add_options(parser)` adds its options,
and `measure(bench)` yields a row of JSON data for each thing it measured. Where it has them, `run_child(bench)` is a
process of its own for a case, whose row goes to the file --row; `check(rows)` returns in words what misses a target;
ONLY_CHILDREN_USE_THE_CARD says that these name the machine. What every row tells (date, command) is added here. Rows
are printed and appended to --out as they are done, so that a run that is stopped has told what it had. Random
weights of the full sizes stand in for the real ones: speed and memory do not depend on values.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ...engine.sentences.tools import Saving
from ..arguments import number, whole
from ..saving import Kind, problem_of_file
from . import pack, weights

Row = dict[str, Any]
Shape = tuple[int, int, int, int]

TOOLS = Path(__file__).resolve().parent.parent
NUM_WORDS = 40
"""Rows of a text that are not padding."""
ROWS = Kind(other=Saving.NO_ROWS, records=(("part", "date", "command"),), in_lines=True)
# Between what is planned of the VRAM and what is taken, where models take turns.
_MOST_OFF = 0.1
# Of a command, what says where things are kept and how long it may take.
_LOCAL_OPTIONS = ("--out", "--weights", "--keep", "--folder", "--time-limit")


class Bench:
    """One run of a benchmark: its options, device, weights and time."""

    def __init__(self, name: str, words: Sequence[str], options: argparse.Namespace, temporary: Path) -> None:
        self.name, self.words, self.options, self.temporary = name, words, options, temporary
        self.folder: Path = options.weights or temporary
        self.folder.mkdir(parents=True, exist_ok=True)
        self._end = time.perf_counter() + (options.time_limit or math.inf)

    @cached_property
    def device(self) -> torch.device:
        return pack.compute_device()

    @cached_property
    def machine(self) -> Row:
        """The card, and card and versions in one line."""
        card = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        parts = [card, *(f"driver {version}" for version in nvidia_smi("--query-gpu=driver_version")[:1])]
        parts += [f"{torch.get_num_threads()} CPU threads", f"torch {torch.__version__}"]
        parts += [f"{name} {version}" for name, version in pack.find_machine(self.device).packages.items()]
        return {"card": card, "machine": ", ".join([*parts, f"pack {commit_of(TOOLS.parent, 'PACK_COMMIT')}"])}

    @property
    def shape(self) -> Shape:
        """The latents' shape of the clip that the options name."""
        return pack.latent_shape(self.options.width, self.options.height, self.options.frames)

    @property
    def seconds_left(self) -> float:
        return self._end - time.perf_counter()

    def weights(self, precision: str, kind: str = "t2v") -> Path:
        """Return the folder of a transformer's weights, which are written where they are not there.

        Args: kind: a key of weights.KINDS.
        """
        found = weights.ensure_transformer(self.folder, self.options, precision, kind)
        clean_up(self.device)
        return found

    def experts(self, precision: str, kind: str = "t2v") -> Path:
        """Return the folder of both experts of Wan2.2, whose weights are written where they are not there."""
        return weights.ensure_experts(self.folder, self.options, precision, kind)

    def load_transformer(self, precision: str, kind: str = "t2v", **offload: Any) -> pack.TransformerHandle:
        """Return the handle that the nodes would make, with these of the OffloadSettings."""
        settings = {"settings": pack.EngineSettings(), "offload": pack.OffloadSettings(**offload)}
        return pack.pipeline.load_transformer(self.weights(precision, kind), **settings)

    def drop_weights(self, precision: str, later: Iterable[str]) -> None:
        """Delete a precision's weights where nothing needs them later: a disk may not hold all three."""
        kept = self.options.keep or precision
        if precision not in later and (not self.options.weights or precision != kept):
            for found in self.folder.glob(f"weights-{precision}-*"):
                shutil.rmtree(found)

    def row_file(self, case: str) -> Path:
        return self.temporary / f"{case}.json"

    def run_children(
        self, cases: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> Iterator[tuple[str, Row]]:
        """Run cases one after the other in processes of their own, the next one getting ready.

        Yields:
            A case and its row, which says what went wrong. What there is no time for is left out.
        """
        with contextlib.ExitStack() as children:

            def start(case: str) -> Child:
                command = [str(TOOLS), "bench", self.name, *self.words, "--weights", str(self.folder)]
                command += ["--child", case, "--row", str(self.row_file(case))]
                child = Child(command, self.row_file(case).with_suffix(".log"), environment or {})
                children.callback(child.stop)
                return child

            waiting, seconds = [start(case) for case in cases[:1]], [math.inf]
            for index, case in enumerate(cases):
                has_time = self.seconds_left > (min(seconds) if index else 0.0)
                if has_time:
                    child, begun = waiting.pop(), time.perf_counter()
                    child.begin()
                    waiting += [start(later) for later in cases[index + 1 : index + 2]]
                    problem = child.wait(min(self.options.limit, max(self.seconds_left, 0.0)))
                    seconds.append(time.perf_counter() - begun)
                if not has_time or (problem and self.seconds_left <= 0):
                    print(f"left out, no time: {', '.join(cases[index:])}", flush=True)
                    return
                row = json.loads(self.row_file(case).read_text()) if self.row_file(case).exists() else {}
                if problem:
                    print("\n".join([f"--- {case}", *child.log_lines()[-25:]]), file=sys.stderr, flush=True)
                    row["problem"] = problem
                yield case, row | {"wall_seconds": seconds[-1]}


class Child:
    """A process of this program that gets ready, and waits for `begin` before it uses the GPU."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
            )

    def begin(self) -> None:
        assert self._process.stdin is not None
        # A process that failed already has closed the pipe; its log says why.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")
            self._process.stdin.close()

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self, seconds: float) -> str:
        """Wait for the end, for so many seconds at most; return what went wrong, or nothing."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.stop()
            return f"stopped after {seconds:.0f} s"
        lines = [line for line in self.log_lines() if "Error" in line] if code else [""]
        return lines[-1][:300] if lines else f"ended with {code}"

    def stop(self) -> None:
        """End it, if it has not ended."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log_lines(self) -> list[str]:
        return self._log.read_text(errors="replace").splitlines()


def wait_for_turn() -> None:
    """In a child: wait for `Child.begin`."""
    if not sys.stdin.readline():
        sys.exit("the process that started this one has ended")


def run(name: str, module: Any, words: Sequence[str]) -> Iterator[Row]:
    """Yield a benchmark's rows, complete, printed and written; a child has none."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # A time limit ends this with the rows that there are, without children or weights left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    options = parse(name, module, words)
    if options.child:
        # In its parent's folder: it may be ended at any time.
        module.run_child(Bench(name, words, options, options.weights))
        return
    with tempfile.TemporaryDirectory(dir=options.folder, ignore_cleanup_errors=True) as temporary:
        bench = Bench(name, words, options, Path(temporary))
        common = {"part": name, "date": str(datetime.date.today()), "command": shown(name, words)}
        common |= {"layers": options.layers, "dim": options.dim}
        common |= {} if hasattr(module, "ONLY_CHILDREN_USE_THE_CARD") else bench.machine
        print(common.get("machine", ""), flush=True)
        for row in module.measure(bench):
            print(json.dumps(row), flush=True)
            row = common | row
            if options.out:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            yield row


def parse(name: str, module: Any, words: Sequence[str]) -> argparse.Namespace:
    """Return the values of a benchmark's own and the common options."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(f"python tools bench {name}", description=module.__doc__, formatter_class=form)
    module.add_options(parser)
    parser.add_argument("--dim", type=whole(), default=5120, help="of the transformer; below 1000 all models are small")
    parser.add_argument("--ffn-dim", type=whole(), default=13824)
    parser.add_argument("--layers", type=whole(), default=40, help="width 5120 always has 40")
    parser.add_argument("--out", type=Path, help="append the rows there as JSON lines, as they are done")
    parser.add_argument("--weights", type=Path, help="keep the weights in this folder, or find them there")
    parser.add_argument("--keep", choices=weights.PRECISIONS, help="of --weights, delete all but these after use")
    parser.add_argument("--folder", type=Path, help="for temporary files, weights among them")
    parser.add_argument(
        "--limit", type=number(), default=300.0, help="seconds that a process of its own may take (300)"
    )
    parser.add_argument("--time-limit", type=number(), default=0.0, help="seconds after which nothing more is started")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--row", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.out and (problem := problem_of_file(options.out, "--out", ROWS)):
        parser.error(problem)
    return options


def add_clip_options(parser: argparse.ArgumentParser) -> None:
    """Add the size of a clip and the number of steps."""
    parser.add_argument("--width", type=whole(), default=pack.DEFAULT_WIDTH)
    parser.add_argument("--height", type=whole(), default=pack.DEFAULT_HEIGHT)
    parser.add_argument("--frames", type=whole(), default=pack.DEFAULT_NUM_FRAMES)
    parser.add_argument("--steps", type=whole(), default=pack.DISTILL_STEPS, help="the first one warms up (default 4)")


def parse_size(text: str) -> tuple[int, int]:
    """Return (width, height) of "WIDTHxHEIGHT"."""
    width, height = text.split("x")
    return int(width), int(height)


def shown(name: str, words: Sequence[str]) -> str:
    """Return a command as others would give it: nothing of it is a path of this machine."""
    kept = [
        word for before, word in zip(["", *words], words, strict=False) if {before, word}.isdisjoint(_LOCAL_OPTIONS)
    ]
    return " ".join(["python tools bench", name, *(Path(word).name if "/" in word else word for word in kept)])


def commit_of(folder: Path, variable: str) -> str:
    """Return a checkout's commit, "-dirty" behind it where files were changed; without git, what a variable says."""
    git = ["git", "-C", str(folder)]
    if [Path(line).resolve() for line in _output([*git, "rev-parse", "--show-toplevel"])] == [folder.resolve()]:
        return "".join(_output([*git, "describe", "--always", "--dirty", "--exclude=*"]))
    return os.environ.get(variable, "of unknown commit")


def nvidia_smi(query: str) -> list[str]:
    """Return what the driver's tool answers, a line a card or process; nothing without it."""
    return _output(["nvidia-smi", query, "--format=csv,noheader"])


def _output(command: Sequence[str]) -> list[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def text_rows(generator: torch.Generator) -> torch.Tensor:
    """Return the rows of a text [512, 4096]: float32, bfloat16 numbers, zero after the words."""
    rows = torch.randn(pack.TEXT_ROWS, weights.TEXT_DIM, generator=generator).bfloat16().float()
    rows[NUM_WORDS:] = 0
    return rows


def synchronize(device: torch.device) -> None:
    """Wait for the GPU; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Return the seconds of a call, and what it returned."""
    synchronize(device)
    start = time.perf_counter()
    result = call()
    synchronize(device)
    return time.perf_counter() - start, result


def event_seconds(call: Callable[[], object]) -> float:
    """Return the seconds of a call on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # So that the launches are all queued before the first kernel begins, and none waits for the host.
    torch.cuda._sleep(1_000_000)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def clean_up(device: torch.device) -> None:
    """Give back what nothing uses, and begin to look for the next peak of VRAM."""
    gc.collect()
    pack.release_memory(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peaks(device: torch.device) -> Row:
    """Return the most VRAM since `clean_up` that tensors had, and that torch reserved; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return {"allocated_gib": allocated / pack.GIB, "reserved_gib": reserved / pack.GIB}


def report_row(tensor: torch.Tensor) -> Row:
    """Return what the pack's own report says of the run that made a tensor, as far as a table may need it."""
    report = pack.pipeline.report_of(tensor)
    row: Row = {}
    for stage in report["stages"]:
        row[f"{stage['stage']}_seconds"] = stage["seconds"]
        row[f"{stage['stage']}_planned_gib"] = (stage["predicted_vram_bytes"] or 0) / pack.GIB
        row[f"{stage['stage']}_reserved_gib"] = stage["peak_vram_reserved_bytes"] / pack.GIB
    details = next(stage for stage in report["stages"] if stage["stage"] == "sample")["details"]
    plan = details["plan"]
    decode = f"tiles of {plan['tile']}" if plan["tile"] else "whole"
    return {
        **row,
        # Of all clips together: the first step of the first one warms up, a later clip's may count.
        "step_seconds": [sum(each) for each in zip(*details["step_seconds"], strict=True)],
        "reserved_gib": report["peak_vram_reserved_bytes"] / pack.GIB,
        "plan": f"{plan['mode']}, {plan['resident_blocks']} of {plan['num_blocks']}; {decode}",
        "planned_ram_gib": {stage: need["ram_bytes"] / pack.GIB for stage, need in plan["needs"].items()},
        **{key: details[key] for key in ("engine", "compute", "attention", "matmul", "ops", "offload")},
    }


def vram_problems(name: str, row: Row) -> list[str]:
    """Return a sentence where the sampling of a row took other VRAM than was planned."""
    planned, taken = row["sample_planned_gib"], row["sample_reserved_gib"]
    if taken <= 1 or abs(planned / taken - 1) <= _MOST_OFF:
        return []
    return [f"{name}: VRAM predicted {planned:.2f} GiB, measured {taken:.2f}"]


def first_line(error: Exception) -> str:
    """Return an error in a line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]
