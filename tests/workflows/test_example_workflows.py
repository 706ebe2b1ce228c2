"""The example workflows, run end to end without a server at tiny size."""

import json

import av
import numpy as np
import pytest
from support.examples import TEXT_TO_VIDEO, TINY, WITH_NATIVE_NODES, frames_of, set_options

STAGES = ["load_text_encoder", "encode", "load_transformer", "sample", "load_vae", "decode"]


@pytest.mark.parametrize("workflow", TINY, ids=lambda path: path.stem)
def test_example_makes_a_video_and_a_report(workflow, run, tmp_path):
    report_file = tmp_path / "reports" / "report.json"
    done = run(workflow, *TINY[workflow], "--report", report_file)
    assert done.code == 0, done.stderr
    assert done.results == [tmp_path / "output" / "video" / "lightx2v_00001_.mp4"]
    with av.open(str(done.results[0])) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 48, 32)
        assert (stream.frames, stream.average_rate) == (5, 16)
        graph, prompt = (json.loads(video.metadata[name]) for name in ("workflow", "prompt"))
    assert [node["inputs"]["width"] for node in prompt.values() if "width" in node["inputs"]] == [48]
    # The graph has the values that made the video, and is else the file's.
    file = json.loads(workflow.read_text(encoding="utf-8"))
    size = next(node for node in file["nodes"] if node["type"].startswith("Empty") or "EmptyLatent" in node["type"])
    size["widgets_values"] = [48, 32, 5, 1]
    assert graph == file
    report = json.loads(report_file.read_text(encoding="utf-8"))
    assert report["status"] == "ok"
    assert report["outputs"] == [str(done.results[0])]
    assert [stage["stage"] for stage in report["engine"]["stages"]] == STAGES
    # The kernel's high-water mark is updated in batches of pages, so it may lag a little.
    assert report["peak_ram_bytes"] >= 0.98 * max(stage["peak_ram_bytes"] for stage in report["engine"]["stages"])
    assert report["seconds"] >= sum(node["seconds"] for node in report["nodes"]) > 0
    assert report["engine"]["versions"]["torch"]


def test_same_seed_gives_the_same_video_and_another_seed_another(run):
    def make(seed):
        done = run(TEXT_TO_VIDEO, *TINY[TEXT_TO_VIDEO], *set_options(f"LightX2VSampler.seed={seed}"))
        assert done.code == 0, done.stderr
        return done.results[0]

    first, again, other = make(3), make(3), make(4)
    assert [path.name for path in (first, again, other)] == [f"lightx2v_0000{n}_.mp4" for n in (1, 2, 3)]
    assert np.array_equal(frames_of(first), frames_of(again))
    assert not np.array_equal(frames_of(first), frames_of(other))


def test_saved_video_stores_the_editors_graph(run, tmp_path):
    """ComfyUI's editor opens the `workflow` of a dropped video."""
    graph = json.loads(WITH_NATIVE_NODES.read_text(encoding="utf-8"))
    values = {node["type"]: node["widgets_values"] for node in graph["nodes"] if node.get("widgets_values")}
    values["EmptyHunyuanLatentVideo"][:] = [32, 32, 1, 1]
    tiny = tmp_path / "tiny.json"
    tiny.write_text(json.dumps(graph), encoding="utf-8")
    done = run(tiny)
    assert done.code == 0, done.stderr
    with av.open(str(done.results[0])) as video:
        assert json.loads(video.metadata["workflow"]) == graph


@pytest.mark.parametrize("workflow", TINY, ids=lambda path: path.stem)
def test_example_is_complete(workflow):
    """What Manager, the template browser and the missing-model dialog read."""
    graph = json.loads(workflow.read_text(encoding="utf-8"))
    assert graph["version"] == 0.4
    assert workflow.with_suffix(".jpg").read_bytes()[:3] == b"\xff\xd8\xff"
    assert any(node["type"] == "MarkdownNote" for node in graph["nodes"])
    for node in graph["nodes"]:
        if node["type"].startswith("LightX2V"):
            assert node["properties"]["cnr_id"] == "lightx2v-nodes"
            assert node["properties"]["Node name for S&R"] == node["type"]
        for model in node["properties"].get("models", ()):
            assert model["name"] in node["widgets_values"]
            assert model["url"].startswith("https://huggingface.co/")
            assert model["url"].endswith("/" + model["name"])
