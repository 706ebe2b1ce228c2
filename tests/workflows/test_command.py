"""tools/run_workflow.py as a command: exit codes, messages, cancel, timeout, failures."""

import errno
import json
import math
import os
import re
import shutil
import signal
import tempfile

import pytest
from lightx2v_pack.tools.headless.progress import Progress
from PIL import Image
from support.examples import IMAGE_TO_VIDEO, TEXT_TO_VIDEO, frames_of, set_options, without_clip_vision
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
        ("LightX2VSampler.steps=99", "Node 5 (LightX2V Sampler (Wan)): input 'steps' is 99; expected at most 50."),
        ("LightX2VEmptyLatent.width=100", "width is 100; expected a multiple of 16"),
        ("LightX2VLoadCheckpoint.checkpoint=../../etc", "'../../etc'"),
        ("LightX2VSampler.method=dpm", "method is 'dpm'"),
        ("LightX2VSampler.cfg=7", "has no value 'cfg'"),
        ("LightX2VSampler.shift=NaN", "'NaN' is not a value of type FLOAT"),
        ("LightX2VSampler.shift=-Infinity", "'-Infinity' is not a value of type FLOAT"),
        ("LightX2VSampler.shift=1e999", "'1e999' is not a value of type FLOAT"),
        (f"LightX2VSampler.shift={'9' * 400}", "is not a value of type FLOAT"),
        ("CreateVideo.fps=NaN", "is not a value of type FLOAT"),
    ],
)
def test_bad_values_are_refused_before_anything_runs(setting, words, run):
    done = run(TEXT_TO_VIDEO, *SIZE, "--set", setting)
    assert (done.code, done.stdout) == (2, "")
    assert words in done.stderr


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "is nan; expected a value of type FLOAT"),
        (10**400, "expected a value of type"),
        (-math.inf, "is -inf;"),
    ],
)
def test_values_in_a_file_that_are_no_numbers_are_refused(value, said, run, tmp_path):
    nodes = {
        "1": {"class_type": "EmptyHunyuanLatentVideo", "inputs": {"width": 32, "height": 32, "length": 5}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
        "3": {"class_type": "CreateVideo", "inputs": {"images": ["2", 0], "fps": value}},
        "4": {"class_type": "SaveVideo", "inputs": {"video": ["3", 0], "filename_prefix": "a"}},
    }
    (tmp_path / "graph.json").write_text(json.dumps(nodes), encoding="utf-8")
    done = run(tmp_path / "graph.json")
    assert done.code == 2 and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("link", [["2", "a"], ["2", 0.0], ["2", None], ["2", True], ["2"], ["gone", 0]])
def test_a_link_to_no_output_is_a_sentence(link, run, tmp_path):
    nodes = {
        "1": {"class_type": "PreviewImage", "inputs": {"images": link}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
    }
    (tmp_path / "graph.json").write_text(json.dumps(nodes), encoding="utf-8")
    done = run(tmp_path / "graph.json")
    assert done.code == 2 and "Node 1: input 'images' is linked to [" in done.stderr
    assert "which is no output of this workflow" in done.stderr


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_picture_is_named(content, run, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    nodes = {
        "1": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
        "2": {"class_type": "LoadImage", "inputs": {"image": str(tmp_path / "x.png")}},
    }
    (tmp_path / "graph.json").write_text(json.dumps(nodes), encoding="utf-8")
    done = run(tmp_path / "graph.json")
    assert f"Choose a picture for Load Image, such as a PNG or JPEG: {tmp_path / 'x.png'} is none" in done.stderr


def test_empty_models_folder_says_what_to_put_where(run, tmp_path):
    done = run(TEXT_TO_VIDEO, models=tmp_path)
    assert done.code == 2
    assert "put the checkpoint folder in models/lightx2v" in done.stderr


@pytest.mark.parametrize("name", ["gone", "gone/models", "a file"])
def test_a_models_folder_that_is_none_is_a_sentence_for_the_tool(run, tmp_path, name):
    (tmp_path / "a file").write_bytes(b"")
    done = run(TEXT_TO_VIDEO, models=tmp_path / name)
    assert (done.code, done.stdout) == (2, "")
    sentence = f"Give --models-dir ComfyUI's models folder: {tmp_path / name} is no folder."
    assert done.stderr == f"run_workflow: {sentence}\n"


def graph_with(tmp_path, change, **encoding):
    """Write the template with its Save Video node changed."""
    graph = json.loads(TEXT_TO_VIDEO.read_text(encoding="utf-8"))
    change(next(node for node in graph["nodes"] if node["type"] == "SaveVideo"), graph)
    file = tmp_path / "changed.json"
    file.write_text(json.dumps(graph), **({"encoding": "utf-8"} | encoding))
    return file


@pytest.mark.parametrize("mode", [2, 4])
def test_a_muted_save_is_said_where_the_rest_runs(run, tmp_path, mode):
    done = run(graph_with(tmp_path, lambda save, _: save.update(mode=mode)), *SIZE, "--quiet")
    assert (done.code, done.stdout) == (0, "")
    sentence = "Unmute 'Save Video' (node 8) to have a file: no node that ran has saved one."
    assert done.stderr == f"run_workflow: {sentence}\n"


def only_output(save, graph):
    save["mode"] = 2
    graph["nodes"] = [node for node in graph["nodes"] if node["type"] != "LightX2VReport"]


def test_a_workflow_whose_only_output_is_muted_does_not_run(run, tmp_path):
    done = run(graph_with(tmp_path, only_output), *SIZE)
    assert (done.code, done.stdout) == (2, "")
    sentence = "Unmute 'Save Video' (node 8) in the editor: no other node saves or shows anything."
    assert done.stderr == f"run_workflow: {sentence}\n"


def test_a_placeholder_names_the_file_and_a_mark_of_the_encoding_is_no_matter(run, tmp_path):
    prefix = "%date:yyyy%/s%LightX2VSampler.seed%"
    file = graph_with(tmp_path, lambda save, _: None, encoding="utf-8-sig")
    done = run(file, *SIZE, "--set", f"SaveVideo.filename_prefix={prefix}", "--set", "LightX2VSampler.seed=7")
    assert done.code == 0, done.stderr
    (result,) = done.results
    assert result.name == "s7_00001_.mp4" and re.fullmatch(r"20\d\d", result.parent.name)


def test_a_report_that_cannot_be_written_is_refused_before_anything_runs(run, tmp_path):
    (tmp_path / "report").mkdir()
    done = run(TEXT_TO_VIDEO, *SIZE, "--report", tmp_path / "report")
    said = f"run_workflow: Choose another place for --report: {tmp_path / 'report'} is a folder.\n"
    assert (done.code, done.stdout, done.stderr) == (2, "", said)


def test_a_report_that_finds_no_room_at_the_end_loses_no_result(run, tmp_path, monkeypatch):
    original = Progress.finish_node

    def finish_node(progress):
        (tmp_path / "report").mkdir(exist_ok=True)
        return original(progress)

    monkeypatch.setattr(Progress, "finish_node", finish_node)
    done = run(TEXT_TO_VIDEO, *SIZE, "--report", tmp_path / "report")
    assert done.code == 3 and f"Choose another place for --report: {tmp_path / 'report'} is a folder." in done.stderr
    assert [result.is_file() for result in done.results] == [True]


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_output_folder_that_cannot_be_written_is_a_sentence(run, tmp_path, place):
    (tmp_path / "file").write_bytes(b"")
    report = tmp_path / "report.json"
    done = run(TEXT_TO_VIDEO, *SIZE, "--output-dir", tmp_path / place, "--report", report)
    said = f"Choose another place for --output-dir: {tmp_path / 'file'} is a file, where a folder has to be."
    assert (done.code, done.stdout, done.stderr) == (2, "", f"run_workflow: {said}\n")
    assert json.loads(report.read_text(encoding="utf-8"))["status"] == "failed"


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("there/fox", "there is a file, where a folder has to be"),
        ("a" * 300, f"the name {'a' * 60} is too long"),
        (f"{'b' * 300}/fox", "is too long"),
        ("../fox", "../fox is outside the output folder"),
        ("fox\0", "cannot be written (embedded null byte)"),
    ],
)
def test_a_prefix_under_which_nothing_can_be_saved_is_refused_before_anything_runs(run, tmp_path, prefix, said):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "there").write_bytes(b"")
    done = run(TEXT_TO_VIDEO, *SIZE, "--set", f"SaveVideo.filename_prefix={json.dumps(prefix)}")
    assert done.code == 2 and done.stdout == "" and said in done.stderr, done.stderr
    assert "Choose another place for filename_prefix: " in done.stderr and "step 1" not in done.stderr
    assert os.listdir(tmp_path / "output") == ["there"]


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_film_that_has_no_place_is_put_elsewhere(run, tmp_path, monkeypatch, reason):
    from lightx2v_pack.tools.headless import core_nodes

    def write_mp4(path, *args, **kwargs):
        if path.is_relative_to(tmp_path / "output"):
            path.write_bytes(b"half")
            raise OSError(reason, os.strerror(reason))
        original(path, *args, **kwargs)

    original = core_nodes.write_mp4
    monkeypatch.setattr(core_nodes, "write_mp4", write_mp4)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    done = run(TEXT_TO_VIDEO, *SIZE)
    (film,) = (tmp_path / "temporary").rglob("*.mp4")
    assert len(frames_of(film)) == 5
    assert done.code == 3 and f"run_workflow: Take what was made from {film}. " in done.stderr
    assert not [path for path in (tmp_path / "output").rglob("*") if path.suffix == ".mp4"]


