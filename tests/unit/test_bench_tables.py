"""What the benchmarks make of their rows: fits, charts, checks."""

from xml.etree import ElementTree

import pytest
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.tools.bench import memory_tables, plots
from lightx2v_pack.tools.bench.growth import fit

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("power", [0, 2])
def test_fit_finds_the_coefficients(power):
    points = [(x, 3e-5 * x + 7e-10 * x**power) for x in (7800.0, 32760.0, 75600.0)]

    growth = fit(points, power)

    assert growth.linear == pytest.approx(3e-5)
    assert growth.other == pytest.approx(7e-10, rel=1e-3)
    assert growth.worst < 1e-9


def test_fit_states_its_worst_error():
    growth = fit([(1.0, 2.0), (2.0, 4.4), (3.0, 5.4), (4.0, 8.8)], 0)

    assert growth.worst == pytest.approx(
        max(
            abs((growth.linear * x + growth.other) / y - 1) for x, y in [(1.0, 2.0), (2.0, 4.4), (3.0, 5.4), (4.0, 8.8)]
        )
    )


def test_bars_are_as_long_as_their_values():
    chart = ElementTree.fromstring(plots.bars("a < b", [("ours", 1.5, True), ("theirs", 3.0, False)], "s"))

    lengths = [float(bar.get("width")) for bar in chart.findall(f"{SVG}rect")[1:]]
    assert lengths[0] == pytest.approx(lengths[1] / 2, abs=0.1)
    assert {"a < b", "1.50 s", "3.00 s"} <= {text.text for text in chart.findall(f"{SVG}text")}


def test_lines_show_every_point_within_the_chart():
    series = plots.Series(name="FP8", points=[(10.0, 1.0), (75.0, 6.5)], curve=[(0.0, 0.0), (75.0, 6.4)])

    chart = ElementTree.fromstring(plots.lines("title", [series], "tokens", "s", height=300))

    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in chart.findall(f"{SVG}circle")]
    assert len(dots) == 2
    assert all(0 < x < 760 and 0 < y < 300 for x, y in dots)
    assert dots[0][0] < dots[1][0] and dots[0][1] > dots[1][1]


def grid_row(**changes):
    row = {"part": "grid", "precision": "fp8", "placement": "block", "width": 832, "height": 480, "frames": 81}
    row |= {"predicted_vram_gib": 4.2, "reserved_gib": 4.0, "predicted_ram_gib": 16.0, "ram_gib": 16.0}
    row |= {"predicted_load_vram_gib": 2.0, "load_reserved_gib": 2.0, "predicted_load_ram_gib": 16.0}
    return row | {"load_seconds": 5.0, "step_seconds": [2.0, 1.8]} | changes


def report(sampling=0.0, reserved=0.0):
    decode = {"stage": "decode", "seconds": 1.0, "peak_vram_reserved_bytes": 0}
    sample = {"stage": "sample", "seconds": 8.0, "details": {"offload": "block"}}
    sample["peak_vram_reserved_bytes"] = int(sampling * GIB)
    return {"stages": [sample, decode], "peak_vram_reserved_bytes": int(reserved * GIB)}


def caps_row(**changes):
    row = {"part": "caps", "precision": "fp8", "size": "832x480", "frames": 81, "cap_gib": 8.0, "step": 1.8}
    row |= {"report": report(), "latents": "a", "is_finite": True, "ram_gib": 16.0}
    return row | {"context_gib": 0.5, "seconds": 12.0} | changes


@pytest.mark.parametrize(
    ("rows", "missed"),
    [
        ([grid_row()], None),
        ([grid_row(loads=True, load_ram_gib=15.9), grid_row(load_ram_gib=9.0)], None),
        ([grid_row(loads=True, load_ram_gib=9.0)], "load RAM predicted 16.00 GiB"),
        ([grid_row(predicted_vram_gib=3.7)], "VRAM predicted 3.70 GiB, measured 4.00"),
        ([grid_row(predicted_ram_gib=18.0)], "RAM predicted 18.00 GiB"),
        ([grid_row(problem="OutOfMemoryError")], "OutOfMemoryError"),
        ([caps_row(cap_gib=0.0), caps_row()], None),
        ([caps_row(cap_gib=0.0), caps_row(latents="b")], "latents differ"),
        ([caps_row(problem="stopped")], "stopped"),
        ([caps_row(end_context_gib=0.7, report=report(reserved=7.4))], "took 8.10 GiB of the card"),
        ([caps_row(end_context_gib=0.7, report=report(reserved=7.2))], None),
        ([grid_row(step_seconds=[1.8, 1.7]), caps_row()], "block takes 1.700 s a step"),
        # Of the same series, which goes before the grid.
        ([caps_row(cap_gib=0.0, is_short=True, step=1.7), grid_row(), caps_row()], "block takes 1.700 s a step"),
        ([caps_row(cap_gib=0.0, step=1.79), grid_row(step_seconds=[1.8, 1.7]), caps_row()], None),
        ([caps_row(cap_gib=0.0, is_short=True, step=1.7), caps_row(mode="disk")], None),
        ([caps_row(cap_gib=0.0, is_short=True, step=1.7, report=report(sampling=7.9)), caps_row()], None),
        ([caps_row(cap_gib=0.0, is_short=True, mode="phase", problem="stopped")], "stopped"),
        ([grid_row(step_seconds=[1.8, 1.7], reserved_gib=7.9, predicted_vram_gib=7.9), caps_row()], None),
    ],
)
def test_tables_say_what_was_missed(rows, missed, capsys):
    code = memory_tables.print_tables(rows)

    printed = capsys.readouterr().out
    assert code == (1 if missed else 0)
    assert ("missed: fp8 832x480" in printed and missed in printed) if missed else "missed" not in printed
