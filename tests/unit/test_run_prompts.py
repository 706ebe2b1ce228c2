"""tools/run_prompts.py: which prompts it reads, which it makes again, and that no result is lost."""

import json
import os

import pytest
from lightx2v_pack.engine.sentences.tools import Saving
from lightx2v_pack.tools import prompts_cli
from lightx2v_pack.tools.clips.jobs import make_jobs
from lightx2v_pack.tools.clips.results import Results
from lightx2v_pack.tools.headless.errors import WorkflowError
from lightx2v_pack.tools.headless.several_gpus import use_gpus
from lightx2v_pack.tools.saving import NotSavedError
from support import examples


@pytest.fixture
def prompts(tmp_path, capsys):
    """prompts(list, results) -> (exit code, seeds and prompts that were tried, stderr); none can be made."""

    def call(content, results=b"", *arguments):
        file = tmp_path / "prompts.txt"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        noted = tmp_path / "prompts.results.jsonl"
        if results is not None:
            noted.write_bytes(results)
        words = [str(file), "--workflow", str(tmp_path / "none.json"), *arguments]
        code = prompts_cli.main(words)
        lines = noted.read_bytes()[len(results or b"") :].split(b"\n") if noted.is_file() else []
        tried = [json.loads(line) for line in lines if line]
        return code, [(line["seed"], line["prompt"]) for line in tried], capsys.readouterr().err

    return call


def line(prompt, seed, status="ok", **more):
    return json.dumps({"prompt": prompt, "seed": seed, "status": status, **more}, ensure_ascii=False).encode() + b"\n"


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\r"])
def test_a_line_ends_at_lf_or_crlf_only(prompts, separator):
    prompt = f"a red fox,{separator}in snow"
    assert prompts(f"{prompt}\r\n")[1] == [(0, prompt)]
    done = line(prompt, 0) + line(f"an {separator} error", 5, "failed", error=f"a{separator}b")
    assert prompts(f"{prompt}\n", done) == (0, [], "1 prompts, 1 of them done\n")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_list_with_a_mark_of_its_encoding(prompts, encoding):
    assert prompts("größer \u72d0\n".encode(encoding))[1] == [(0, "größer \u72d0")]


@pytest.mark.parametrize("content", ["gr\xf6\xdfer\n".encode("latin-1"), "a fox".encode("utf-16-le")])
def test_a_list_in_another_encoding_is_named(prompts, content):
    code, tried, error = prompts(content)
    assert (code, tried) == (2, []) and error.startswith("run_prompts: Save prompts.txt as UTF-8")


@pytest.mark.parametrize(
    "bad",
    [
        line("a fox", 0)[:-20],
        line("a fox", 0)[:1],
        b"[1, 2]\n",
        b"5\n",
        b"null\n",
        b'{"seed": 0}\n',
        b'{"prompt": "a fox", "seed": null, "status": "ok"}\n',
        b'{"prompt": "a fox", "seed": Infinity, "status": "ok"}\n',
        b'{"prompt": "a fox", "seed": 1e999, "status": "ok"}\n',
        b"[" * 50_000 + b"\n",
        b"\xff\xfe\n",
        b"a note of mine\n",
    ],
    ids=lambda value: repr(value[:12]),
)
@pytest.mark.parametrize("is_last", [True, False])
def test_a_line_that_is_no_result_is_passed_over_with_a_warning(prompts, bad, is_last):
    good = line("a boat", 1)
    results = good + bad if is_last else bad.rstrip(b"\n") + b"\n" + good
    code, tried, error = prompts("a fox\na boat\n", results)
    assert (code, tried) == (2, [(0, "a fox")])
    number = 2 if is_last else 1
    assert f"run_prompts: prompts.results.jsonl, line {number}, is passed over, as it is no result" in error


def test_a_cut_line_does_not_swallow_the_next_result(prompts, tmp_path):
    prompts("a fox\n", line("a fox", 0)[:-5])
    last = (tmp_path / "prompts.results.jsonl").read_bytes().split(b"\n")[-2]
    assert json.loads(last)["prompt"] == "a fox"


@pytest.mark.parametrize("kind", ["a folder", "no folder", "a full disk"])
def test_results_that_cannot_be_noted_are_said_before_anything_is_made(prompts, tmp_path, kind):
    place = {"a folder": tmp_path / "folder", "no folder": tmp_path / "none" / "x", "a full disk": "/dev/full"}[kind]
    (tmp_path / "folder").mkdir()
    if kind == "a full disk" and not os.path.exists(place):
        pytest.skip("no /dev/full")
    code, tried, error = prompts("a fox\n", None, "--results", str(place))
    assert (code, tried) == (3, [])
    assert "Traceback" not in error and str(place) in error


