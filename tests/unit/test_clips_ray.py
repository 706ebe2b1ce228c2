"""GPUs of a Ray cluster as workers of the queue: pretended machines with a GPU each. Needs `pip install ray`."""

import functools
import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

ray = pytest.importorskip("ray")
from lightx2v_pack.tools import prompts_cli  # noqa: E402
from lightx2v_pack.tools.clips import cluster as clusters  # noqa: E402
from lightx2v_pack.tools.clips.queue import ClipQueue  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from support import examples  # noqa: E402

pytestmark = pytest.mark.slow
STORE = 80 * 2**20
# So that a lost machine is noticed in seconds.
SYSTEM = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}
# Does what the prompt says: crash once, crash, fail, or take its time.
MAKER = """
import json, os, time
from pathlib import Path

class ClipMaker:
    def __init__(self, *, models_dir, workflow, timeout, gpus):
        self.folder = Path(models_dir)
        self.gpus = gpus

    def describe(self):
        return f"worker {os.getpid()}"

    def make(self, name, values):
        prompt = json.loads(values[-2].partition("=")[2])
        first = self.folder / f"{name}.begun"
        is_first = not first.exists()
        with first.open("a") as file:
            file.write("once more\\n")
        if prompt == "crash" or (prompt == "crash once" and is_first):
            os._exit(7)
        if prompt == "fail":
            return "RunError", "out of memory"
        time.sleep(0.5)
        facts = {"card": "pretended", "gpus": self.gpus, "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}
        return "made", ([(f"video/{name}.mp4", prompt.encode())], facts)

    def stop(self):
        pass
"""


@pytest.fixture
def pack(tmp_path, monkeypatch):
    """A pack whose clips are made at once, and which the actors get instead of this one."""
    for folder in ("tools/clips", "models"):
        (tmp_path / "pack" / folder).mkdir(parents=True)
    (tmp_path / "pack/tools/register_pack.py").write_text(
        textwrap.dedent(
            """
            import sys, types
            from pathlib import Path
            pack = types.ModuleType("lightx2v_pack")
            pack.__path__ = [str(Path(__file__).resolve().parent.parent)]
            sys.modules["lightx2v_pack"] = pack
            """
        )
    )
    (tmp_path / "pack/tools/clips/maker.py").write_text(MAKER)
    monkeypatch.setattr(prompts_cli, "_PACK_ROOT", tmp_path / "pack")
    monkeypatch.setattr(clusters, "_LOOK_SECONDS", 1.0)
    return tmp_path / "pack"


@pytest.fixture
def machines():
    started = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False, "_system_config": SYSTEM,
        },
    )  # fmt: skip
    yield started
    ray.shutdown()
    started.shutdown()


def add(machines, gpus=1):
    return machines.add_node(num_cpus=1, num_gpus=gpus, object_store_memory=STORE)


@pytest.fixture
def call(pack, tmp_path, machines, capsys):
    """call(prompts) -> (exit code, results, files, stderr)"""

    def run(prompts, *arguments):
        code = prompts_cli.main([*words_for(prompts, pack, tmp_path, machines), *arguments])
        return code, results_in(tmp_path), files_in(tmp_path), capsys.readouterr().err

    return run


def words_for(prompts, pack, folder, machines):
    """Return a command line, whose files are in `folder`."""
    file, workflow = folder / "prompts.txt", folder / "api.json"
    file.write_text("\n".join(prompts), encoding="utf-8")
    workflow.write_text(json.dumps({"1": {"class_type": "Make", "inputs": {}}}), encoding="utf-8")
    words = [str(file), "--cluster", machines.address, "--workflow", str(workflow)]
    return [*words, "--models-dir", str(pack / "models"), "--output-dir", str(folder / "out")]


def results_in(folder):
    """Return the lines that are whole."""
    file = folder / "prompts.results.jsonl"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def files_in(folder):
    return sorted((folder / "out").rglob("*.mp4"))


def test_no_clip_is_lost_and_none_is_made_twice(call, machines, monkeypatch):
    """A worker crashes, a clip ends every worker, one fails, a machine is lost, and another one comes."""
    victim = add(machines)
    add(machines)
    made = 0
    note = prompts_cli.Desk.made

    def made_one(desk, *arguments):
        nonlocal made
        note(desk, *arguments)
        made += 1
        if made == 2:
            machines.remove_node(victim, allow_graceful=False)
            add(machines)

    monkeypatch.setattr(prompts_cli.Desk, "made", made_one)
    prompts = ["a", "crash once", "b", "crash", "c", "fail", "d", "e", "f"]
    code, results, files, error = call(prompts, "--retries", "2")
    assert code == 3, error
    last = {line["prompt"]: line for line in results}
    assert {prompt for prompt, line in last.items() if line["status"] == "ok"} == set(prompts) - {"crash", "fail"}
    assert len(results) == len(prompts) == len(files) + 2
    assert sorted(file.read_text() for file in files) == sorted(set(prompts) - {"crash", "fail"})
    assert last["crash"]["tries"] == 3 and "is gone" in last["crash"]["error"]
    assert last["fail"]["error"] == "out of memory" and last["crash once"]["tries"] >= 2
    assert "goes to another worker" in error and "Traceback" not in error
    # Again: only what is not there, and what is in its place now.
    code, again, files, _ = call([{"crash": "g", "fail": "h"}.get(prompt, prompt) for prompt in prompts])
    assert code == 0 and [line["prompt"] for line in again[len(results) :]] == ["g", "h"] and len(files) == 9


