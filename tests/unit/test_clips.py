"""Many clips over several workers: the queue, and ComfyUI servers as workers. No clip is lost, none is made twice."""

import json
import threading
import time
from contextlib import ExitStack

import pytest
from lightx2v_pack.tools import prompts_cli
from lightx2v_pack.tools.clips.forecast import is_better_left, seconds_left
from lightx2v_pack.tools.clips.jobs import Job
from lightx2v_pack.tools.clips.queue import ClipQueue, Fixed, Made, WorkerLostError
from lightx2v_pack.tools.headless.errors import Cancelled, RunError, ServerError, WorkflowError
from support import fake_comfy


class Scripted:
    """A worker that does for each clip what `act(job, nth call)` says: seconds, or an exception."""

    def __init__(self, name, act):
        self.name, self._act, self.made, self.calls = name, act, [], 0
        self.stopped = threading.Event()

    def make(self, job, folder):
        self.calls += 1
        outcome = self._act(job, self.calls)
        if isinstance(outcome, Exception):
            raise outcome
        if self.stopped.wait(outcome):
            raise Cancelled("Cancelled.")
        self.made.append(job.index)
        return Made(files=[], seconds=outcome)

    def stop(self):
        self.stopped.set()


class Told:
    """An observer that remembers."""

    def __init__(self):
        self.made_jobs, self.failures, self.tries, self.losses, self.seconds = [], {}, {}, [], []

    def began(self, job, worker):
        pass

    def made(self, job, worker, made, tries):
        self.made_jobs.append(job.index)
        self.tries[job.index] = tries

    def failed(self, job, worker, error, tries, *, is_last):
        if is_last:
            self.failures[job.index] = str(error)

    def lost(self, worker, reason, job):
        self.losses.append((worker, job.index if job else None))

    def left(self, seconds):
        self.seconds.append(seconds)


def jobs(count):
    return [Job(index=i + 1, prompt=f"p{i}", seed=i, key=f"{i:064x}", values=()) for i in range(count)]


def run(count, *workers, told=None, retries=2, source=None, **more):
    told = told or Told()
    options = {"rest": 0.05, "patience": 0.5, **more}
    make = lambda worker, job: worker.make(job, None)  # noqa: E731
    queue = ClipQueue(jobs(count), source or Fixed(list(workers)), told, make, retries=retries, **options)
    return told, queue


def lost(*, had_clip=True):
    return WorkerLostError("it went away", had_clip=had_clip)


def test_a_fast_worker_makes_more_of_them_and_each_once():
    fast, slow = Scripted("fast", lambda *_: 0.01), Scripted("slow", lambda *_: 0.15)
    told, queue = run(12, fast, slow)
    queue.run()
    assert sorted(told.made_jobs) == list(range(1, 13))
    assert len(fast.made) > 2 * len(slow.made) > 0


def test_the_clip_of_a_lost_worker_goes_to_another_one():
    dies = Scripted("dies", lambda job, call: lost() if call == 2 else 0.02)
    told, queue = run(6, dies, Scripted("lives", lambda *_: 0.02), rest=60)
    queue.run()
    assert sorted(told.made_jobs) == [1, 2, 3, 4, 5, 6] and not told.failures
    ((name, index),) = told.losses
    assert name == "dies" and told.tries[index] == 2


def test_a_lost_worker_is_asked_again():
    comes_back = Scripted("back", lambda job, call: lost() if call in (2, 3) else 0.01)
    told, queue = run(4, comes_back)
    queue.run()
    assert sorted(told.made_jobs) == [1, 2, 3, 4]


def test_a_clip_that_ends_every_worker_is_given_up_and_the_others_are_made():
    def act(job, call):
        return lost() if job.index == 2 else 0.01

    told, queue = run(5, Scripted("a", act), Scripted("b", act))
    queue.run()
    assert sorted(told.made_jobs) == [1, 3, 4, 5] and list(told.failures) == [2]


