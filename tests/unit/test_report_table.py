"""The run report as rows and as Markdown: what a benchmark post needs is in it, and what is unknown is left out."""

import json

import pytest
import torch
from lightx2v_pack.engine import report
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.engine.report_table import as_markdown, as_rows, fact_rows, format_seconds, headline, stage_rows

PLAN = {"line": "plan: resident, 15 GiB VRAM of 22 free", "summary": "resident, 15 GiB VRAM of 22 free"}
DETAILS = {
    "file": "checkpoint/distill_fp8",
    "engine": "portable",
    "precision": "fp8",
    "size": "832x480, 81 frames",
    "seed": 7,
    "step_seconds": [[2.5, 1.74], [1.75, 1.744]],
    "plan": PLAN,
}


@pytest.fixture
def built():
    """A report as the engine builds it on this machine, with numbers of its own and a pretended card and driver."""
    stages = [
        report.StageRecord(stage="encode", seconds=1.26, peak_ram_bytes=2 * GIB),
        report.StageRecord(
            stage="sample",
            seconds=75.5,
            peak_ram_bytes=3 * GIB,
            peak_vram_reserved_bytes=16 * GIB,
            predicted_vram_bytes=17 * GIB,
            details=DETAILS,
        ),
    ]
    data = report.build_report(stages)
    return data | {"device": "NVIDIA GeForce RTX 4090, 24.0 GiB, CUDA 13.0", "driver": "580.95"}


def test_stages_have_times_and_peaks_and_a_total(built):
    assert stage_rows(built) == [
        ("encode the prompt", "1.3 s", "2.0 GiB", "-"),
        ("sample", "76 s", "3.0 GiB", "16.0 GiB (planned 17.0)"),
        ("total", "77 s", "3.0 GiB", "16.0 GiB"),
    ]


def test_facts_say_what_ran_and_on_what(built):
    facts = dict(fact_rows(built))
    assert facts["file"] == "checkpoint/distill_fp8" and facts["seed"] == "7"
    assert facts["seconds per step"] == "2.50, 1.74, 1.75, 1.74"
    assert facts["plan"] == "resident, 15 GiB VRAM of 22 free"
    assert facts["card"].startswith("NVIDIA GeForce RTX 4090") and facts["driver"] == "580.95"
    assert "GiB RAM" in facts["system"] and "cores" in facts["system"]
    assert f"torch {torch.__version__}" in facts["versions"]


@pytest.mark.parametrize(
    ("is_idle", "said"), [(True, "changes nothing: 2 of 3 tensors apply, and add"), (False, ", 2 of 3")]
)
def test_a_lora_that_changes_nothing_is_told_from_others(built, is_idle, said):
    lora = {"lora": "x", "strength": 0.5, "matched": {"ffn": 2}, "left_out": {"a VAE": 1}, "is_idle": is_idle}
    built["stages"][1]["details"]["loras"] = [lora]
    assert dict(fact_rows(built))["LoRA"].startswith(f"x at 0.5{' ' if is_idle else ''}{said}")


def test_the_milliseconds_of_each_candidate_are_posted(built):
    measured = {"32768 tokens, 40 heads of 128, in triton blocks": {"triton": 0.0757, "triton_int8": 0.0462}}
    built["stages"][1]["details"] = DETAILS | {"measured": measured}
    line = "- measured here, 32768 tokens, 40 heads of 128, in triton blocks: triton_int8 46.2 ms, triton 75.7"
    assert line in as_markdown(as_rows(built)).splitlines()


def test_what_the_file_has_and_what_was_computed_in_are_both_named(built):
    def precision(**details):
        sampling = built["stages"][1] | {"details": DETAILS | details}
        return dict(fact_rows(built | {"stages": [sampling]}))["precision"]

    assert precision() == precision(compute="fp8") == "fp8"
    assert precision(compute="int8") == "fp8 file, int8 compute"


def test_what_is_not_known_is_left_out(built):
    names = [name for name, _ in fact_rows(built | {"driver": "", "stages": []})]
    assert names == ["card", "system", "versions"]


def test_markdown_is_a_table_and_a_list(built):
    lines = as_markdown(as_rows(built)).splitlines()
    assert lines[:2] == [f"**{headline(built)}**", ""]
    del lines[:2]
    assert lines[:2] == ["| stage | time | peak RAM | peak VRAM |", "| --- | ---: | ---: | ---: |"]
    assert lines[3] == "| sample | 76 s | 3.0 GiB | 16.0 GiB (planned 17.0) |"
    assert lines[5] == "" and all(line.startswith("- ") for line in lines[6:])


def test_the_headline_says_what_was_made_in_how_long_on_what(built):
    assert headline(built) == (
        "832x480, 81 frames in 77 s: encode 1.3 s, sample 76 s, without decoding; "
        "at most 16.0 GiB of VRAM, 3.0 GiB of RAM, fp8, RTX 4090"
    )
    stages = [
        report.StageRecord(stage=stage, seconds=0.5) for stage in ("load_vae_encoder", "encode_video", "load_vae")
    ]
    stages.append(report.StageRecord(stage="sample", seconds=2.0))
    told = headline(report.build_report(stages))
    assert told.startswith("3.5 s: load 1.0 s, encode frames 0.5 s, sample 2.0 s, without decoding; ")
    whole = headline(report.build_report([*stages, report.StageRecord(stage="decode", seconds=0.5)]))
    assert "sample 2.0 s, decode 0.5 s; " in whole and "without" not in whole
    nothing = built | {"stages": [], "total_seconds": 0.0, "peak_ram_bytes": 0, "peak_vram_reserved_bytes": 0}
    assert headline(nothing | {"device": "CPU, 8 cores"}) == "0.0 s; CPU"


def test_rows_are_plain_data(built):
    json.dumps([stage_rows(built), fact_rows(built)])


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (9.94, "9.9 s"), (42.4, "42 s"), (119.6, "2 min 0 s"), (3725, "1 h 2 min")]
)
def test_durations(seconds, text):
    assert format_seconds(seconds) == text
