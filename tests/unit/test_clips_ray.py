"""GPUs of a Ray cluster as workers of the queue: pretended machines with a GPU each. Needs `pip install ray`."""

import json
import textwrap

import pytest

ray = pytest.importorskip("ray")
from lightx2v_pack.tools import prompts_cli  # noqa: E402
from lightx2v_pack.tools.clips import cluster as clusters  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

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
    def __init__(self, *, models_dir, workflow, timeout):
        self.folder = Path(models_dir)

    def describe(self):
        return f"worker {os.getpid()}"

    def make(self, name, values):
        prompt = json.loads(values[-2].partition("=")[2])
        first = self.folder / f"{name}.begun"
        is_first = not first.exists()
        first.write_text("")
        if prompt == "crash" or (prompt == "crash once" and is_first):
            os._exit(7)
        if prompt == "fail":
            return "RunError", "out of memory"
        time.sleep(0.5)
        return "made", ([(f"video/{name}.mp4", prompt.encode())], {"card": "pretended"})

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


def add(machines):
    return machines.add_node(num_cpus=1, num_gpus=1, object_store_memory=STORE)


@pytest.fixture
def call(pack, tmp_path, machines, capsys):
    """call(prompts) -> (exit code, results, files, stderr)"""
    workflow = tmp_path / "api.json"
    workflow.write_text(json.dumps({"1": {"class_type": "Make", "inputs": {}}}), encoding="utf-8")

    def run(prompts, *arguments):
        file = tmp_path / "prompts.txt"
        file.write_text("\n".join(prompts), encoding="utf-8")
        words = [str(file), "--cluster", machines.address, "--workflow", str(workflow)]
        words += ["--models-dir", str(pack / "models"), "--output-dir", str(tmp_path / "out"), *arguments]
        code = prompts_cli.main(words)
        lines = file.with_suffix(".results.jsonl").read_text(encoding="utf-8").splitlines()
        files = sorted((tmp_path / "out").rglob("*.mp4"))
        return code, [json.loads(line) for line in lines], files, capsys.readouterr().err

    return run


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


def test_no_cluster_is_a_sentence(pack, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a fox\n")
    (tmp_path / "api.json").write_text(json.dumps({"1": {"class_type": "Make", "inputs": {}}}))
    words = [str(tmp_path / "prompts.txt"), "--cluster", "127.0.0.1:9", "--workflow", str(tmp_path / "api.json")]
    assert prompts_cli.main([*words, "--output-dir", str(tmp_path / "out")]) == 4
    assert "Start a cluster ('ray start --head'" in capsys.readouterr().err
