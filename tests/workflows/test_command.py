"""tools/run_workflow.py as a command: exit codes, messages, cancel, timeout, failures."""

import json
import shutil
import signal

import pytest
from lightx2v_pack.tools.headless.progress import Progress
from support.examples import TEXT_TO_VIDEO, set_options
from support.scripts import run_script

SIZE = set_options("LightX2VEmptyLatent.width=32", "LightX2VEmptyLatent.height=32", "LightX2VEmptyLatent.num_frames=5")


def test_help_lists_the_exit_codes():
    done = run_script("run_workflow.py", "--help")
    assert done.returncode == 0
    assert all(f"\n  {code} " in done.stdout for code in (0, 2, 3, 4, 130))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["missing.json"], 2, "Cannot read the workflow missing.json"),
        ([], 2, "the following arguments are required: WORKFLOW.json"),
        # Port 9 is reserved for a service nobody runs.
        ([TEXT_TO_VIDEO, "--server", "127.0.0.1:9"], 4, "Cannot reach ComfyUI at http://127.0.0.1:9"),
    ],
)
def test_exit_code_and_message(arguments, code, words):
    done = run_script("run_workflow.py", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("LightX2VSampler.steps=99", "Node 6 (LightX2V Sampler): input 'steps' is 99; expected at most 50."),
        ("LightX2VEmptyLatent.width=100", "width is 100; expected a multiple of 16"),
        ("LightX2VLoadCheckpoint.checkpoint=../../etc", "'../../etc'"),
        ("LightX2VSampler.method=dpm", "method is 'dpm'"),
        ("LightX2VSampler.cfg=7", "has no value 'cfg'"),
    ],
)
def test_bad_values_are_refused_before_anything_runs(setting, words, run):
    done = run(TEXT_TO_VIDEO, *SIZE, "--set", setting)
    assert (done.code, done.stdout) == (2, "")
    assert words in done.stderr


def test_empty_models_folder_says_what_to_put_where(run, tmp_path):
    done = run(TEXT_TO_VIDEO, models=tmp_path)
    assert done.code == 2
    assert "put the checkpoint folder in models/lightx2v" in done.stderr


def test_unknown_node_names_the_server_option(run, tmp_path):
    file = tmp_path / "api.json"
    file.write_text(json.dumps({"3": {"class_type": "KSampler", "inputs": {}}}), encoding="utf-8")
    done = run(file)
    assert done.code == 2
    assert "Node 3 is of type 'KSampler'" in done.stderr
    assert "--server" in done.stderr


def test_ctrl_c_cancels_and_the_next_run_works(run, monkeypatch, tmp_path):
    notes = []

    def interrupt_in_sampling(progress, text):
        notes.append(text)
        if text.startswith("step"):
            signal.raise_signal(signal.SIGINT)

    report_file, before = tmp_path / "report.json", signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "note", interrupt_in_sampling)
        done = run(TEXT_TO_VIDEO, *SIZE, "--report", report_file)
    assert (done.code, done.stdout) == (130, "")
    assert "Cancelled in node 6 (LightX2V Sampler)." in done.stderr
    # Stopped at the first step's end: nothing ran after it.
    assert sum(text.startswith("step") for text in notes) == 1
    assert json.loads(report_file.read_text(encoding="utf-8"))["status"] == "cancelled"
    assert signal.getsignal(signal.SIGINT) is before
    following = run(TEXT_TO_VIDEO, *SIZE, "--quiet")
    assert (following.code, following.stderr, len(following.results)) == (0, "", 1)


def test_timeout_cancels(run):
    done = run(TEXT_TO_VIDEO, *SIZE, "--timeout", "0.001")
    assert (done.code, done.stdout) == (3, "")
    assert "longer than --timeout 0.001 s" in done.stderr


def test_failing_node_is_named_and_finished_nodes_are_in_the_report(run, models_dir, tmp_path):
    broken = shutil.copytree(models_dir, tmp_path / "models")
    vae = next(broken.rglob("Wan2.1_VAE.pth"))
    vae.write_bytes(vae.read_bytes()[:1000])
    report_file = tmp_path / "report.json"
    done = run(TEXT_TO_VIDEO, *SIZE, "--report", report_file, models=broken)
    assert (done.code, done.stdout) == (3, "")
    assert "Node 3 (LightX2V Load Checkpoint) failed with CheckpointError" in done.stderr
    report = json.loads(report_file.read_text(encoding="utf-8"))
    assert report["status"] == "failed"
    assert [node["node_id"] for node in report["nodes"]] == ["2"]