DRIVER = """
import runpy, sys
from pathlib import Path
root, pack, *words = sys.argv[1:]
runpy.run_path(str(Path(root, "tools", "register_pack.py")))
from lightx2v_pack.tools import prompts_cli
prompts_cli._PACK_ROOT = Path(pack)
sys.exit(prompts_cli.main(words))
"""


def begun(pack, name):
    """Return how often a clip was begun."""
    return len((pack / "models" / f"{name}.begun").read_text().splitlines())


def test_a_killed_driver_costs_no_clip_and_the_same_command_goes_on(pack, tmp_path, machines):
    """Killed twice, wherever it is; what was made by then is not made again, and its workers end with it."""
    for _ in range(2):
        add(machines)
    prompts = [f"clip {number}" for number in range(10)]
    words = words_for(prompts, pack, tmp_path, machines)
    command = [sys.executable, "-c", DRIVER, str(Path(prompts_cli.__file__).parents[1]), str(pack), *words]
    done_then = {}
    for so_many in (3, 6):
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 90
        while len(results_in(tmp_path)) < so_many and time.monotonic() < until:
            time.sleep(0.02)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        made = results_in(tmp_path)
        assert so_many <= len(made) < len(prompts)
        done_then |= {file.stem: begun(pack, file.stem) for file in files_in(tmp_path)}
        workers = {int(line["worker"].split()[1]) for line in made}
        while any(map(psutil.pid_exists, workers)) and time.monotonic() < until:
            time.sleep(0.1)
        assert not any(map(psutil.pid_exists, workers))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{len(prompts)} prompts, {len(made)} of them done" in done.stderr
    results, files = results_in(tmp_path), files_in(tmp_path)
    assert sorted(line["prompt"] for line in results if line["status"] == "ok") == prompts
    assert sorted(file.read_text() for file in files) == prompts
    assert len(done_then) >= 6 and done_then == {name: begun(pack, name) for name in done_then}


def test_the_pack_itself_makes_in_an_actor_what_it_makes_here(machines, tmp_path, capsys):
    add(machines)
    models, file = examples.write_models(tmp_path / "models"), tmp_path / "prompts.txt"
    file.write_text("a red fox in snow\na boat", encoding="utf-8")
    words = [str(file), "--models-dir", str(models), *examples.TINY[examples.TEXT_TO_VIDEO], "--seed", "5"]
    frames = []
    for name, more in (("here", ()), ("there", ("--cluster", machines.address))):
        places = ("--output-dir", str(tmp_path / name), "--results", str(tmp_path / f"{name}.jsonl"))
        assert prompts_cli.main([*words, *places, *more]) == 0, capsys.readouterr().err
        frames.append([examples.frames_of(file) for file in sorted((tmp_path / name).rglob("*.mp4"))])
    assert len(frames[0]) == len(frames[1]) == 2
    assert all(map(np.array_equal, *frames)) and not np.array_equal(*frames[0])
    results = [json.loads(line) for line in (tmp_path / "there.jsonl").read_text().splitlines()]
    assert [line["status"] for line in results] == ["ok", "ok"] and results[0]["plan"].startswith("plan: ")
    assert len({line["worker"] for line in results}) == 1


def test_several_gpus_of_one_machine_make_a_clip(call, machines):
    add(machines, gpus=2)
    add(machines, gpus=1)
    code, results, files, error = call(["a", "b", "c"], "--gpus-per-clip", "2")
    assert code == 0 and len(files) == 3, error
    assert {(line["gpus"], line["visible"]) for line in results} == {(2, "0,1")}
    assert len({line["worker"] for line in results}) == 1


def test_where_no_machine_has_so_many_gpus_it_is_said(call, machines, monkeypatch):
    monkeypatch.setattr(prompts_cli, "ClipQueue", functools.partial(ClipQueue, patience=3.0))
    add(machines)
    add(machines)
    code, results, files, error = call(["a"], "--gpus-per-clip", "2")
    assert code == 4 and not files
    assert "or as many as --gpus-per-clip wants" in results[0]["error"] and "gpus-per-clip" in error


def test_no_cluster_is_a_sentence(pack, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a fox\n")
    (tmp_path / "api.json").write_text(json.dumps({"1": {"class_type": "Make", "inputs": {}}}))
    words = [str(tmp_path / "prompts.txt"), "--cluster", "127.0.0.1:9", "--workflow", str(tmp_path / "api.json")]
    assert prompts_cli.main([*words, "--output-dir", str(tmp_path / "out")]) == 4
    assert "Start a cluster ('ray start --head'" in capsys.readouterr().err
