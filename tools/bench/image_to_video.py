"""What an image costs: seconds a step of image-to-video models beside text-to-video, resident and streamed.

Models take turns in rounds, each loaded once: the step is the median of all rounds, without each run's first one. Every
second round has a new image, whose keys and values are made in the first step; the others have the one before.

Then every model but the first in a fresh process under each cap: the latents must be the same.

    python tools bench image_to_video --out image_to_video.jsonl
    python tools bench image_to_video --dim 256 --ffn-dim 512 --layers 2 --width 64 --height 64 --frames 5   # any CPU
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence

import torch

from ..arguments import whole
from . import capped, pack
from .harness import Bench, Row, add_clip_options, clean_up, text_rows, vram_problems
from .weights import KINDS, PRECISIONS

# The share of a step at 832x480x81 that an image may take more.
_MOST = 0.04


def add_options(parser: argparse.ArgumentParser) -> None:
    add_clip_options(parser)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp8")
    parser.add_argument(
        "--kinds", nargs="+", choices=tuple(KINDS), default=["t2v", "i2v"], help="others beside the first"
    )
    parser.add_argument("--modes", nargs="+", default=["none", "block"])
    parser.add_argument("--rounds", type=whole(), default=2)
    capped.add_options(parser)


def measure(bench: Bench) -> Iterator[Row]:
    """Yield a row for every model in every mode, then for every cap."""
    options, latents = bench.options, {}  # type: argparse.Namespace, dict[str, str]
    common = {"precision": options.precision, "size": f"{options.width}x{options.height}", "frames": options.frames}
    for mode in options.modes:
        if bench.seconds_left <= 0:
            return
        handles = {kind: bench.load_transformer(options.precision, kind, mode=mode) for kind in options.kinds}
        try:
            for row in measure_mode(bench, handles, mode):
                latents.setdefault(row["what"], row["latents"])
                yield common | row | {"same_latents": row["latents"] == latents[row["what"]]}
        finally:
            for handle in handles.values():
                handle.unload()
            clean_up(bench.device)
    for kind in options.kinds[1:]:
        for row in capped.measure(bench, latents.get(kind, ""), f"{kind}-"):
            yield common | row


def run_child(bench: Bench) -> None:
    """Sample a model under the cap; write the row."""
    options = bench.options
    kind, case = options.child.rsplit("-cap-", 1)
    capped.run_child(
        bench,
        f"cap-{case}",
        lambda: bench.load_transformer(options.precision, kind),
        lambda handle: conditioning_of(handle, bench, image=1),
        options.steps,
    )


def measure_mode(bench: Bench, handles: dict[str, pack.TransformerHandle], mode: str) -> Iterator[Row]:
    """Run the models in turns."""
    options, runs = bench.options, {kind: [] for kind in handles}  # type: dict[str, list[Row]]
    for number in range(1 + options.rounds):
        for kind, handle in handles.items():
            if bench.seconds_left <= 0 and number > 1:
                break
            clean_up(bench.device)
            entries = conditioning_of(handle, bench, image=(number + 1) // 2)
            row = capped.sample(bench, handle, entries, options.steps)
            if number:  # The first round warms up.
                runs[kind].append(row | {"is_new": number % 2 == 1})
    base = statistics.median(step for run in runs[options.kinds[0]] for step in run["step_seconds"][1:])
    for kind, found in runs.items():
        steps = [step for run in found for step in run["step_seconds"][1:]]
        step = statistics.median(steps)
        row = found[-1] | {"what": kind, "mode": mode, "step": step, "steps": steps, "more": step / base - 1}
        # Of the first image, as under a cap.
        row |= {"latents": found[0]["latents"]}
        firsts = {is_new: [run["step_seconds"][0] for run in found if run["is_new"] == is_new] for is_new in (0, 1)}
        row |= {"first_step": statistics.median(firsts[0] or firsts[1])}
        if handles[kind].architecture.image_dim:
            # Of the rounds that read weights for it, which take buffers too.
            new = next(run for run in found if run["is_new"])
            row |= {"new_image": statistics.median(firsts[1]), "sample_reserved_gib": new["sample_reserved_gib"]}
        # The other models are there too, loaded and at rest.
        others = [each[-1]["load_transformer_planned_gib"] for each in runs.values() if each is not found]
        row["sample_planned_gib"] += sum(others)
        yield row


def conditioning_of(handle: pack.TransformerHandle, bench: Bench, image: int) -> list[pack.Conditioning]:
    """Return a text of always the same rows, and a given first frame for a model that takes one."""
    entries = pack.of_rows(text_rows(torch.Generator().manual_seed(1)), handle.text_dim)
    architecture = handle.architecture
    if not architecture.takes_image:
        return entries
    generator = torch.Generator().manual_seed(image)
    mask = torch.ones(1, 1, *bench.shape[1:])
    mask[:, :, 0] = 0
    rows = torch.randn(1, architecture.image_rows, architecture.image_dim, generator=generator)
    given = pack.Given(
        latents=torch.randn(1, *bench.shape, generator=generator),
        mask=mask,
        rows=rows if architecture.image_dim else None,
    )
    return pack.with_given(entries, given, architecture, pack.Clip.of_latents((1, *bench.shape)))


def check(rows: Sequence[Row]) -> list[str]:
    """Return what misses a target."""
    problems = []
    for row in rows:
        name = f"{row['what']}, {row.get('mode', 'auto')}"
        problems += capped.problems_of(name, row)
        if "step_seconds" not in row:
            continue
        if row["size"] == "832x480" and row.get("more", 0) > _MOST:
            problems.append(f"{name} takes {row['more']:.1%} of a step more, at most {_MOST:.0%} are wanted")
        problems += vram_problems(name, row)
    return problems
