"""tools/run_workflow.py --server against a real ComfyUI. Needs COMFYUI_DIR (COMFYUI_PYTHON with requirements.txt)."""

import json
import signal
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from lightx2v_pack.tools.headless.progress import Progress
from support.comfy_server import ComfyServer, comfyui_dir
from support.examples import TEXT_TO_VIDEO, TINY, WITH_NATIVE_NODES, frames_of, run_command, set_options, write_models

PROBE_NODES = Path(__file__).parent / "probe_nodes"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    comfyui_dir()
    folder = tmp_path_factory.mktemp("comfyui")
    write_models(folder / "models")
    with ComfyServer(folder, extra_nodes=(PROBE_NODES,)) as running:
        yield running


@pytest.fixture
def run(server, tmp_path, capsys):
    """Call the command with --server; results go to tmp_path / "output"."""

    def call(workflow, *arguments):
        where = ("--server", server.url, "--output-dir", tmp_path / "output")
        return run_command(capsys, workflow, *where, *arguments)

    return call


def test_example_equals_the_run_without_a_server(server, run, tmp_path, capsys):
    report_file = tmp_path / "report.json"
    done = run(TEXT_TO_VIDEO, *TINY[TEXT_TO_VIDEO], "--report", report_file)
    assert done.code == 0, done.stderr
    assert done.results == [tmp_path / "output" / "video" / "lightx2v_00001_.mp4"]
    assert done.results[0].read_bytes() == (server.output / "video" / "lightx2v_00001_.mp4").read_bytes()
    report = json.loads(report_file.read_text(encoding="utf-8"))
    assert (report["status"], report["server"]) == ("ok", server.url)
    assert report["outputs"] == [str(done.results[0])]
    assert {node["class_type"] for node in report["nodes"]} >= {"LightX2VSampler", "LightX2VDecode", "SaveVideo"}
    assert "sample" in [stage["stage"] for stage in report["engine"]["stages"]]

    folders = ("--models-dir", server.models, "--output-dir", tmp_path / "headless")
    headless = run_command(capsys, TEXT_TO_VIDEO, *folders, *TINY[TEXT_TO_VIDEO])
    assert headless.code == 0, headless.stderr
    assert np.array_equal(frames_of(done.results[0]), frames_of(headless.results[0]))


def test_native_nodes_run_on_the_server_and_the_file_stores_the_graph(run, tmp_path):
    graph = json.loads(WITH_NATIVE_NODES.read_text(encoding="utf-8"))
    empty = next(node for node in graph["nodes"] if node["type"] == "EmptyHunyuanLatentVideo")
    empty["widgets_values"] = [48, 32, 5, 1]
    tiny = tmp_path / "tiny.json"
    tiny.write_text(json.dumps(graph), encoding="utf-8")
    done = run(tiny)
    assert done.code == 0, done.stderr
    assert frames_of(done.results[0]).shape == (5, 32, 48, 3)
    with av.open(str(done.results[0])) as video:
        assert json.loads(video.metadata["workflow"]) == graph


def test_a_result_of_the_same_name_is_not_overwritten(run, tmp_path):
    mine = tmp_path / "output" / "video" / "same_00001_.mp4"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"my own file")
    done = run(TEXT_TO_VIDEO, *TINY[TEXT_TO_VIDEO], *set_options("SaveVideo.filename_prefix=video/same"))
    assert done.results == [mine.with_name("same_00001_ (1).mp4")]
    assert mine.read_bytes() == b"my own file"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("LightX2VSampler.steps=99", "Node 5 (LightX2V Sampler (Wan)): Value 99 bigger than max of 50"),
        ("LightX2VEmptyLatent.width=100", "expected a multiple of 16"),
        ("LightX2VLoadCheckpoint.checkpoint=gone", "Choose another checkpoint than 'gone', which was not found"),
        ("Nobody.width=100", "no node 'Nobody'"),
    ],
)
def test_refused_values_exit_with_2(setting, words, run):
    done = run(TEXT_TO_VIDEO, *set_options(setting))
    assert (done.code, done.stdout) == (2, "")
    assert words in done.stderr


