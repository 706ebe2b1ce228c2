"""Tables and checks of what memory.py measured.

Imported as `lightx2v_pack.tools.bench.memory_tables`, after the script has registered the pack.
"""

from __future__ import annotations

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
    """Yield the lines of plan / measured (ratio): of a placement's loading, in its first row, and of every step."""
    yield head("precision", "size", "weights", "load VRAM", "load RAM", "VRAM", "RAM", "load s", "s/step")
    for row in rows:
        name = f"{row['precision']} {row['width']}x{row['height']}x{row['frames']} {row['placement']}"
        start = [row["precision"], f"{row['width']}x{row['height']}x{row['frames']}", row["placement"]]
        if "problem" in row:
            problems.append(f"{name}: {row['problem']}")
            yield line(*start, row["problem"])
            continue
        cells = []
        for what, stage, predicted, measured in (
            ("VRAM", "load ", "predicted_load_vram_gib", "load_reserved_gib"),
            ("RAM", "load ", "predicted_load_ram_gib", "load_ram_gib"),
            ("VRAM", "", "predicted_vram_gib", "reserved_gib"),
            ("RAM", "", "predicted_ram_gib", "ram_gib"),
        ):
            if stage and not row.get("loads"):
                cells.append("")
                continue
            cells.append(compare(f"{name}: {stage}{what}", row[predicted], row[measured], problems))
        load = f"{row['load_seconds']:.1f}" if row.get("loads") else ""
        yield line(*start, *cells, load, f"{row['step_seconds'][-1]:.3f}")


def compare(name: str, predicted: float, measured: float, problems: list[str]) -> str:
    """Return plan / measured (ratio) in GiB; a ratio that misses the target goes to `problems`."""
    if not measured:
        return f"{predicted:.2f} / {measured:.2f}"
    ratio = predicted / measured
    if measured > LEAST_GIB and not LOW <= ratio <= HIGH:
        problems.append(f"{name} predicted {predicted:.2f} GiB, measured {measured:.2f} ({ratio:.3f})")
    return f"{predicted:.2f} / {measured:.2f} ({ratio:.3f})"


def caps_table(rows: Sequence[Row], grid: Sequence[Row], problems: list[str]) -> Iterable[str]:
    """Yield the lines of the capped runs; plan / used are GiB of what torch reserves, the card's with its context."""
    complete = [row for row in rows if not row.get("is_short")]
    wanted = {(row["precision"], row["size"]): row.get("latents") for row in complete if row["cap_gib"] == 0}
    yield head(
        "precision", "size", "cap GiB", "plan", "loading, plan / used", "sampling", "decode", "card", "RAM", "s/step",
        "other modes that fit, s/step", "slower by", "decode s", "prompt to frames s", "with loading", "same latents",
    )  # fmt: skip
    for row in rows:
        if row.get("is_short"):
            if "problem" in row:
                problems.append(f"{row['precision']} {row['size']} {row['mode']}: {row['problem']}")
            continue
        start = [row["precision"], f"{row['size']}x{row['frames']}", describe_cap(row)]
        name = " ".join(start)
        if "problem" in row or "step" not in row:
            problems.append(f"{name}: {row.get('problem', 'did not finish')}")
            yield line(*start, row.get("problem", "did not finish"))
            continue
        same = {None: "", row["latents"]: "yes"}.get(wanted.get((row["precision"], row["size"])), "NO")
        if same == "NO" or not row["is_finite"]:
            problems.append(f"{name}: latents {'differ from the uncapped run' if row['is_finite'] else 'not finite'}")
        card = row["report"].get("peak_vram_reserved_bytes", 0) / GIB + row.get("end_context_gib", 0.0)
        if row["cap_gib"] and card > row["cap_gib"]:
            problems.append(f"{name}: took {card:.2f} GiB of the card")
        others = other_modes(row, rows, grid)
        slower = row["step"] / others[0][0] - 1 if others else None
        if slower is not None and slower > MOST_SLOWDOWN and is_choice(row):
            seconds, other = others[0]
            problems.append(f"{name}: {other} takes {seconds:.3f} s a step, the plan's choice {row['step']:.3f}")
        decode = stage_of(row, "decode")
        yield line(
            *start, describe_plan(row), *(planned(row, stage) for stage in ("load_transformer", "sample", "decode")),
            f"{card:.2f}", f"{row['ram_gib']:.1f}", f"{row['step']:.3f}",
            ", ".join(f"{other} {seconds:.3f}" for seconds, other in others),
            "" if slower is None else f"{slower:+.1%}",
            f"{decode['seconds']:.2f}", f"{working_seconds(row):.1f}", f"{row['seconds']:.1f}", same,
        )  # fmt: skip


def describe_cap(row: Row) -> str:
    parts = [f"{row['cap_gib']:g}" if row["cap_gib"] else "none"]
    parts += [f"RAM {row['ram_limit_gib']:g}"] if row.get("ram_limit_gib") else []
    parts += [f"mode {row['mode']}"] if row.get("mode", "auto") != "auto" else []
    return ", ".join(parts)


def is_choice(row: Row) -> bool:
    """Say whether the plan was free to take the fastest mode: neither named nor from the drive."""
    return row.get("mode", "auto") == "auto" and not row.get("ram_limit_gib")


def other_modes(row: Row, rows: Sequence[Row], grid: Sequence[Row]) -> list[tuple[float, str]]:
    """Return (seconds a step, mode) of what fits this cap, the fastest first.

    From the uncapped runs of the same series where there are any, else from the grid: cards differ by a few per cent.
    """
    clip = (row["precision"], row["size"], row["frames"])
    series = [
        each
        for each in rows
        if (each["precision"], each["size"], each["frames"]) == clip and not each["cap_gib"] and "step" in each
    ]
    if series:
        measured = [
            (each["step"], mode_of(each), stage_of(each, "sample")["peak_vram_reserved_bytes"] / GIB)
            for each in series
            if each is not row and "problem" not in each
        ]
    else:
        measured = [
            (each["step_seconds"][-1], each["placement"], each["reserved_gib"])
            for each in grid
            if (each["precision"], f"{each['width']}x{each['height']}", each["frames"]) == clip
            and "problem" not in each
        ]
    room = row["cap_gib"] - row["context_gib"] if row["cap_gib"] else float("inf")
    return sorted((seconds, mode) for seconds, mode, reserved in measured if reserved <= room)


def mode_of(row: Row) -> str:
    """Return the offload mode that a run took."""
    mode: str = stage_of(row, "sample")["details"]["offload"]
    return mode


def stage_of(row: Row, name: str) -> Row:
    record: Row = next(each for each in row["report"]["stages"] if each["stage"] == name)
    return record


def working_seconds(row: Row) -> float:
    """Return the seconds of all stages but those that load."""
    return sum(each["seconds"] for each in row["report"]["stages"] if not each["stage"].startswith("load"))


def planned(row: Row, stage: str) -> str:
    """Return what the plan expected of a stage, and what it took."""
    record = next((each for each in row["report"]["stages"] if each["stage"] == stage), {})
    expected, used = record.get("predicted_vram_bytes"), record.get("peak_vram_reserved_bytes", 0)
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
    return str(plan or mode_of(row))


def head(*titles: str) -> str:
    return f"{line(*titles)}\n{'|---' * len(titles)}|"


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