def test_a_worker_that_cannot_be_reached_costs_no_clip_a_try():
    away = Scripted("away", lambda *_: lost(had_clip=False))
    told, queue = run(8, away, Scripted("here", lambda *_: 0.03), rest=0.01)
    queue.run()
    assert sorted(told.made_jobs) == list(range(1, 9)) and set(told.tries.values()) == {1}
    assert away.calls > 3


def test_what_fails_on_one_card_is_tried_on_each_other_once():
    small = Scripted("small", lambda job, _: RunError("out of memory") if job.index in (2, 4) else 0.01)
    large = Scripted("large", lambda job, _: RunError("out of memory") if job.index == 4 else 0.05)
    told, queue = run(5, small, large)
    queue.run()
    assert sorted(told.made_jobs) == [1, 2, 3, 5] and 2 in large.made
    assert told.failures == {4: "out of memory"}


def test_one_worker_does_not_try_again_what_failed():
    told, queue = run(3, Scripted("only", lambda job, _: RunError("bad") if job.index == 1 else 0.0))
    queue.run()
    assert told.made_jobs == [2, 3] and told.failures == {1: "bad"}


@pytest.mark.parametrize("error", [WorkflowError("no such node"), Cancelled("someone pressed Cancel")])
def test_a_worker_that_takes_no_clip_leaves_them_to_the_others_and_the_last_one_ends_the_list(error):
    refuses = Scripted("refuses", lambda *_: error)
    told, queue = run(4, refuses, Scripted("takes", lambda *_: 0.01))
    queue.run()
    assert sorted(told.made_jobs) == [1, 2, 3, 4] and refuses.calls == 1
    told, queue = run(4, Scripted("refuses", lambda *_: error), Scripted("too", lambda *_: error))
    with pytest.raises(type(error), match=str(error)):
        queue.run()
    assert told.made_jobs == [] and len(told.failures) == 1


def test_workers_that_never_answered_are_not_waited_for():
    _, queue = run(3, Scripted("a", lambda *_: lost(had_clip=False)), patience=60, rest=60)
    start = time.monotonic()
    with pytest.raises(ServerError, match="it went away"):
        queue.run()
    assert time.monotonic() - start < 10


def test_workers_that_went_away_are_waited_for_so_long():
    told, queue = run(3, Scripted("a", lambda job, call: 0.01 if call == 1 else lost(had_clip=False)), retries=99)
    start = time.monotonic()
    with pytest.raises(ServerError, match="it went away"):
        queue.run()
    assert time.monotonic() - start >= 0.5 and told.made_jobs == [1]


def test_workers_may_come_later():
    late = Scripted("late", lambda *_: 0.01)

    class Source:
        start = time.monotonic()

        def find(self):
            is_time = self.start is not None and time.monotonic() - self.start > 0.5
            if is_time:
                self.start = None
            return [late] if is_time else []

    told, queue = run(3, source=Source())
    queue.run()
    assert told.made_jobs == [1, 2, 3]


def test_ctrl_c_cancels_what_runs_and_keeps_what_is_made():
    class Interrupts(Told):
        def made(self, job, worker, made, tries):
            super().made(job, worker, made, tries)
            raise KeyboardInterrupt

    slow = Scripted("slow", lambda *_: 30)
    told, queue = run(3, Scripted("fast", lambda *_: 0.01), slow, told=Interrupts())
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        queue.run()
    assert time.monotonic() - start < 10
    assert len(told.made_jobs) == 1 and list(told.failures.values()) == ["Cancelled."]


@pytest.mark.parametrize(
    ("num_waiting", "workers", "expected"),
    [
        (0, [], 0),
        (0, [(3, 5), (4, 1)], 4),
        (4, [(0, 5)], 20),
        (4, [(0, 5), (0, 5)], 10),
        (3, [(0, 2), (0, 6)], 6),
        (1, [(9, 1), (0, 8)], 9),
    ],
)
def test_time_left(num_waiting, workers, expected):
    assert seconds_left(num_waiting, workers) == expected


def test_a_slow_worker_leaves_the_last_clip_to_a_fast_one():
    assert is_better_left(1, 60, [(10, 20)])
    assert not is_better_left(3, 60, [(10, 20)])
    assert not is_better_left(1, 60, [])


