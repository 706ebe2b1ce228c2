"""The run report as rows to show and as Markdown to post: what ran, where, how long it took, what it took."""

from __future__ import annotations

from typing import Any

from .backends.table import milliseconds
from .constants import GIB
from .quantities import format_seconds

STAGE_COLUMNS = ("stage", "time", "peak RAM", "peak VRAM")

_STAGES = {
    "load_text_encoder": "load text encoder",
    "encode": "encode the prompt",
    "load_vae_encoder": "load VAE encoder",
    "encode_video": "encode frames",
    "load_transformer": "load transformer",
    "sample": "sample",
    "load_vae": "load VAE",
    "decode": "decode",
}
# The work itself, in its order; loading is in the total.
_HEADLINE = ("encode", "sample", "decode")
_SAMPLING_FACTS = (
    "file", "engine", "precision", "attention", "matmul", "compile", "offload", "size", "batch", "method", "steps",
    "seed", "shift",
)  # fmt: skip


def headline(report: dict[str, Any]) -> str:
    """Return the run in one line: what was made, in how long, with how much memory, on what."""
    stages = {stage["stage"]: stage for stage in report["stages"]}
    details: dict[str, Any] = stages["sample"]["details"] if "sample" in stages else {}
    made = f"{details['size']} in " if "size" in details else ""
    parts = [f"{stage} {format_seconds(stages[stage]['seconds'])}" for stage in _HEADLINE if stage in stages]
    peaks = [(report["peak_vram_reserved_bytes"], "VRAM"), (report["peak_ram_bytes"], "RAM")]
    peak = ", ".join(f"{num_bytes / GIB:.1f} GiB of {kind}" for num_bytes, kind in peaks if num_bytes)
    facts = [f"at most {peak}"] if peak else []
    facts += [_value(details, "precision")] if "precision" in details else []
    facts.append(report["device"].split(",")[0].removeprefix("NVIDIA ").removeprefix("GeForce "))
    took = f"{made}{format_seconds(report['total_seconds'])}"
    return f"{took}{': ' if parts else ''}{', '.join(parts)}; {', '.join(facts)}"


def stage_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row a stage and one of totals, of `build_report`'s data: what STAGE_COLUMNS says."""
    rows = [
        (
            _STAGES.get(stage["stage"], stage["stage"]),
            format_seconds(stage["seconds"]),
            _memory(stage["peak_ram_bytes"], stage["predicted_ram_bytes"]),
            _memory(stage["peak_vram_reserved_bytes"], stage["predicted_vram_bytes"]),
        )
        for stage in report["stages"]
    ]
    total = (report["peak_ram_bytes"], report["peak_vram_reserved_bytes"])
    return [*rows, ("total", format_seconds(report["total_seconds"]), *(_memory(peak, None) for peak in total))]


def fact_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (name, value): what was sampled and how, and on what."""
    details: dict[str, Any] = next((stage["details"] for stage in report["stages"] if stage["stage"] == "sample"), {})
    rows = [(name, _value(details, name)) for name in _SAMPLING_FACTS if name in details]
    rows += [("LoRA", f"{each['lora']} at {each['strength']:g}, {_applied(each)}") for each in details.get("loras", ())]
    if "plan" in details:
        rows.append(("plan", details["plan"]["line"].replace("plan: ", "")))
    for problem, seconds in details.get("measured", {}).items():
        rows.append((f"measured here, {problem}", milliseconds(seconds)))
    steps = [seconds for clip in details.get("step_seconds", ()) for seconds in clip]
    if steps:
        rows.append(("seconds per step", ", ".join(f"{seconds:.2f}" for seconds in steps)))
    rows += [("warning", warning) for warning in details.get("warnings", ())]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if name != "os")
    rows += [("card", report["device"]), ("driver", report["driver"]), ("system", report["system"])]
    return [(name, value) for name, value in [*rows, ("versions", versions)] if value]


def _value(details: dict[str, Any], name: str) -> str:
    """Return a fact of the sampling; of the precision also what was computed in, where that is another one."""
    if name == "precision" and details.get("compute", details[name]) != details[name]:
        return f"{details[name]} file, {details['compute']} compute"
    if isinstance(details[name], bool):
        return "on" if details[name] else "off"
    return str(details[name])


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report as it is posted: the headline, the stages, the facts."""
    lines = [STAGE_COLUMNS, ("---", "---:", "---:", "---:"), *stage_rows(report)]
    facts = [f"- {name}: {value}" for name, value in fact_rows(report)]
    return "\n".join([f"**{headline(report)}**", "", *(f"| {' | '.join(cells)} |" for cells in lines), "", *facts])


def _applied(lora: dict[str, Any]) -> str:
    matched, left_out = sum(lora["matched"].values()), sum(lora["left_out"].values())
    return f"{matched} of {matched + left_out} tensors apply"


def _memory(num_bytes: int, planned: int | None) -> str:
    if not num_bytes:
        return "-"
    beside = f" (planned {planned / GIB:.1f})" if planned else ""
    return f"{num_bytes / GIB:.1f} GiB{beside}"