def test_unknown_node_is_named(run, tmp_path):
    file = tmp_path / "api.json"
    file.write_text(json.dumps({"3": {"class_type": "Gone", "inputs": {}}}), encoding="utf-8")
    done = run(file)
    assert done.code == 2
    assert "Gone" in done.stderr


def test_failing_node_exits_with_3(server, run, tmp_path):
    vae = server.models / "vae" / "truncated_vae.safetensors"
    vae.write_bytes((server.models / "vae" / "wan_2.1_vae.safetensors").read_bytes()[:1000])
    nodes = {
        "1": {"class_type": "EmptyHunyuanLatentVideo",
              "inputs": {"width": 32, "height": 32, "length": 1, "batch_size": 1}},
        "2": {"class_type": "LightX2VLoadVAE", "inputs": {"vae": vae.name}},
        "3": {"class_type": "LightX2VDecode", "inputs": {"vae": ["2", 0], "latent": ["1", 0], "tiling": "off"}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "never"}},
    }  # fmt: skip
    file = tmp_path / "api.json"
    file.write_text(json.dumps(nodes), encoding="utf-8")
    done = run(file)
    assert (done.code, done.stdout) == (3, "")
    assert "failed with" in done.stderr
    assert "CheckpointError" in done.stderr


def wait_until_idle(server):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        queue = server.get("/queue")
        if not queue["queue_running"] and not queue["queue_pending"]:
            return
        time.sleep(0.1)
    raise AssertionError("the server is still busy")


# Long enough to be cancelled in the middle: 50 steps of 2640 tokens.
LONG = set_options(
    "LightX2VSampler.steps=50",
    "LightX2VEmptyLatent.width=352",
    "LightX2VEmptyLatent.height=240",
    "LightX2VEmptyLatent.num_frames=29",
)


def test_ctrl_c_stops_the_job_and_the_next_one_runs(server, run, monkeypatch):
    class Interrupting(Progress):
        def update(self, value, total):
            if total == 50:
                signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", Interrupting.update)
        done = run(TEXT_TO_VIDEO, *LONG)
    assert (done.code, done.stdout) == (130, "")
    wait_until_idle(server)
    last = list(server.get("/history").values())[-1]
    assert [name for name, _ in last["status"]["messages"]][-1] == "execution_interrupted"
    assert run(TEXT_TO_VIDEO, *TINY[TEXT_TO_VIDEO]).code == 0


def test_timeout_stops_the_job(server, run):
    done = run(TEXT_TO_VIDEO, *LONG, "--timeout", "2")
    assert done.code == 3
    assert "longer than --timeout 2 s" in done.stderr
    wait_until_idle(server)


def test_core_nodes_without_a_server_have_comfyuis_inputs(server, tmp_path):
    """Ids, input names, their order, types and defaults; choices may be fewer."""
    from lightx2v_pack.tools.headless.boot import boot
    from lightx2v_pack.tools.headless.node_info import input_specs

    ours = boot(server.models, tmp_path, Progress(sys.stderr, quiet=True)).infos
    theirs = server.get("/object_info")
    for name in [name for name in ours if not name.startswith("LightX2V")]:
        mine, real = input_specs(ours[name]), input_specs(theirs[name])
        assert list(mine) == list(real), name
        assert ours[name]["output"] == theirs[name]["output"], name
        assert bool(ours[name]["output_node"]) == bool(theirs[name]["output_node"]), name
        for key, spec in mine.items():
            assert (spec.type, spec.required) == (real[key].type, real[key].required), (name, key)
            for option in ("default", "min", "max", "step", "dynamicPrompts"):
                assert spec.options.get(option) == real[key].options.get(option), (name, key, option)
            assert set(spec.choices or ()) <= set(real[key].choices or ()), (name, key)
