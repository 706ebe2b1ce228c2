"""A transformer's clip on smaller cards: each case in a process of its own, as a card of so many GiB would leave it."""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Callable, Iterator

import torch

from ..arguments import number
from . import pack
from .harness import Bench, Row, report_row, wait_for_turn
from .memory import limits

CAPS = (8.0, 12.0, 16.0, 24.0)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--caps", type=number(), nargs="*", default=CAPS, help="GiB of VRAM, context included")
    parser.add_argument(
        "--ram-gib", type=number(), nargs="*", default=[60.0, 30.0], help="of RAM, under the second cap"
    )


def list_cases(options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Return the cases: GiB of VRAM and of RAM, 0 for all."""
    cases = {f"cap-{cap:g}": (cap, 0.0) for cap in options.caps}
    return cases | {f"cap-{cap:g}-ram-{ram:g}": (cap, ram) for cap in options.caps[1:2] for ram in options.ram_gib}


def measure(bench: Bench, latents: str, prefix: str = "") -> Iterator[Row]:
    """Yield a row for every case.

    Args:
        latents: the hash that all must have; empty where it is not known.
        prefix: of the cases' names, which the child gets back.
    """
    for name, row in bench.run_children([prefix + case for case in list_cases(bench.options)]):
        limits.remove_limits()
        same = {"same_latents": row["latents"] == latents} if latents and "latents" in row else {}
        yield {"what": name, **row, **same}


def run_child(
    bench: Bench,
    case: str,
    load: Callable[[], pack.TransformerHandle],
    entries_of: Callable[[pack.TransformerHandle], list[pack.Conditioning]],
    steps: int,
) -> None:
    """Sample under the case's caps; write the row."""
    vram, ram = list_cases(bench.options)[case]
    wait_for_turn()
    if ram:
        limits.limit_ram(ram)
    if bench.device.type == "cuda":
        limits.limit_vram(vram, bench.device)
    with limits.watch_ram() as watched:
        handle = load()
        row = sample(bench, handle, entries_of(handle), steps)
    row |= {"ram_gib": watched.num_bytes / pack.GIB}
    bench.options.row.write_text(json.dumps(row))


def sample(bench: Bench, handle: pack.TransformerHandle, entries: list[pack.Conditioning], steps: int) -> Row:
    """Return what the report says of a clip, and its latents' hash."""
    settings = pack.SamplingSettings(seed=1, method="euler", steps=steps)
    latents = pack.pipeline.sample(handle, entries, torch.zeros(1, *bench.shape), settings, hooks=pack.Hooks())
    row = report_row(latents)
    row |= {"latents": digest(latents), "is_finite": bool(torch.isfinite(latents).all())}
    row |= {"step": statistics.median(row["step_seconds"][1:] or row["step_seconds"])}
    details = {stage["stage"]: stage["details"] for stage in pack.pipeline.report_of(latents)["stages"]}["sample"]
    return row | {"plan_line": details["plan"]["line"], "moved_gib": details["moved_bytes"] / pack.GIB}


def digest(latents: torch.Tensor) -> str:
    """Return what tells latents from others."""
    return hashlib.sha256(latents.numpy().tobytes()).hexdigest()[:16]


def problems_of(name: str, row: Row) -> list[str]:
    """Return a sentence where a run did not finish, or its latents are not the uncapped ones."""
    if "problem" in row or "step_seconds" not in row:
        return [f"{name}: {row.get('problem', 'did not finish')}"]
    if row.get("is_finite", True) and row.get("same_latents", True):
        return []
    return [f"{name}: latents {'differ' if row.get('is_finite', True) else 'are not finite'}"]