@pytest.mark.slow
def test_a_console_without_the_letters_of_a_path_gets_them_escaped(models_dir, tmp_path):
    output, report = tmp_path / "\u89c6\u9891", tmp_path / "report.json"
    folders = ("--models-dir", models_dir, "--output-dir", output, "--report", report)
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252:strict", "OMP_NUM_THREADS": "1"}
    done = run_script("run_workflow.py", TEXT_TO_VIDEO, *SIZE, *folders, environment=environment)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(report.read_text(encoding="utf-8"))["outputs"]
    assert result.startswith(str(output)) and done.stdout == result.replace(output.name, r"\u89c6\u9891") + "\n"


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
    assert "Cancelled in node 5 (LightX2V Sampler (Wan))." in done.stderr
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


# Larger than any machine's RAM.
HUGE = {"width": 4096, "height": 4096, "num_frames": 1601}


@pytest.mark.parametrize("template", [TEXT_TO_VIDEO, IMAGE_TO_VIDEO], ids=lambda path: path.stem)
def test_a_size_that_does_not_fit_is_refused_before_the_text_is_encoded(template, run, models_dir, tmp_path):
    (models_dir.parent / "input").mkdir(exist_ok=True)
    Image.new("RGB", (64, 48)).save(models_dir.parent / "input" / "example.png")
    is_from_picture = template == IMAGE_TO_VIDEO
    workflow = without_clip_vision(tmp_path) if is_from_picture else template
    node = "LightX2VImageToVideo" if is_from_picture else "LightX2VEmptyLatent"
    report_file = tmp_path / "report.json"
    values = set_options(*(f"{node}.{name}={value}" for name, value in HUGE.items()))
    done = run(workflow, *values, "--report", report_file)
    assert (done.code, done.stdout) == (3, "")
    assert "(LightX2V Sampler (Wan)) failed with NothingFitsError" in done.stderr
    ran = {node["class_type"] for node in json.loads(report_file.read_text(encoding="utf-8"))["nodes"]}
    # Nor was the latent made, of 7 GB.
    assert all(name.startswith("LightX2VLoad") for name in ran)


def test_failing_node_is_named_and_the_report_says_so(run, models_dir, tmp_path):
    broken = shutil.copytree(models_dir, tmp_path / "models")
    vae = next(broken.rglob("Wan2.1_VAE.pth"))
    vae.write_bytes(vae.read_bytes()[:1000])
    report_file = tmp_path / "report.json"
    done = run(TEXT_TO_VIDEO, *SIZE, "--report", report_file, models=broken)
    assert (done.code, done.stdout) == (3, "")
    assert "Node 2 (LightX2V Load Checkpoint (Wan)) failed with CheckpointError" in done.stderr
    report = json.loads(report_file.read_text(encoding="utf-8"))
    assert (report["status"], report["nodes"]) == ("failed", [])
