"""The section of docs/benchmarks.md on several GPUs, and its chart, of the rows of gpus.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import plots
from .harness import Row

Table = Callable[[Sequence[Row], Sequence[str]], str]

_TEXT = (
    "One clip on one GPU and on several, twice with the same seed, of which the second is told; mode none is resident, "
    "block is streamed from RAM. Computed: by engine/parallel/split.py, from one GPU's seconds and the speed of the "
    "links, with nothing of the exchange hidden behind computing to half of it. Apart: how far the latents are from "
    "those of one GPU, relative L2; cancel: seconds until a run ends after Cancel."
)
_OURS = (
    "GPUs | precision | clip | mode | s/step | times one GPU | computed | first run s | sample s | apart | cancel s | "
    "GiB planned / reserved | decode s",
    "{gpus} | {precision} | {size}x{frames} | {mode} | {step_seconds:.3f} | {gain:.2f} | "
    "{predicted:.2f} to {predicted_hidden:.2f} | {first_seconds:.1f} | {sample_seconds:.1f} | {apart:.4f} | "
    "{cancel_seconds:.2f} | {planned_gib:.2f} / {reserved_gib:.2f} | {decode_seconds:.2f}",
)
_LIGHTX2V = (
    "LightX2V | GPUs | precision | clip | attention | s/step | times its one GPU | times ours | apart from its one GPU",
    "{way} | {gpus} | {precision} | {size}x{frames} | {attention} | {step_seconds:.3f} | {gain:.2f} | {ratio:.2f} | "
    "{apart:.4f}",
)
_CLIPS = (
    "many clips, GPUs | precision | clip | clips | s | clips an hour | times one GPU",
    "{gpus} | {precision} | {size}x{frames} | {clips} | {seconds:.1f} | {clips_per_hour:.1f} | {gain:.2f}",
)


def split(rows: Sequence[Row], by: str) -> list[Row]:
    """Return the rows of a part that did not fail."""
    return [row for row in rows if row["by"] == by and "problem" not in row]


def tables(rows: Sequence[Row], table: Table) -> list[str]:
    """Return the tables of what was measured. Args: table: makes one of rows and a form."""
    ours, clips = split(rows, "ours"), split(rows, "clips")
    theirs = sorted(
        (row | _beside_ours(row, ours) for row in split(rows, "lightx2v")),
        key=lambda row: (row["size"], row["gpus"], row["step_seconds"]),
    )
    parts = [(ours, _OURS), (theirs, _LIGHTX2V), (clips, _CLIPS)]
    links = {row["link_bytes"] for row in ours if "link_bytes" in row}
    text = [f"A GPU sends {min(links) / 1e9:.0f} GB/s to another one here."] if links else []
    return [_TEXT, *text, *(table(found, form) for found, form in parts if found)]


def _beside_ours(row: Row, ours: Sequence[Row]) -> Row:
    """Return how many times as long as ours with as many GPUs it takes, where all weights are on each."""
    steps = [
        each["step_seconds"]
        for each in ours
        if each["mode"] == "none" and all(each[name] == row[name] for name in ("gpus", "size", "precision"))
    ]
    return {"ratio": row["step_seconds"] / steps[0]} if steps else {}


def draw(rows: Sequence[Row]) -> str | None:
    """Return a chart of how many times as fast as one GPU several are: ours, what the formula gives, and the fastest of
    LightX2V; None where no several GPUs were measured.
    """
    bars = []
    for size, count in sorted({(row["size"], row["gpus"]) for row in rows if row["gpus"] > 1}):
        named = f"{size}, {count} GPUs"
        cases = [row for row in rows if (row["size"], row["gpus"]) == (size, count) and "gain" in row]
        for row in split(cases, "ours"):
            streamed = "" if row["mode"] == "none" else f", {row['mode']}"
            bars.append((f"{named}: this pack{streamed}", row["gain"], True))
            if "predicted" in row and not streamed:
                bars.append((f"{named}: computed, at least", row["predicted"], False))
        theirs = min(split(cases, "lightx2v"), key=lambda row: row["step_seconds"], default=None)
        if theirs:
            bars.append((f"{named}: LightX2V, {theirs['way']}", theirs["gain"], False))
        bars += [(f"{named}: clips an hour", row["gain"], True) for row in split(cases, "clips")]
    if not bars:
        return None
    title = f"Times as fast as one GPU. {rows[0]['date']}, {rows[0]['frames']} frames; {rows[0]['machine']}"
    return plots.bars(title, bars, "times")
