"""The run report as rows to show and as Markdown to post: what ran, where, how long it took, what it took."""

from __future__ import annotations

from typing import Any

from .backends.table import milliseconds
from .constants import GIB
from .quantities import format_seconds
from .sentences import joined
from .sentences.between import Between
from .sentences.kernels import Running
from .sentences.memory import Memory
from .sentences.report import Report

_STAGES = {
    "load_text_encoder": Report.LOAD_TEXT_ENCODER,
    "encode": Report.ENCODE_PROMPT,
    "load_vae_encoder": Report.LOAD_VAE_ENCODER,
    "encode_video": Report.ENCODE_FRAMES,
    "load_transformer": Report.LOAD_TRANSFORMER,
    "sample": Report.SAMPLE,
    "load_vae": Report.LOAD_VAE,
    "decode": Report.DECODE,
}
# The work itself, in its order; what is loaded comes together.
_HEADLINE = {
    "encode": Report.ENCODE,
    "encode_video": Report.ENCODE_FRAMES,
    "sample": Report.SAMPLE,
    "decode": Report.DECODE,
}
# Less than this is 0.0 s.
_SHOWN_SECONDS = 0.05
_SAMPLING_FACTS = {
    "file": Report.FILE,
    "engine": Report.ENGINE,
    "precision": Report.PRECISION,
    "attention": Running.ATTENTION,
    "matmul": Report.MATMUL,
    "compile": Report.COMPILE,
    "offload": Report.OFFLOAD,
    "size": Report.SIZE,
    "batch": Report.BATCH,
    "method": Report.METHOD,
    "steps": Report.STEPS,
    "seed": Report.SEED,
    "shift": Report.SHIFT,
}


def stage_columns() -> tuple[str, ...]:
    """Return what the columns of `stage_rows` are."""
    return Report.STAGE(), Report.TIME(), Report.PEAK_RAM(), Report.PEAK_VRAM()


def headline(report: dict[str, Any]) -> str:
    """Return the run in one line: what was made, in how long, with how much memory, on what."""
    stages = {stage["stage"]: stage for stage in report["stages"] if not stage.get("is_kept")}
    details: dict[str, Any] = stages["sample"]["details"] if "sample" in stages else {}
    took: str = format_seconds(report["total_seconds"])
    if "size" in details:
        took = Report.MADE_IN(size=details["size"], time=took)
    parts = [
        Report.STAGE_TOOK(stage=word(), time=format_seconds(stages[name]["seconds"]))
        for name, word in _HEADLINE.items()
        if name in stages
    ]
    if "sample" in stages and "decode" not in stages:
        parts.append(Report.WITHOUT_DECODING())
    loading = sum(stage["seconds"] for name, stage in stages.items() if name.startswith("load_"))
    if loading >= _SHOWN_SECONDS:
        parts.insert(0, Report.STAGE_TOOK(stage=Report.LOAD(), time=format_seconds(loading)))
    vram, ram = report["peak_vram_reserved_bytes"] / GIB, report["peak_ram_bytes"] / GIB
    peaks = [Memory.VRAM(vram=vram)] if vram else []
    peaks += [Memory.RAM(ram=ram)] if ram else []
    peak = joined(peaks, Between.COMMA)
    facts: list[str] = [Report.AT_MOST(peak=peak)] if peak else []
    facts += [_value(details, "precision")] if "precision" in details else []
    facts.append(report["device"].split(",")[0].removeprefix("NVIDIA ").removeprefix("GeForce "))
    if not parts:
        return Report.SHORT_HEADLINE(took=took, facts=joined(facts, Between.COMMA))
    return Report.HEADLINE(took=took, stages=joined(parts, Between.COMMA), facts=joined(facts, Between.COMMA))


def stage_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row a stage and one of totals, of `build_report`'s data; see stage_columns."""
    rows = [
        (
            _STAGES[stage["stage"]](),
            Report.KEPT() if stage.get("is_kept") else format_seconds(stage["seconds"]),
            _memory(stage["peak_ram_bytes"], stage["predicted_ram_bytes"]),
            _memory(stage["peak_vram_reserved_bytes"], stage["predicted_vram_bytes"]),
        )
        for stage in report["stages"]
    ]
    total = (report["peak_ram_bytes"], report["peak_vram_reserved_bytes"])
    return [*rows, (Report.TOTAL(), format_seconds(report["total_seconds"]), *(_memory(peak, None) for peak in total))]


def fact_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (name, value): what was sampled and how, and on what."""
    details: dict[str, Any] = next((stage["details"] for stage in report["stages"] if stage["stage"] == "sample"), {})
    rows: list[tuple[str, str]] = [
        (word(), _value(details, name)) for name, word in _SAMPLING_FACTS.items() if name in details
    ]
    rows += [("LoRA", _applied(each)) for each in details.get("loras", ())]
    if "plan" in details:
        rows.append((Report.PLAN(), details["plan"]["summary"]))
    for problem, seconds in details.get("measured", {}).items():
        rows.append((Report.MEASURED_HERE(problem=problem), milliseconds(seconds)))
    steps = [seconds for clip in details.get("step_seconds", ()) for seconds in clip]
    if steps:
        rows.append((Report.SECONDS_PER_STEP(), ", ".join(f"{seconds:.2f}" for seconds in steps)))
    warnings = dict.fromkeys(each for stage in report["stages"] for each in stage["details"].get("warnings", ()))
    rows += [(Report.WARNING(), each) for each in warnings]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if name != "os")
    rows += [
        (Report.CARD(), report["device"]),
        (Report.DRIVER(), report["driver"]),
        (Report.SYSTEM(), report["system"]),
        (Report.VERSIONS(), versions),
    ]
    return [(name, value) for name, value in rows if value]


def _value(details: dict[str, Any], name: str) -> str:
    """Return a fact of the sampling; of the precision also what was computed in, where that is another one."""
    if name == "precision" and details.get("compute", details[name]) != details[name]:
        return Running.FILE_AND_COMPUTE(precision=details[name], inputs=details["compute"])
    if isinstance(details[name], bool):
        return "on" if details[name] else "off"
    return str(details[name])


def as_rows(report: dict[str, Any]) -> dict[str, Any]:
    """Return what of a report is shown: its headline, stages with what their columns are, and facts."""
    return {
        "headline": headline(report),
        "stages": [stage_columns(), *stage_rows(report)],
        "facts": fact_rows(report),
    }


def as_markdown(rows: dict[str, Any]) -> str:
    """Return `as_rows`, in whatever language, as it is posted."""
    columns, *stages = rows["stages"]
    lines = [columns, ("---", "---:", "---:", "---:"), *stages]
    facts = ("- " + ": ".join(fact) for fact in rows["facts"])
    return "\n".join(
        ["**" + rows["headline"] + "**", "", *("| " + " | ".join(cells) + " |" for cells in lines), "", *facts]
    )


def _applied(lora: dict[str, Any]) -> str:
    matched, left_out = sum(lora["matched"].values()), sum(lora["left_out"].values())
    sentence = Report.IDLE_LORA if lora.get("is_idle") else Report.LORA
    return sentence(title=lora["lora"], strength=lora["strength"], num_matched=matched, num_tensors=matched + left_out)


def _memory(num_bytes: int, planned: int | None) -> str:
    if not num_bytes:
        return "-"
    size = f"{num_bytes / GIB:.1f} GiB"
    return Report.AND_PLANNED(size=size, planned=planned / GIB) if planned else size