@pytest.mark.parametrize("place", ["file", "file/below", "a" * 300])
@pytest.mark.parametrize("option", ["--output-dir", "--report"])
def test_places_that_cannot_be_written_are_said_before_anything_is_made(prompts, tmp_path, option, place):
    (tmp_path / "file").write_bytes(b"")
    if option == "--report" and place == "file":
        place = "file/report.json"
    code, tried, error = prompts("a fox\n", b"", option, str(tmp_path / place))
    assert (code, tried) == (3, [])
    assert f"run_prompts: Choose another place for {option}: " in error and "Traceback" not in error


def test_a_list_that_cannot_be_read_is_a_sentence(capsys, tmp_path):
    for path in (tmp_path, tmp_path / "gone.txt"):
        assert prompts_cli.main([str(path)]) == 2
        assert f"Give a text file with one prompt a line: {path} cannot be read" in capsys.readouterr().err


@pytest.fixture
def made(monkeypatch):
    """Let every clip be made at once, as a file whose name may be given: made(name)."""

    def call(name="fox.mp4"):
        def run(place, task, progress, log):
            task.output_dir.mkdir(parents=True)
            (task.output_dir / name).write_bytes(b"a clip")
            log.outputs.append(task.output_dir / name)

        monkeypatch.setattr(prompts_cli.Here, "run", run)

    return call


def test_a_path_that_is_no_text_is_noted(prompts, tmp_path, made):
    made("a.m\udc80")
    assert prompts("a fox\n", b"", "--output-dir", str(tmp_path / "out"))[0] == 0
    noted = json.loads((tmp_path / "prompts.results.jsonl").read_bytes())["outputs"][0]
    assert noted.endswith(".m\udc80") and os.path.exists(noted)


@pytest.mark.parametrize("errno", [28, 30, 5])
def test_a_disk_that_fills_up_names_what_is_made_and_it_is_not_made_again(prompts, monkeypatch, errno, made, tmp_path):
    made()
    append = Results._append

    def fill(results, text):
        if text:
            raise OSError(errno, os.strerror(errno))
        append(results, text)

    where = ("--output-dir", str(tmp_path / "out"))
    with monkeypatch.context() as full:
        full.setattr(Results, "_append", fill)
        code, tried, error = prompts("a fox\na boat\n", b"", *where)
    assert (code, tried) == (3, [])
    assert "Make room and start again" in error and os.strerror(errno) in error
    (file,) = (tmp_path / "out").glob("00001_s0_*.mp4")
    assert f"{file} is made" in error
    file.write_bytes(b"the first one")
    assert prompts("a fox\na boat\n", b"", *where)[:2] == (0, [(0, "a fox"), (1, "a boat")])
    assert file.read_bytes() == b"the first one"


def test_a_clip_whose_folder_is_a_file_goes_to_the_folder_of_all(prompts, monkeypatch, tmp_path):
    def run(place, task, progress, log):
        (task.output_dir / "video").mkdir(parents=True)
        (task.output_dir / "video" / "fox.mp4").write_bytes(b"a clip")
        log.outputs.append(task.output_dir / "video" / "fox.mp4")

    monkeypatch.setattr(prompts_cli.Here, "run", run)
    out = tmp_path / "out"
    out.mkdir()
    (out / "video").write_bytes(b"")
    where = ("--output-dir", str(out))
    code, _, error = prompts("a fox\n", b"", *where)
    (file,) = out.glob("00001_s0_*.mp4")
    assert code == 0 and file.read_bytes() == b"a clip"
    assert f"run_prompts: {file} is there, and not in {out / 'video'}. Choose another place for results: " in error
    assert prompts("a fox\n", None, *where)[0] == 0 and list(out.glob("*.mp4")) == [file]


def test_a_list_ends_where_what_is_made_has_no_place(prompts, monkeypatch, tmp_path):
    """Each prompt after it would cost minutes, and have none either."""
    tried = []

    def run(place, task, progress, log):
        tried.append(task)
        raise NotSavedError(Saving.ELSEWHERE(elsewhere="/tmp/fox.mp4", why="Make room."))

    monkeypatch.setattr(prompts_cli.Here, "run", run)
    code, _, error = prompts("a fox\na boat\n", b"", "--output-dir", str(tmp_path / "out"))
    assert (code, len(tried)) == (3, 1)
    assert "run_prompts: Take what was made from /tmp/fox.mp4. Make room." in error


def test_another_value_is_another_clip_and_overwrites_none(prompts, made, tmp_path):
    made()
    where = ("--output-dir", str(tmp_path / "out"))
    assert prompts("a fox\n", b"", *where)[0] == 0
    noted = (tmp_path / "prompts.results.jsonl").read_bytes()
    assert prompts("a fox\n", noted, *where)[1] == []
    assert prompts("a fox\n", noted, *where, "--set", "LightX2VEmptyLatent.num_frames=49")[1] == [(0, "a fox")]
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_graph_that_was_only_moved_makes_the_same_clips(tmp_path):
    graph = json.loads(examples.TEXT_TO_VIDEO.read_text(encoding="utf-8"))
    keys = []
    for change in (None, ("pos", [7, 8]), ("mode", 2)):
        if change:
            graph["nodes"][0][change[0]] = change[1]
        file = tmp_path / "graph.json"
        file.write_text(json.dumps(graph), encoding="utf-8")
        wish = {"values": (), "seed": 0, "prompt_input": "A.text", "seed_input": "A.seed"}
        keys.append(make_jobs(["a fox"], workflow=file, **wish)[0].key)
    assert keys[0] == keys[1] != keys[2]


