"""docs/benchmarks.md and its chart: made of the rows in docs/measurements."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from lightx2v_pack.tools.bench import page, plots

DOCS = Path(__file__).resolve().parents[2] / "docs"
SVG = "{http://www.w3.org/2000/svg}"
COMMON = {
    "date": "2030-01-02",
    "machine": "NVIDIA H200, torch 9",
    "card": "NVIDIA H200",
    "command": "python tools bench X",
}
CLIP = {"size": "832x480", "frames": 81, "precision": "fp8"}
GRID = {
    **CLIP,
    "mode": "none",
    "stages": ["sample"],
    "estimated_seconds": None,
    "predicted_ram_gib": 8.0,
    "ram_gib": 8.0,
}
INVENTED = {
    "peers": [
        {**CLIP, "peer": "pack", "title": "this pack", "steps": 4, "step": 1.5, "is_finite": True, "error": 0.03},
        {
            **CLIP,
            "peer": "other",
            "title": "ComfyUI, FP8",
            "steps": 4,
            "step": 3.0,
            "is_finite": True,
            "version": "7.8",
        },
        {**CLIP, "peer": "shipped", "title": "LightX2V", "steps": 4, "step": 2.0, "is_finite": False},
        {**CLIP, "peer": "gone", "title": "diffusers", "steps": 4, "problem": "not here: diffusers"},
    ],
    "peers-i2v": [
        {**CLIP, "peer": "pack", "title": "this pack", "steps": 4, "step": 1.6, "is_finite": True},
        {**CLIP, "peer": "other", "title": "ComfyUI, FP8", "steps": 4, "step": 3.6, "is_finite": True},
    ],
    "prompt_to_frames": [
        {
            **CLIP,
            "batch": 1,
            "encode_seconds": 1.0,
            "sample_seconds": 7.0,
            "seconds": 9.25,
            "step_seconds": [2, 1, 1.75],
        },
    ],
    "caps": [
        {**CLIP, "cap_gib": 8.0, "ram_limit_gib": None, "mode": "auto", "plan": "block, 6 of 40; whole", "step": 1.79}
        | {"card_gib": 7.61, "sample_planned_gib": 4.9, "sample_reserved_gib": 4.93, "same_latents": "yes"},
    ],
    "grid": [
        {**GRID, "tokens": 10, "step_seconds": [9, 3.0], "reserved_gib": 15.0, "estimated_seconds": None}
        | {"sample_planned_gib": 10.5, "sample_reserved_gib": 10.0},
        {**GRID, "tokens": 20, "step_seconds": [10.0], "reserved_gib": 20.0, "estimated_seconds": 11.0}
        | {"sample_planned_gib": 9.9, "sample_reserved_gib": 10.0},
    ],
    "kernels": [
        {"kind": "ops", "what": "norm", "to": "fp8", "by": "triton", "ms": 0.1234, "gb_per_s": 3500.4},
        {"kind": "attention", "by": "triton, in place", "ms": 27.05, "temporaries": 1.05, "error": 0.0386},
        {"kind": "attention", "by": "flash_attn3", "problem": "Error: there is no card. Choose another."},
    ],
    "loading": [{"what": "to the GPU", "gb": 14.07, "seconds": 0.7, "gb_per_s": 20.9}],
    "vae": [
        {"vae": "wan", "stage": "decode", "by": "pack", "size": "832x480", "frames": 81, "tile": None}
        | {"seconds": 0.73, "predicted_gib": 3.76}
    ],
    "gpus": [
        {**CLIP, "by": "ours", "gpus": 1, "mode": "none", "step_seconds": 1.77, "gain": 1.0, "apart": 0.0},
        {**CLIP, "by": "ours", "gpus": 2, "mode": "none", "step_seconds": 0.92, "gain": 1.924, "apart": 0.0}
        | {"link_bytes": 330e9, "predicted": 1.9, "predicted_hidden": 1.95, "decode_seconds": 0.4},
        {**CLIP, "by": "ours", "gpus": 2, "mode": "block", "problem": "GPU 1 has gone. Run it again."},
        {**CLIP, "by": "clips", "gpus": 2, "clips": 6, "seconds": 25.0, "clips_per_hour": 864.0, "gain": 1.98},
        {**CLIP, "by": "lightx2v", "gpus": 2, "way": "ulysses", "attention": "sage_attn2", "step_seconds": 1.15}
        | {"gain": 1.8, "apart": 0.01},
        {**CLIP, "by": "lightx2v", "gpus": 2, "way": "ulysses+fusion", "attention": "sage_attn2"}
        | {"step_seconds": 1.1, "gain": 1.9, "apart": 0.01},
        {**CLIP, "by": "lightx2v", "gpus": 2, "way": "ulysses+fp8", "problem": "no vllm"},
    ],
    "text": [{"precision": "fp8", "device": "gpu", "seconds": 0.7, "padded_seconds": 0.83, "difference": 0.026}],
}
for rows in INVENTED.values():
    for row in rows:
        row |= {"tokens": row.get("tokens", 32760), "dim": 5120}


@pytest.fixture
def docs(tmp_path):
    """A folder of docs with the rows above, and the page of them."""
    write(tmp_path, "2030-01-02", INVENTED)
    (tmp_path / "benchmarks.md").write_text("# An old page\n")
    assert page.main(["--docs", str(tmp_path)]) == 0
    return tmp_path


def write(docs, date, rows_by_part):
    (docs / "measurements" / date).mkdir(parents=True, exist_ok=True)
    for part, rows in rows_by_part.items():
        lines = [json.dumps({**COMMON, "part": part, "date": date, **row}) + "\n" for row in rows]
        (docs / "measurements" / date / f"{part}.jsonl").write_text("".join(lines))


def check(docs):
    return page.main(["--docs", str(docs), "--check"])


def test_the_page_is_what_the_measurements_give(capsys):
    assert check(DOCS) == 0, capsys.readouterr().err


def test_the_page_has_a_place_for_every_section():
    text = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    assert [name for name in page.SECTIONS if f"<!-- {name} -->\n" not in text] == []


def test_every_part_has_its_section(docs):
    text = (docs / "benchmarks.md").read_text()

    for line in (
        "| this pack | fp8 |  |  |  |  | 1.500 | 1.00 |  | 0.0300 |  |",
        "| ComfyUI, FP8 | fp8 |  |  |  |  | 3.000 | 2.00 |  |  |  |",
        "| LightX2V (not finite) | fp8 |  |  |  |  | 2.000 | 1.33 |  |  |  |",
        "Did not run: diffusers (not here: diffusers).",
        "## Seconds a step: image to video, Wan2.1",
        "| ComfyUI, FP8 | fp8 |  |  |  |  | 3.600 | 2.25 |  |  |  |",
        "![Seconds a step](peers-i2v.svg)",
        "| 832x480x81 | 1 | 1.00 | 7.00 |  |  |  |  | **9.25** | 1.750 |  |",
        "| fp8 | 832x480x81 | 8 |  | auto | block, 6 of 40; whole | 4.90 / 4.93 |  | 7.61 |  | 1.790 |  | yes |",
        "| fp8 | VRAM, sample | 2 | 0.990 | 1.050 | 3.0% |",
        "| fp8 | RAM | 2 | 1.000 | 1.000 | 0.0% |",
        "- fp8: s/step = 1.000e-01 * tokens + 2.000e-02 * tokens^2, within 0.0%",
        "- fp8: GiB reserved = 10.00 + 524288.0 KiB * tokens, within 0.0%",
        "- fp8: the estimate that users see is off by 10.0% at most",
        "| norm | fp8 | triton | 0.123 | 3500 |",
        "| triton, in place | 27.05 |  | 1.05 | 0.0386 |",
        "Did not run: flash_attn3 (Error: there is no card).",
        "| to the GPU | 14.07 | 0.7 | 20.9 |  |  |  |  |  |  |",
        "| wan decode | pack | 832x480x81 |  | 0.73 |  |  | 3.76 |  |  |",
        "| fp8 | gpu |  | 0.70 | 0.83 |  |  | 0.026 |",
        "A GPU sends 330 GB/s to another one here.",
        "| 1 | fp8 | 832x480x81 | none | 1.770 | 1.00 |  |  |  | 0.0000 |  |  |  |",
        "| 2 | fp8 | 832x480x81 | none | 0.920 | 1.92 | 1.90 to 1.95 |  |  | 0.0000 |  |  | 0.40 |",
        "| ulysses+fusion | 2 | fp8 | 832x480x81 | sage_attn2 | 1.100 | 1.90 | 1.20 | 0.0100 |",
        "| 2 | fp8 | 832x480x81 | 6 | 25.0 | 864.0 | 1.98 |",
        "Did not run: fp8 ours 832x480 81 block 2 (GPU 1 has gone); fp8 lightx2v 832x480 81 ulysses+fp8 2 (no vllm).",
    ):
        assert line in text.splitlines(), line
    assert text.startswith("# Benchmarks\n") and "An old page" not in text
    assert "ComfyUI 7.8" in text and "2030-01-02, NVIDIA H200, torch 9." in text and "\npython tools bench X\n" in text
    assert len(re.findall("^## ", text, re.MULTILINE)) == 11
    assert "1.50 s/step" in (docs / "peers.svg").read_text()
    chart = (docs / "peers-i2v.svg").read_text()
    assert "1.60 s/step" in chart and "image to video, Wan2.1; 2030-01-02" in chart
    assert not (docs / "peers-i2v-a14b.svg").exists()
    chart = (docs / "gpus.svg").read_text()
    for bar in (
        "832x480, 2 GPUs: this pack<", "1.92 times", "832x480, 2 GPUs: computed, at least", "1.90 times",
        "832x480, 2 GPUs: LightX2V, ulysses+fusion<", "832x480, 2 GPUs: clips an hour", "1.98 times",
    ):  # fmt: skip
        assert bar in chart, bar
    assert "this pack, block" not in chart and "ulysses<" not in chart


def test_the_page_is_checked_against_the_rows(docs, capsys):
    text = (docs / "benchmarks.md").read_text()
    assert check(docs) == 0
    for old, new in (("| 1.500 |", "| 1.400 |"), ("<!-- vae -->\n## VAE", "<!-- vae -->\n## Decoders")):
        (docs / "benchmarks.md").write_text(text.replace(old, new))
        assert check(docs) == 1
        assert "benchmarks.md. Run 'python tools bench tables'" in capsys.readouterr().err
    (docs / "benchmarks.md").write_text(text)
    (docs / "peers.svg").unlink()
    assert check(docs) == 1
    assert page.main(["--docs", str(docs)]) == 0 and check(docs) == 0
    assert (docs / "benchmarks.md").read_text() == text


def test_what_is_written_by_hand_is_kept(docs):
    text = (docs / "benchmarks.md").read_text()
    (docs / "benchmarks.md").write_text(
        text.replace("<!-- caps -->", "").replace("<!-- vae -->", "By hand.\n\n<!-- vae -->")
    )
    write(docs, "2030-01-02", {"vae": [{**INVENTED["vae"][0], "seconds": 0.55}]})

    assert check(docs) == 1 and page.main(["--docs", str(docs)]) == 0
    assert "By hand.\n\n<!-- vae -->\n## VAE" in (docs / "benchmarks.md").read_text()
    assert "| 0.55 |" in (docs / "benchmarks.md").read_text() and check(docs) == 0


def test_of_every_part_the_newest_day_counts(docs):
    write(docs, "2030-02-01", {"text": [{**INVENTED["text"][0], "seconds": 0.61}]})
    write(docs, "2029-12-31", {"loading": [{**INVENTED["loading"][0], "gb_per_s": 99.9}]})
    write(docs, "2030-03-01", {"peers-i2v": [{**INVENTED["peers-i2v"][0], "step": 1.7}]})

    page.main(["--docs", str(docs)])

    text = (docs / "benchmarks.md").read_text()
    assert "| 0.61 |" in text and "| 0.70 | 0.83 |" not in text and "| 99.9 |" not in text and "| 20.9 |" in text
    assert "| 1.500 | 1.00 |" in text and "| 1.700 | 1.00 |" in text and "| 1.600 | 1.00 |" not in text


def test_a_part_without_rows_has_no_section(tmp_path):
    write(tmp_path, "2030-01-02", {"vae": INVENTED["vae"], "peers": INVENTED["peers"][3:]})

    page.main(["--docs", str(tmp_path)])

    text = (tmp_path / "benchmarks.md").read_text()
    assert re.findall("^## .*", text, re.MULTILINE) == ["## VAE"]
    assert "<!-- peers -->\n<!-- /peers -->" in text and not (tmp_path / "peers.svg").exists()


@pytest.mark.parametrize("power", [0, 2])
def test_fit_finds_the_coefficients(power):
    points = [(x, 3e-5 * x + 7e-10 * x**power) for x in (7800.0, 32760.0, 75600.0)]

    linear, other, worst = page.fit(points, power)

    assert linear == pytest.approx(3e-5) and other == pytest.approx(7e-10, rel=1e-3) and worst < 1e-9


def test_fit_states_its_worst_error():
    points = [(1.0, 2.0), (2.0, 4.4), (3.0, 5.4), (4.0, 8.8)]

    linear, other, worst = page.fit(points, 0)

    assert worst == pytest.approx(max(abs((linear * x + other) / y - 1) for x, y in points))


def test_bars_are_as_long_as_their_values():
    chart = ElementTree.fromstring(plots.bars("a < b", [("ours", 1.5, True), ("theirs", 3.0, False)], "s"))

    lengths = [float(bar.get("width")) for bar in chart.findall(f"{SVG}rect")[1:]]
    assert lengths[0] == pytest.approx(lengths[1] / 2, abs=0.1)
    assert {"a < b", "1.50 s", "3.00 s"} <= {text.text for text in chart.findall(f"{SVG}text")}
