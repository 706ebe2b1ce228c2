"""docs/benchmarks.md: its tables are made of the rows in docs/measurements/DATE/*.jsonl, between markers in the page.

Of every part the newest date counts. What stands outside of the markers is written by hand, and kept; a page without
markers is replaced by the template. A part without rows has no section.

    python tools bench tables            # write the page and its chart
    python tools bench tables --check    # exit status 1 where they are not what the rows give
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from . import page_gpus, plots
from .harness import TOOLS, Row
from .memory import grid

OURS = "pack"
TEMPLATE = """# Benchmarks

Random weights of the full size stand in for the real ones: speed and memory do not depend on values. Every section
names its day, machine and commands; its table is made by `python tools bench tables` from the rows in
[measurements](measurements). Clocks differ by a few per cent between cards and hours: compare figures of one run.

"""

# Tables: titles, and a row's cells as format strings.
PEERS = (
    " | precision | attention | matmul | load s | first step s | s/step | times ours | allocated / reserved GiB | "
    "error | cosine",
    "{title} | {precision} | {attention} | {compute} | {load_seconds:.1f} | {first_step:.2f} | {step:.3f} | "
    "{ratio:.2f} | {allocated_gib:.1f} / {reserved_gib:.1f} | {error:.4f} | {cosine:.5f}",
)
PEERS_LORA = (
    "with a LoRA | s/step | more than without | of the LoRA in the weights | beside it, off by",
    "{title} | {step:.3f} | {more:.1%} | {lora_survives:.1%} | {lora_error:.1%}",
)
# Sections of peers, by part of the rows: what kind of model they have.
PEERS_OF = {
    "peers": "",
    "peers-i2v": "image to video, Wan2.1",
    "peers-i2v-a14b": "image to video, an expert of Wan2.2",
}
PREDICTION = (
    " | of | runs | least | most | mean error",
    "{precision} | {what} | {runs} | {least:.3f} | {most:.3f} | {mean:.1%}",
)
KERNELS = {
    "ops": (" | to | by | ms | GB/s", "{what} | {to} | {by} | {ms:.3f} | {gb_per_s:.0f}"),
    "cross": (" | by | ms", "{what} | {by} | {ms:.3f}"),
    "matmul": (" | precision | by | ms | TOP/s", "{what} | {precision} | {by} | {ms:.2f} | {tera_op_per_s:.0f}"),
    "attention": (
        "self-attention | ms | without norm and RoPE | temporaries | error",
        "{by} | {ms:.2f} | {alone_ms:.2f} | {temporaries:.2f} | {error:.4f}",
    ),
    "profile": (
        "one step | s | ms | share | calls | idle ms",
        "{what} | {s:.3f} | {ms:.1f} | {share:.1%} | {calls} | {idle_ms:.1f}",
    ),
}
# Sections of one table, by part of the rows: title, text, titles and cells of the table.
PLAIN = {
    "prompt_to_frames": (
        "Prompt to frames",
        "One process, in seconds; a new prompt of 40 tokens and a new seed each run. A step is that of all its clips.",
        "clip | clips at once | encode | sample | decode | load text encoder | load transformer | load VAE | all | "
        "third step | GiB reserved",
        "{size}x{frames} | {batch} | {encode_seconds:.2f} | {sample_seconds:.2f} | {decode_seconds:.2f} | "
        "{load_text_encoder_seconds:.2f} | {load_transformer_seconds:.2f} | {load_vae_seconds:.2f} | "
        "**{seconds:.2f}** | {step_seconds[2]:.3f} | {reserved_gib:.2f}",
    ),
    "caps": (
        "Does it fit",
        "Prompt to frames with torch limited to what a card of so many GiB would leave it; 0 is no cap. Sampling and "
        "decode: GiB planned / reserved; card: all in use, CUDA's context included; latents: as without a cap.",
        " | clip | cap | RAM cap | mode | blocks on the card; decode | sampling | decode | card | RAM | s/step | "
        "decode s | same latents",
        "{precision} | {size}x{frames} | {cap_gib:g} | {ram_limit_gib:g} | {mode} | {plan} | "
        "{sample_planned_gib:.2f} / {sample_reserved_gib:.2f} | {decode_planned_gib:.2f} / {decode_reserved_gib:.2f} | "
        "{card_gib:.2f} | {ram_gib:.1f} | {step:.3f} | {decode_seconds:.2f} | {same_latents}",
    ),
    "loading": (
        "Loading and streaming",
        "Pace: milliseconds of a block beside a stand-in that computes for as long as one.",
        " | GB | s | GB/s | RAM over weights | first pace | pace | compute | GiB of RAM left | bytes page-locked",
        "{what} | {gb:.2f} | {seconds:.1f} | {gb_per_s:.1f} | {ram_over_weights:.3f} | {first_ms:.1f} | {ms:.2f} | "
        "{compute_ms:.1f} | {ram_gib_above_start:.3f} | {locked_bytes}",
    ),
    "lora": (
        "LoRAs",
        "A stack of ranks on all linear layers of the blocks, in rounds with none; mode none is resident, block is "
        "streamed from RAM. Swap: what another stack costs the next run. Survives: how much of the exact change of one "
        "layer that is in its output, by our branch, and by a sum that is rounded to the checkpoint's 8 bits.",
        "ranks | precision | mode | s/step | more | swap s | ready s | other strength s | GiB planned / reserved | "
        "survives | survives rounded",
        "{what} | {precision} | {mode} | {step:.3f} | {more:.1%} | {swap_seconds:.2f} | {ready_seconds:.2f} | "
        "{again_seconds:.2f} | {sample_planned_gib:.2f} / {sample_reserved_gib:.2f} | {branch_survives:.3f} | "
        "{rounded_survives:.3f}",
    ),
    "image_to_video": (
        "Image to video",
        "A step beside one of text to video; models take turns; mode none is resident, block is streamed from RAM; "
        "under a cap (GiB of VRAM, then of RAM) `auto` decides. i2v is Wan2.1's model, i2v-a14b one expert of "
        "Wan2.2's. New image: seconds of a first step that reads the weights of its keys and values, from files in "
        "the page cache.",
        "model | precision | mode | plan | s/step | more | first step | first step, new image | "
        "GiB planned / reserved | GiB RAM | same latents",
        "{what} | {precision} | {mode} | {plan_line} | {step:.3f} | {more:.1%} | {first_step:.3f} | {new_image:.3f} | "
        "{sample_planned_gib:.2f} / {sample_reserved_gib:.2f} | {ram_gib:.1f} | {same_latents}",
    ),
    "experts": (
        "Two experts",
        "Wan2.2 A14B, both as one model beside each alone, in turns; mode none is resident, block is streamed from "
        "RAM; under a cap `auto` decides. Change: what the first step of the second expert takes more than its next.",
        " | precision | plan | high alone, s/step | high | low alone | low | change s | GiB planned / reserved | "
        "GiB RAM | same latents",
        "{what} | {precision} | {plan_line} | {high_alone:.3f} | {high:.3f} | {low_alone:.3f} | {low:.3f} | "
        "{change:.3f} | {sample_planned_gib:.2f} / {sample_reserved_gib:.2f} | {ram_gib:.1f} | {same_latents}",
    ),
    "vae": (
        "VAE",
        "Copies to and from the CPU included; tiles in latent cells; differences from the whole, of pixels in [0, 1] "
        "or of latents.",
        " | by | clip | tiles of | s | times whole | allocated / reserved GiB | predicted | mean difference | most",
        "{vae} {stage} | {by} | {size}x{frames} | {tile} | {seconds:.2f} | {times_whole:.2f} | "
        "{allocated_gib:.2f} / {reserved_gib:.2f} | {predicted_gib:.2f} | {mean_difference:.4f} | "
        "{most_difference:.3f}",
    ),
    "text": (
        "Text encoder",
        "UMT5-XXL, 40 tokens alone and padded to 512.",
        " | device | load s | 40 tokens, s | 512 padded, s | peak RAM / file | GiB VRAM | difference padded",
        "{precision} | {device} | {load_seconds:.1f} | {seconds:.2f} | {padded_seconds:.2f} | {ram_over_file:.2f} | "
        "{reserved_gib:.2f} | {difference:.3f}",
    ),
}


def table(rows: Iterable[Row], form: Sequence[str]) -> str:
    """Return a table in Markdown; a cell is empty where the row lacks its keys."""

    def cell(row: Row, text: str) -> str:
        try:
            return text.format_map({key: value for key, value in row.items() if value is not None})
        except (KeyError, IndexError):
            return ""

    titles, cells = (text.split(" | ") for text in form)
    lines = [titles, ["---"] * len(titles), *([cell(row, text) for text in cells] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def section(title: str, text: str, rows: Sequence[Row], *parts: str) -> str:
    """Return a section: what was measured, where and by which commands, then the parts, and what did not run."""
    machines = dict.fromkeys(f"{row['date']}, {row['machine']}." for row in rows if "machine" in row)
    commands = dict.fromkeys(row["command"] for row in rows)
    keys = ("precision", "by", "what", "size", "frames", "cap_gib", "mode", "way", "gpus")
    names = {id(row): row.get("title") or " ".join(str(row[key]) for key in keys if key in row) for row in rows}
    failed = "; ".join(f"{names[id(row)]} ({row['problem'].split('. ')[0]})" for row in rows if "problem" in row)
    start = [f"## {title}", text, "\n".join(machines), "\n".join(["```", *commands, "```"])]
    return "\n\n".join([*start, *parts, *([f"Did not run: {failed}."] if failed else [])]) + "\n"


def plain(part: str) -> tuple[str, Callable[[Sequence[Row]], str]]:
    """Return a part, and what makes its section of PLAIN of the rows that did not fail."""
    title, text, *form = PLAIN[part]
    return part, lambda rows: section(title, text, rows, table((row for row in rows if "problem" not in row), form))


def peers(rows: Sequence[Row]) -> str:
    part = rows[0]["part"]
    kind = PEERS_OF[part]
    alike = "noise, text, image and weights" if kind else "noise, text and weights"
    done = [row for row in rows if "step" in row]
    ours = [row["step"] for row in done if row["peer"] == OURS]
    compared = [
        row
        | {"ratio": row["step"] / ours[0] if ours else None}
        | ({} if row.get("is_finite") else {"title": f"{row['title']} (not finite)"})
        for row in done
    ]
    versions = {f"{row['title'].split()[0].strip(',')} {row['version']}": "" for row in done if "version" in row}
    others = f" {', '.join(versions)}." if versions else ""
    text = (
        f"{rows[0]['size']}, {rows[0]['frames']} frames, {rows[0]['steps']} steps; all have the same {alike}. "
        "s/step is the median without the first step; error and cosine compare the final latents with the "
        f"first row's, a BF16 run in plain torch (relative L2 norm of the difference).{others}"
    )
    steps = {row["peer"]: row["step"] for row in done}
    plain = [row for row in compared if "lora_survives" not in row]
    loras = [
        row
        | {
            "more": row["step"] / steps[without] - 1
            if (without := row["peer"].removesuffix("-lora")) in steps
            else None
        }
        for row in compared
        if "lora_survives" in row
    ]
    tables = [table(plain, PEERS), *([table(loras, PEERS_LORA)] if loras else [])]
    chart = f"![Seconds a step]({part}.svg)"
    return section(f"Seconds a step: {kind}" if kind else "Seconds a step", text, rows, *tables, chart)


def gpus(rows: Sequence[Row]) -> str:
    text, *parts = page_gpus.tables(rows, table)
    chart = ["![Times as fast as one GPU](gpus.svg)"] if page_gpus.draw(rows) else []
    return section("Several GPUs", text, rows, *parts, *chart)


def draw_peers(rows: Sequence[Row]) -> str | None:
    """Return the chart of the seconds a step, fewest first; None where none was measured."""
    done = sorted((row for row in rows if "step" in row and "lora_survives" not in row), key=lambda row: row["step"])
    if not done:
        return None
    kind = PEERS_OF[rows[0]["part"]]
    title = f"{rows[0]['date']}, {rows[0]['size']}, {rows[0]['frames']} frames; {rows[0]['machine']}"
    title = f"{kind}; {title}" if kind else title
    return plots.bars(title, [(row["title"], row["step"], row["peer"].startswith(OURS)) for row in done], "s/step")


def prediction(rows: Sequence[Row]) -> str:
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        for what, predicted, taken in grid.pairs(row):
            if taken > grid.LEAST_GIB:
                found.setdefault((row["precision"], what), []).append(predicted / taken)
    lines = [
        {"precision": key[0], "what": key[1], "runs": len(ratios), "least": min(ratios), "most": max(ratios)}
        | {"mean": sum(abs(ratio - 1) for ratio in ratios) / len(ratios)}
        for key, ratios in found.items()
    ]
    text = "What the plan said before, over what was taken: every offload mode at every size."
    return section("Memory: planned and taken", text, rows, table(lines, PREDICTION)) if lines else ""


def fit(points: Sequence[tuple[float, float]], power: int) -> tuple[float, float, float]:
    """Fit y = a * x + b * x**power by least squares of the relative errors; return a, b and the worst error."""
    x, y = torch.tensor(points, dtype=torch.float64).unbind(1)
    columns = torch.stack([x, x**power], dim=1)
    # Columns of like size, so that the problem is well conditioned.
    scale = columns.amax(dim=0)
    solution = torch.linalg.lstsq(columns / scale / y[:, None], torch.ones_like(y)[:, None]).solution[:, 0] / scale
    return float(solution[0]), float(solution[1]), float(((columns @ solution) / y - 1).abs().max())


def growth(rows: Sequence[Row]) -> str:
    lines = []
    for precision in dict.fromkeys(row["precision"] for row in rows):
        series = [row for row in rows if row["mode"] == "none" and row["precision"] == precision and "tokens" in row]
        if len({row["tokens"] for row in series}) < 2:
            continue
        a, b, worst = fit([(row["tokens"], row["step_seconds"][-1]) for row in series], 2)
        lines.append(f"- {precision}: s/step = {a:.3e} * tokens + {b:.3e} * tokens^2, within {worst:.1%}")
        if all(row["reserved_gib"] for row in series):
            a, b, worst = fit([(row["tokens"], row["reserved_gib"]) for row in series], 0)
            lines.append(f"- {precision}: GiB reserved = {b:.2f} + {a * 2**20:.1f} KiB * tokens, within {worst:.1%}")
        ratios = [row["estimated_seconds"] / row["step_seconds"][-1] for row in series if row["estimated_seconds"]]
        if ratios:
            off = max(abs(ratio - 1) for ratio in ratios)
            lines.append(f"- {precision}: the estimate that users see is off by {off:.1%} at most")
    text = "All weights on the card, one clip: clips of a batch are sampled one after the other."
    return section("Growth with the clip", text, rows, "\n".join(lines)) if lines else ""


def kernels(rows: Sequence[Row]) -> str:
    done = [row for row in rows if "problem" not in row]
    kinds = {kind: [row for row in done if row["kind"] == kind] for kind in KERNELS}
    text = (
        f"{rows[0]['tokens']} rows of {rows[0]['dim']}. Self-attention has RMS norm and RoPE of q and k in it; "
        "temporaries are bytes per token and unit of width, the result among them; error: relative L2 to FP32."
    )
    return section("Kernels", text, rows, *(table(found, KERNELS[kind]) for kind, found in kinds.items() if found))


SECTIONS: dict[str, tuple[str, Callable[[Sequence[Row]], str]]] = {
    **{part: (part, peers) for part in PEERS_OF},
    "prompt-to-frames": plain("prompt_to_frames"),
    "does-it-fit": plain("caps"),
    "prediction": ("grid", prediction),
    "growth": ("grid", growth),
    "kernels": ("kernels", kernels),
    "loras": plain("lora"),
    "image-to-video": plain("image_to_video"),
    "several-gpus": ("gpus", gpus),
    "two-experts": plain("experts"),
    "loading": plain("loading"),
    "vae": plain("vae"),
    "text-encoder": plain("text"),
}
"""Marker in the page: part of the rows, and what makes a section of them."""


def newest(rows: Iterable[Row], part: str) -> list[Row]:
    of_part = [row for row in rows if row["part"] == part]
    return [row for row in of_part if row["date"] == max(each["date"] for each in of_part)]


def sections(rows: Sequence[Row]) -> dict[str, str]:
    """Return what rows give, by marker; nothing for a part that has none, or only failed."""
    chosen = {name: newest(rows, part) for name, (part, _) in SECTIONS.items()}
    made = {name: SECTIONS[name][1](part) for name, part in chosen.items() if any("problem" not in row for row in part)}
    return {name: text for name, text in made.items() if text}


def make_files(docs: Path) -> dict[Path, str]:
    """Return the page and its chart as the rows below docs/measurements give them; nothing without rows."""
    files = sorted((docs / "measurements").glob("*/*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    if not rows:
        return {}
    page, found = docs / "benchmarks.md", sections(rows)
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    if "<!-- peers -->" not in text:
        text = TEMPLATE + "\n".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in SECTIONS)
    for name in SECTIONS:
        made = f"<!-- {name} -->\n{found.get(name, '')}<!-- /{name} -->"
        text = re.sub(rf"<!-- {name} -->\n.*?<!-- /{name} -->", lambda _, made=made: made, text, flags=re.DOTALL)
    charts = {**dict.fromkeys(PEERS_OF, draw_peers), "gpus": page_gpus.draw}
    drawn = {docs / f"{part}.svg": draw(newest(rows, part)) for part, draw in charts.items() if newest(rows, part)}
    return {page: text} | {file: chart for file, chart in drawn.items() if chart}


def main(words: list[str]) -> int:
    """Write the page or check it; returns 1 where it is not what the rows give."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python tools bench tables", description=__doc__, formatter_class=form)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--docs", type=Path, default=TOOLS.parent / "docs", help="folder of the page and measurements/")
    options = parser.parse_args(words)
    files = make_files(options.docs)
    old = [file for file, text in files.items() if not file.exists() or file.read_text(encoding="utf-8") != text]
    if options.check and old:
        names = ", ".join(file.name for file in old)
        print(f"Not what docs/measurements gives: {names}. Run 'python tools bench tables'.", file=sys.stderr)
        return 1
    for file in old:
        file.write_text(files[file], encoding="utf-8")
    return 0
