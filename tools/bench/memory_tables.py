"""Tables and checks of what memory.py measured.

Imported as `lightx2v_pack.tools.bench.memory_tables`, after the script has registered the pack.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from ...engine.constants import GIB

Row = dict[str, Any]

LOW, HIGH = 0.95, 1.10
"""What the plan may say, as a share of what was measured."""
LEAST_GIB = 1.0
"""Less is noise: the process itself takes as much."""
MOST_SLOWDOWN = 0.03
"""How much slower the plan's choice may be than another mode that fits."""


def print_tables(rows: Sequence[Row]) -> int:
    """Print both tables; return 1 when a target was missed, else 0."""
    grid = [row for row in rows if row["part"] == "grid"]
    caps = [row for row in rows if row["part"] == "caps"]
    problems: list[str] = []
    if grid:
        print(*grid_table(grid, problems), sep="\n", end="\n\n")
    if caps:
        print(*caps_table(caps, grid, problems), sep="\n", end="\n\n")
    print(*(f"missed: {problem}" for problem in problems), sep="\n")
    return 1 if problems else 0


def grid_table(rows: Iterable[Row], problems: list[str]) -> Iterable[str]:
    yield head(
        "precision", "size", "weights", "VRAM plan", "VRAM", "ratio", "RAM plan", "RAM", "ratio", "load s", "s/step"
    )
    for row in rows:
        name = f"{row['precision']} {row['width']}x{row['height']}x{row['frames']} {row['placement']}"
        start = [row["precision"], f"{row['width']}x{row['height']}x{row['frames']}", row["placement"]]
        if "problem" in row:
            problems.append(f"{name}: {row['problem']}")
            yield line(*start, row["problem"])
            continue
        cells = []
        for what, predicted, measured in (
            ("VRAM", row["predicted_vram_gib"], row["reserved_gib"]),
            ("RAM", row["predicted_ram_gib"], row["ram_gib"]),
        ):
            ratio = predicted / measured if measured else None
            cells += [f"{predicted:.2f}", f"{measured:.2f}", "" if ratio is None else f"{ratio:.3f}"]
            if ratio is not None and measured > LEAST_GIB and not LOW <= ratio <= HIGH:
                problems.append(f"{name}: {what} predicted {predicted:.2f} GiB, measured {measured:.2f} ({ratio:.3f})")
        yield line(*start, *cells, f"{row['load_seconds']:.1f}", f"{row['step_seconds'][-1]:.3f}")


def caps_table(rows: Sequence[Row], grid: Sequence[Row], problems: list[str]) -> Iterable[str]:
    wanted = {(row["precision"], row["size"]): row.get("latents") for row in rows if row["cap_gib"] == 0}
    yield head(
        "precision", "size", "cap GiB", "plan", "sampling, plan / used", "decode, plan / used", "RAM", "s/step",
        "fastest other", "slower by", "decode s", "prompt to frames s", "with loading", "same latents",
    )  # fmt: skip
    for row in rows:
        cap = f"{row['cap_gib']:g}" if row["cap_gib"] else "none"
        cap += f", RAM {row['ram_limit_gib']:g}" if row.get("ram_limit_gib") else ""
        start = [row["precision"], f"{row['size']}x{row['frames']}", cap]
        name = " ".join(start)
        if "problem" in row or "step" not in row:
            problems.append(f"{name}: {row.get('problem', 'did not finish')}")
            yield line(*start, row.get("problem", "did not finish"))
            continue
        uncapped = wanted.get((row["precision"], row["size"]))
        same = {None: "", row["latents"]: "yes"}.get(uncapped, "NO")
        if same == "NO" or not row["is_finite"]:
            problems.append(f"{name}: latents {'differ from the uncapped run' if row['is_finite'] else 'not finite'}")
        other, seconds = fastest_other(row, grid)
        slower = row["step"] / seconds - 1 if seconds else None
        if slower is not None and slower > MOST_SLOWDOWN and not row.get("ram_limit_gib"):
            problems.append(f"{name}: {other} takes {seconds:.3f} s a step, the plan's choice {row['step']:.3f}")
        decode = next(each for each in row["report"]["stages"] if each["stage"] == "decode")
        yield line(
            *start, describe_plan(row), planned(row, "sample"), planned(row, "decode"), f"{row['ram_gib']:.1f}",
            f"{row['step']:.3f}",
            f"{other} {seconds:.3f}" if seconds else "", "" if slower is None else f"{slower:+.1%}",
            f"{decode['seconds']:.2f}", f"{working_seconds(row):.1f}", f"{row['seconds']:.1f}", same,
        )  # fmt: skip


def fastest_other(row: Row, grid: Sequence[Row]) -> tuple[str, float]:
    """Return the placement of the grid, and its seconds a step, that is the fastest of those that fit this cap."""
    width, height = map(int, row["size"].split("x"))
    fits = [
        (statistics.median(each["step_seconds"][1:] or each["step_seconds"]), each["placement"])
        for each in grid
        if (each["precision"], each["width"], each["height"], each["frames"])
        == (row["precision"], width, height, row["frames"])
        and "problem" not in each
        and (not row["cap_gib"] or each["reserved_gib"] + row["context_gib"] <= row["cap_gib"])
    ]
    seconds, name = min(fits, default=(0.0, ""))
    return name, seconds


def working_seconds(row: Row) -> float:
    """Return the seconds of all stages but those that load."""
    return sum(each["seconds"] for each in row["report"]["stages"] if not each["stage"].startswith("load"))


def planned(row: Row, stage: str) -> str:
    """Return what the plan expected of a stage, and what it took."""
    record = next(each for each in row["report"]["stages"] if each["stage"] == stage)
    expected, used = record.get("predicted_vram_bytes"), record["peak_vram_reserved_bytes"]
    return f"{'?' if expected is None else f'{expected / GIB:.2f}'} / {used / GIB:.2f}"


def describe_plan(row: Row) -> str:
    """Return the plan's own line, without its budget."""
    plan = next(
        (each["details"]["plan"] for each in row["report"]["stages"] if "plan" in each.get("details", {})),
        row["report"].get("plan"),
    )
    if isinstance(plan, dict):
        kept = f", {plan['resident_blocks']} of {plan['num_blocks']} resident" if plan["mode"] != "none" else ""
        return f"{plan['mode']}{kept}; decode {'tiles of ' + str(plan['tile']) if plan['tile'] else 'whole'}"
    sample = next(each for each in row["report"]["stages"] if each["stage"] == "sample")
    return str(plan or sample["details"].get("offload"))


def head(*titles: str) -> str:
    return f"{line(*titles)}\n{'|---' * len(titles)}|"


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
