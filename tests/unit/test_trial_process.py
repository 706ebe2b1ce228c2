"""First trials in a process of their own: what ends it is not used, here and in later processes.

The children are real; what they try are packages that a test makes.
"""

import json
import logging
import os
import sys

import pytest
import torch
from lightx2v_pack.engine.backends import remembered, trial_process, trials
from lightx2v_pack.engine.backends.choose import Wanted
from lightx2v_pack.engine.backends.table import Machine
from lightx2v_pack.engine.backends.trial_process import Named
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.kernels import attention
from support.cancel import CancelAfter, Cancelled
from support.fake_packages import write_package
from support.pretended_machine import pretend_machine

CPU = torch.device("cpu")
MACHINE = Machine(
    capability=(8, 0), torch="2.13.0", packages={"sageattention": "2.2.0", "flash_attn": "2.7.0"}, system="linux"
)
WANTED = Wanted(precision="bf16", dim=256, ffn_dim=512)
RIGHT = "sageattn = sageattn_qk_int8_pv_fp16_triton = flash_attn_func = attend"


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """A card with two attention packages, of which nothing was ever tried; the file of notes."""
    pretend_machine(monkeypatch, MACHINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "user" / "kernels.jsonl"
    remembered.keep_in(path)
    trials.forget_trials()
    yield path
    trials.forget_trials()
    for name in MACHINE.packages:
        sys.modules.pop(name, None)


@pytest.fixture
def packages(tmp_path):
    def write(**bodies):
        for name in MACHINE.packages:
            write_package(tmp_path, name, os.getpid(), bodies.get(name, RIGHT))

    return write


def forget_process(path):
    """As if the program had been started anew."""
    trials.forget_trials()
    remembered.keep_in(None)
    remembered.keep_in(path)


def no_child(*given):
    pytest.fail("a child process was started")


@pytest.mark.slow
def test_what_ends_or_holds_up_its_process_is_never_tried_here(kept, packages, monkeypatch, caplog):
    packages(
        sageattention="""
            def sageattn(q, k, v, **options):
                assert IS_APART, "this would have ended ComfyUI"
                print("LLVM ERROR: Cannot select: intrinsic", file=sys.stderr, flush=True)
                os.abort()

            def sageattn_qk_int8_pv_fp16_triton(q, k, v, **options):
                if IS_APART:
                    print('{"trying": 1}')
                    os.write(1, b"\\x00\\xff garbage \\n" * 5000)
                return attend(q, k, v)
        """,
        flash_attn="""
            def flash_attn_func(q, k, v):
                assert IS_APART, "this would have held up ComfyUI"
                time.sleep(1000)
        """,
    )
    monkeypatch.setattr(trial_process, "SILENCE_SECONDS", 5.0)
    told = []
    with caplog.at_level(logging.INFO):
        hooks = Hooks(on_progress=lambda *given: told.append(given))
        assert trials.confirm(WANTED, CPU, hooks=hooks).attention.name == "sage_triton"
    assert told == [(done, 3, "trying kernels") for done in range(4)]
    assert "sage_attn2 ended the process of its trial run and is not used: SIGABRT: LLVM ERROR" in caplog.text
    failed = {row.name: reason for (_, row), reason in trials.find_machine(CPU).failed_trials.items()}
    assert "SIGABRT: LLVM ERROR" in failed["sage_attn2"]
    assert "did not come back within 5 s" in failed["flash_attn2"]
    assert failed.keys() == {"sage_attn2", "flash_attn2"}

    # The next process knows all that.
    monkeypatch.setattr(trial_process, "run_apart", no_child)
    forget_process(kept)
    choice = trials.confirm(WANTED, CPU).attention
    assert choice.name == "sage_triton" and "SIGABRT" in choice.passed_over["sage_attn2"]


def test_a_new_version_is_tried_anew(kept, packages, monkeypatch):
    packages()
    asked = []

    def run_apart(named, device, hooks):
        asked.append([str(each) for each in named])
        yield from ((each, "") for each in named)

    monkeypatch.setattr(trial_process, "run_apart", run_apart)
    for _ in range(2):
        trials.confirm(WANTED, CPU)
        forget_process(kept)
    expected = [f"attention: {name}" for name in ("sage_attn2", "sage_triton", "flash_attn2")]
    assert asked == [expected]
    newer = Machine(
        capability=(8, 0), torch="2.13.0", packages={"sageattention": "2.3.0", "flash_attn": "2.7.0"}, system="linux"
    )
    pretend_machine(monkeypatch, newer)
    trials.confirm(WANTED, CPU)
    assert asked == [expected, expected]


def test_a_cancel_ends_the_child_and_nothing_is_noted(kept, packages, monkeypatch):
    packages()
    started = []
    start = trial_process._start
    monkeypatch.setattr(trial_process, "_start", lambda errors: started.append(start(errors)) or started[-1])
    with pytest.raises(Cancelled):
        trials.confirm(WANTED, CPU, hooks=Hooks(check_interrupt=CancelAfter(3)))
    assert started[0].returncode is not None
    assert not kept.exists()


def test_a_child_ends_with_the_process_that_waits_for_it():
    child = trial_process._Child([Named(task="attention", kernel="sdpa")], "cpu")
    try:
        child._process.stdin.close()
        assert child._process.wait(60) == 1
    finally:
        child.__exit__()


def frozen(monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)


def named_otherwise(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/opt/editor/editor")


def refused(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python3")


def broken(monkeypatch):
    monkeypatch.setattr(trial_process, "_PROGRAM", "print('garbage'); raise SystemExit('no torch: Error 7')")


@pytest.mark.parametrize("spoil", [frozen, named_otherwise, refused, broken])
def test_where_there_is_no_child_kernels_are_tried_here(kept, packages, monkeypatch, caplog, spoil):
    packages()
    spoil(monkeypatch)
    assert trials.confirm(WANTED, CPU).attention.name == "sage_attn2"
    assert "kernels are tried in this process, as another cannot be had" in caplog.text
    assert not kept.exists()


def test_without_a_place_for_notes_kernels_are_tried_here(kept, packages, monkeypatch):
    packages()
    remembered.keep_in(None)
    monkeypatch.setattr(trial_process, "run_apart", no_child)
    assert trials.confirm(WANTED, CPU).attention.name == "sage_attn2"


def test_on_a_cpu_nothing_is_tried_elsewhere(kept, monkeypatch):
    pretend_machine(monkeypatch, Machine())
    monkeypatch.setattr(trial_process, "run_apart", no_child)
    assert trials.confirm(WANTED, CPU).attention.name == "sdpa"


def test_a_full_card_is_no_outcome(monkeypatch):
    def fill(q, k, v):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setitem(attention.KERNELS, "sage_attn2", fill)
    assert not trials.survives(Named(task="attention", kernel="sage_attn2"), CPU)
    monkeypatch.setitem(attention.KERNELS, "sage_attn2", attention.sdpa)
    assert trials.survives(Named(task="attention", kernel="sage_attn2"), CPU)


# The file


def test_the_first_note_counts_and_damage_is_left_out(tmp_path, caplog):
    path = tmp_path / "kernels.jsonl"
    one, two = remembered.Notes(path), remembered.Notes(path)
    one.add_times("card", "a problem", {"sdpa": 0.25, "triton": 0.125})
    two.add_times("card", "a problem", {"sdpa": 0.5})
    two.add_trial("card", "attention: triton", "SIGABRT")
    with path.open("ab") as file:
        file.write(b'\xff\x00{]\n[1]\n{"on": "card", "trial": 7, "died": ""}\n' + b"[" * 100_000 + b'\n{"on": "car')
    one.add_trial("card", "attention: other", "")
    one.add_trial("card of others", "attention: triton", "")
    for notes in (one, two, remembered.Notes(path)):
        found = notes.about("card")
        assert found.measured == {"a problem": {"sdpa": 0.25, "triton": 0.125}}
        assert found.trials == {"attention: triton": "SIGABRT", "attention: other": ""}
    assert "5 damaged lines" in caplog.text
    assert all(json.loads(line) for line in path.read_text(errors="replace").splitlines() if '"card"' in line)
    one.forget()
    assert two.about("card") == remembered.Findings()


@pytest.mark.parametrize("seconds", [{"sdpa": 0.0}, {"sdpa": float("nan")}, {"sdpa": "fast"}, [0.5], {"sdpa": True}])
def test_times_that_cannot_be_are_left_out(tmp_path, seconds):
    path = tmp_path / "kernels.jsonl"
    path.write_text(json.dumps({"on": "card", "problem": "one", "seconds": seconds}))
    assert remembered.Notes(path).about("card") == remembered.Findings()


def test_notes_that_cannot_be_written_hold_for_the_process(tmp_path, caplog):
    """A folder that cannot be made, whoever runs this: a file is in its place."""
    (tmp_path / "user").write_text("")
    notes = remembered.Notes(tmp_path / "user" / "kernels.jsonl")
    for name in ("triton", "sdpa"):
        notes.add_trial("card", name, "")
    assert notes.about("card").trials == {"triton": "", "sdpa": ""}
    assert caplog.text.count("cannot be kept") == 1


def test_processes_that_add_at_once_lose_nothing(tmp_path):
    import multiprocessing

    path = tmp_path / "kernels.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add_many, args=(path, index)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(remembered.Notes(path).about("card").trials) == 200


def add_many(path, index):
    notes = remembered.Notes(path)
    for number in range(50):
        notes.add_trial("card", f"{index}.{number} {'x' * 300}", "")