@pytest.fixture
def servers(tmp_path, capsys):
    """servers(count) -> (their list, call(text, *arguments) -> (code, results, files, stderr))."""
    workflow, prompts = tmp_path / "api.json", tmp_path / "prompts.txt"
    nodes = {**fake_comfy.PROMPT, "3": {"class_type": "Say", "inputs": {"text": ""}}}
    workflow.write_text(json.dumps(nodes), encoding="utf-8")
    names = ("--prompt-input", "Say.text", "--seed-input", "Make.seed", "--workflow", str(workflow))
    with ExitStack() as stack:

        def start(count):
            found = [stack.enter_context(fake_comfy.running()) for _ in range(count)]

            def call(text, *arguments):
                prompts.write_text(text, encoding="utf-8")
                where = [word for each in found for word in ("--server", each.url)]
                capsys.readouterr()
                words = [str(prompts), *where, *names, "--output-dir", str(tmp_path / "out"), *arguments]
                code = prompts_cli.main(words)
                lines = prompts.with_suffix(".results.jsonl").read_text(encoding="utf-8").splitlines()
                files = sorted((tmp_path / "out").iterdir()) if (tmp_path / "out").is_dir() else []
                return code, [json.loads(line) for line in lines], files, capsys.readouterr().err

            return found, call

        yield start


FOUR = "a fox\na boat\na kite\na lamp\n"


def test_servers_share_a_list(servers, tmp_path):
    (one, two), call = servers(2)
    code, results, files, error = call(FOUR, "--report", str(tmp_path / "report.json"))
    assert code == 0, error
    assert sorted(line["seed"] for line in results) == [0, 1, 2, 3]
    assert [file.name.partition("_")[0] for file in files] == ["00001", "00002", "00003", "00004"]
    assert {line["worker"] for line in results} == {one.url, two.url}
    assert sorted(one.texts + two.texts) == ["a boat", "a fox", "a kite", "a lamp"]
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["made"] == 4 and sum(each["clips"] for each in report["workers"].values()) == 4
    # Again: nothing is left to do, on no server.
    assert call(FOUR)[0] == 0 and len(one.texts + two.texts) == 4


def test_a_report_that_cannot_be_written_is_a_sentence_and_its_folder_is_made(servers, tmp_path):
    _, call = servers(1)
    (tmp_path / "prompts.results.jsonl").write_bytes(b"")
    code, results, _, error = call("a fox\n", "--report", str(tmp_path))
    assert (code, results) == (3, [])
    assert f"run_prompts: Choose another place for --report: {tmp_path} is a folder." in error
    code, *_ = call("a fox\n", "--report", str(tmp_path / "new" / "report.json"))
    assert code == 0 and json.loads((tmp_path / "new" / "report.json").read_text(encoding="utf-8"))["clips"] == 1


def test_the_clips_of_a_server_that_dies_are_made_by_the_others(servers):
    (one, two), call = servers(2)
    one.dies_at = 1
    code, results, files, error = call(FOUR)
    assert code == 0, error
    assert [line["status"] for line in results] == ["ok"] * 4 and len(files) == 4
    assert {line["worker"] for line in results} == {two.url}
    assert f"{one.url} is left out for now" in error and "goes to another worker" in error


def test_a_server_that_is_not_there_is_named_and_the_list_is_made(servers):
    _, call = servers(1)
    code, results, files, error = call(FOUR, "--server", "http://127.0.0.1:9")
    assert (code, len(files), len(results)) == (0, 4, 4)
    assert "http://127.0.0.1:9 is left out for now: Cannot reach ComfyUI" in error


def test_no_server_that_answers_ends_the_list(servers):
    _, call = servers(0)
    code, results, files, _ = call(FOUR, "--server", "http://127.0.0.1:9", "--server", "127.0.0.1:10")
    assert code == 4 and files == [] and [line["status"] for line in results] == ["failed"]


def test_an_address_that_is_none_is_said(servers):
    _, call = servers(1)
    code, results, _, error = call("a fox\n", "--server", "ftp://x")
    assert (code, results) == (2, []) and "Give --server an address" in error