def infos(*, knows_gpus=True):
    """Return descriptions of two loaders that take GPUs, one node that does not, and LightX2V GPUs."""
    takes = {"input": {"required": {"file": [["a"], {}]}, "optional": {"gpus": ["LIGHTX2V_GPUS", {}]}}}
    found = {"Load": takes, "LoadVae": takes, "Sample": {"input": {"required": {"model": ["MODEL", {}]}}}}
    return found | ({"LightX2VGPUs": {"input": {"required": {"gpus": ["STRING", {}]}}}} if knows_gpus else {})


def test_every_loader_gets_the_gpus_of_the_command_whatever_the_workflow_says():
    prompt = {
        "1": {"class_type": "Load", "inputs": {"file": "a", "gpus": ["9", 0]}},
        "2": {"class_type": "LoadVae", "inputs": {"file": "a"}},
        "3": {"class_type": "Sample", "inputs": {"model": ["1", 0]}},
        "9": {"class_type": "LightX2VGPUs", "inputs": {"gpus": "auto"}},
    }
    use_gpus(prompt, 2, infos())
    (added,) = prompt.keys() - {"1", "2", "3", "9"}
    assert prompt[added]["class_type"] == "LightX2VGPUs" and prompt[added]["inputs"] == {"gpus": "2"}
    assert prompt["1"]["inputs"] == prompt["2"]["inputs"] == {"file": "a", "gpus": [added, 0]}
    assert prompt["3"]["inputs"] == {"model": ["1", 0]}


@pytest.mark.parametrize(("class_type", "known"), [("Sample", True), ("Load", False), ("Unknown", True)])
def test_a_workflow_that_no_gpus_can_share_is_refused(class_type, known):
    prompt = {"1": {"class_type": class_type, "inputs": {}}}
    with pytest.raises(WorkflowError, match="or leave out --gpus-per-clip"):
        use_gpus(prompt, 2, infos(knows_gpus=known))


@pytest.mark.parametrize("count", ["0", "9", "two", "-1", "1.5"])
def test_a_clip_is_made_by_one_to_eight_gpus(prompts, capsys, count):
    with pytest.raises(SystemExit):
        prompts("a fox\n", b"", "--gpus-per-clip", count)
    said = f"run_prompts.py: --gpus-per-clip: give a whole number from 1 to 8, not '{count}'."
    assert said in capsys.readouterr().err


def test_who_makes_a_clip_gets_the_gpus_of_the_command(prompts, made, monkeypatch, tmp_path):
    made()
    asked, run = [], prompts_cli.Here.run
    monkeypatch.setattr(
        prompts_cli.Here, "run", lambda place, task, *rest: (asked.append(task.gpus), run(place, task, *rest))
    )
    folder = ("--output-dir", str(tmp_path / "out"))
    assert prompts("a fox\n", b"", *folder)[0] == 0
    assert prompts("a fox\n", b"", *folder, "--gpus-per-clip", "4", "--seed", "7")[0] == 0
    assert asked == [None, 4]
    # Whoever computes it, it is the same clip.
    code, _, error = prompts("a fox\n", None, *folder, "--gpus-per-clip", "2", "--seed", "7")
    assert code == 0 and "1 of them done" in error and asked == [None, 4]


@pytest.mark.parametrize("results", [None, b""])
def test_the_report_is_no_results_file(prompts, tmp_path, results):
    (tmp_path / "link").symlink_to(tmp_path)
    code, tried, error = prompts("a fox\n", results, "--report", str(tmp_path / "link" / "prompts.results.jsonl"))
    assert (code, tried) == (3, []) and "prompts.results.jsonl is the results file.\n" in error


def test_a_report_replaces_no_clip_of_the_same_name(made, prompts, tmp_path):
    """It is there when the list is done, and was not before."""
    made("fox.mp4")
    inputs = {"prompt_input": "LightX2VTextEncode.text", "seed_input": "LightX2VSampler.seed"}
    (first,) = make_jobs(["a fox"], workflow=tmp_path / "none.json", values=[], seed=0, **inputs)
    clip = tmp_path / "out" / f"{first.name}.mp4"
    code, _, error = prompts("a fox\n", b"", "--output-dir", str(clip.parent), "--report", str(clip))
    assert clip.read_bytes() == b"a clip"
    assert code == 3 and f"Choose another place for --report: {clip} is there already, and is no report" in error
