import gc
import json
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from lightx2v_pack.engine import report
from lightx2v_pack.engine.report_table import headline, stage_rows

CPU = torch.device("cpu")
PROJECT = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")


def test_a_stage_is_timed_and_its_peak_of_ram_is_seen():
    size = 300 * 2**20
    with report.measure("sample", CPU) as record:
        block = torch.ones(size, dtype=torch.uint8)
        time.sleep(0.1)
        del block
    with report.measure("encode", CPU) as after:
        time.sleep(0.05)
    assert 0.1 <= record.seconds < 5
    assert record.peak_ram_bytes > after.peak_ram_bytes + size // 2


def test_a_failed_stage_leaves_no_thread():
    before = threading.active_count()
    with pytest.raises(ValueError, match="stop"), report.measure("sample", CPU):
        raise ValueError("stop")
    assert threading.active_count() == before


def test_records_travel_with_tensors_and_end_with_them():
    first = report.StageRecord(stage="encode", seconds=1.0, peak_ram_bytes=5)
    second = report.StageRecord(stage="sample", seconds=2.0, peak_ram_bytes=9)
    rows = report.attach(torch.zeros(1), [first])
    latents = report.attach(torch.zeros(1), report.records_of(rows), [second])
    built = report.build_report(report.records_of(latents))
    assert [stage["stage"] for stage in built["stages"]] == ["encode", "sample"]
    assert built["total_seconds"] == 3.0
    assert built["peak_ram_bytes"] == 9
    assert built["versions"]["torch"] == torch.__version__
    assert built["versions"]["lightx2v-nodes"].partition("-")[0] in PROJECT
    json.dumps(built)
    alive = weakref.ref(second)
    del latents, second
    gc.collect()
    assert alive() is None


def test_what_was_kept_of_an_earlier_run_is_in_no_total():
    """A prompt is encoded once and sampled three times: only the first run has taken the time for it."""
    with report.measure("encode", CPU) as encode:
        time.sleep(0.05)
    for number in range(3):
        with report.measure("sample", CPU) as sample:
            time.sleep(0.01)
        built = report.build_report([encode, sample])
        first, second = built["stages"]
        assert first.get("is_kept", False) is (number > 0) and "is_kept" not in second
        assert built["total_seconds"] == pytest.approx(sample.seconds + (0 if number else encode.seconds), abs=1e-3)
        rows = {name: took for name, took, *_ in stage_rows(built)}
        assert (rows["encode the prompt"] == "kept") is (number > 0)
        assert ("encode 0" in headline(built)) is (number == 0)
    with pytest.raises(ValueError, match="stop"), report.measure("sample", CPU):
        raise ValueError("stop")
    with report.measure("encode", CPU) as encode:
        pass
    with report.measure("sample", CPU) as sample:
        pass
    assert not any("is_kept" in stage for stage in report.build_report([encode, sample])["stages"])


def test_views_carry_the_records_and_copies_do_not():
    """ComfyUI's VAEDecode joins the clips of a batch by a view."""
    record = report.StageRecord(stage="decode")
    with torch.inference_mode():
        frames = report.attach(torch.zeros(2, 3, 4), [record])
        joined = frames.reshape(-1, 4)
        assert report.records_of(joined) == (record,) and report.records_of(joined.clone()) == ()
        del frames
        gc.collect()
        assert report.records_of(joined) == (record,)


def test_a_tensor_with_a_record_is_saved_as_a_plain_tensor(tmp_path):
    tensor = report.attach(torch.ones(2), [report.StageRecord(stage="encode")])
    torch.save(tensor, tmp_path / "rows.pt")
    assert torch.equal(torch.load(tmp_path / "rows.pt", weights_only=True), tensor)


def test_a_second_run_replaces_the_stage():
    old, new = (report.StageRecord(stage="sample", seconds=value) for value in (1.0, 2.0))
    assert report.records_of(report.attach(torch.zeros(1), [old], [new])) == (new,)


def test_tensors_of_other_nodes_carry_nothing():
    assert report.records_of(torch.zeros(1)) == ()


def test_step_timer_notes_every_step_and_passes_it_on():
    seen = []
    on_step, seconds = report.step_timer(lambda step, steps, clean: seen.append(step))
    for step in (1, 2):
        time.sleep(0.02)
        on_step(step, 2, torch.zeros(1))
    assert seen == [1, 2]
    assert all(0.015 < value < 1 for value in seconds)
