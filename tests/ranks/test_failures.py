"""What goes wrong with several ranks: one sentence, nothing left behind, and the next run works."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import torch
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.errors import CheckpointError, RankError, UnsupportedHardwareError
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.parallel import exchange, worker
from lightx2v_pack.engine.parallel import group as groups
from lightx2v_pack.engine.parallel.transformer import GroupTransformer
from lightx2v_pack.tools import make_tiny_checkpoint as tiny
from support import checkpoints
from support.cancel import After, CancelledError, press_cancel
from support.tensors import normal
from test_ranks import SHAPES, SIZES, TIMESTEP, inputs, of_one, transformer_of

# A pass of it takes long enough to be stopped in the middle.
DEEP = tiny.TinySizes(dim=512, ffn_dim=768, num_layers=60)
ROOT = Path(__file__).resolve().parents[2]


def predict(transformer, hooks=None):
    latents, conditioning = inputs(SHAPES[0])
    return transformer.predict_flow(latents, TIMESTEP, conditioning, hooks or Hooks())


def start(group):
    """Return a loaded transformer of a group, and the ids of its processes."""
    transformer = transformer_of("fp8", group.members)
    transformer.load(Hooks())
    return transformer, transformer._group.process_ids


def are_gone(ids, seconds=10):
    until = time.monotonic() + seconds
    while any(map(psutil.pid_exists, ids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(psutil.pid_exists, ids))


@pytest.mark.parametrize("count", [2, 3])
def test_cancel_stops_all_ranks_before_the_same_block_and_the_next_pass_is_right(group, count):
    running = group(count)
    transformer = transformer_of("fp8", running.members, DEEP)
    transformer.load(Hooks())
    ids = running.process_ids
    expected, _ = of_one("fp8", SHAPES[0], DEEP)
    for calls in (2, 3, 5):
        with pytest.raises(CancelledError):
            predict(transformer, Hooks(check_interrupt=After(calls, press_cancel)))
        assert torch.equal(predict(transformer), expected)
    blocks = set(running.stopped_before.values())
    assert len(running.stopped_before) == count and len(blocks) == 1
    assert 0 < blocks.pop() < DEEP.num_layers
    assert running.process_ids == ids
    transformer.unload()


def test_cancel_while_weights_load_leaves_the_ranks_ready(group):
    running = group(2)
    transformer = transformer_of("fp8", running.members)
    with pytest.raises(CancelledError):
        transformer.load(Hooks(check_interrupt=press_cancel))
    assert running.is_alive()
    transformer.load(Hooks())
    assert torch.equal(predict(transformer), of_one("fp8", SHAPES[0])[0])
    transformer.unload()


@pytest.mark.parametrize(
    ("which", "number", "words"),
    [(1, signal.SIGKILL, "rank 1 has ended (SIGKILL)"), (0, signal.SIGSEGV, "rank 0 has ended (SIGSEGV)")],
)
def test_a_rank_that_is_killed_is_named_and_nothing_is_left(members, which, number, words):
    transformer, ids = start(groups.group_of(members(2), Hooks()))
    kill = After(2, lambda: os.kill(ids[1 + which], number))
    begun = time.monotonic()
    with pytest.raises(RankError) as caught:
        for _ in range(50):
            predict(transformer, Hooks(check_interrupt=kill))
    assert time.monotonic() - begun < 30
    assert f"Sampling stopped: the process of {words}. The others were stopped" in str(caught.value)
    assert are_gone(ids)
    # The next run starts them again.
    transformer.load(Hooks())
    assert torch.equal(predict(transformer), of_one("fp8", SHAPES[0])[0])
    transformer.unload()


def test_a_supervisor_that_is_killed_takes_its_ranks_along(members):
    transformer, ids = start(groups.group_of(members(2), Hooks()))
    os.kill(ids[0], signal.SIGKILL)
    with pytest.raises(RankError):
        for _ in range(50):
            predict(transformer)
    assert are_gone(ids)


def test_a_full_memory_on_one_rank_is_named_and_ends_the_others(members):
    transformer, ids = start(groups.group_of(members(2), Hooks()))
    predict(transformer)
    rank = psutil.Process(ids[2])
    rank.rlimit(psutil.RLIMIT_AS, (rank.memory_info().vms, rank.memory_info().vms))
    latents, conditioning = normal(16, 9, 64, 64, seed=1), inputs(SHAPES[0])[1]
    with pytest.raises(RankError, match=r"rank 1 (failed with|has ended)"):
        transformer.predict_flow(latents, TIMESTEP, conditioning, Hooks())
    assert are_gone(ids)


def test_a_full_card_is_a_lack_of_memory_here_too():
    facts = worker._facts(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore."))
    assert (facts["kind"], facts["text"]) == ("memory", "CUDA out of memory. Tried to allocate 2 GiB.")


@pytest.mark.parametrize("in_a_pass", [True, False])
def test_a_link_that_is_lost_ends_in_a_sentence(members, in_a_pass):
    """A rank that is stopped is like one whose link is lost: it does not answer, and has not ended."""
    transformer, ids = start(groups.group_of(members(2, patience=3.0), Hooks()))
    stop = After(2 if in_a_pass else 1, lambda: os.kill(ids[2], signal.SIGSTOP))
    begun = time.monotonic()
    with pytest.raises(RankError, match=r"Sampling stopped: rank [01] (failed with|has not answered)") as caught:
        for _ in range(50):
            predict(transformer, Hooks(check_interrupt=stop))
    assert time.monotonic() - begun < 40
    assert "set gpus of LightX2V GPUs to 1" in str(caught.value)
    assert are_gone(ids)


def test_a_file_that_is_gone_is_refused_and_the_ranks_go_on(group, tmp_path):
    running = group(2)
    file = Path(shutil.copy(checkpoints.single_file("fp8", sizes=SIZES), tmp_path))
    resident = [Placement(mode="none")] * running.size
    transformer = GroupTransformer(resolve_transformer(file), of_one("fp8", SHAPES[-1])[1], resident, running.members)
    file.unlink()
    with pytest.raises(CheckpointError, match=file.name):
        transformer.load(Hooks())
    assert running.is_alive()


def test_nothing_listens_outside_of_this_machine(group):
    for each in group(2).process_ids:
        for connection in psutil.Process(each).net_connections("inet"):
            assert connection.status != psutil.CONN_LISTEN or connection.laddr.ip in ("127.0.0.1", "::1")


class Parent:
    """A process of its own that has started two ranks, for temporary files in a folder of its own."""

    def __init__(self, folder):
        program = f"""
import runpy, sys
runpy.run_path({str(ROOT / "tools" / "register_pack.py")!r})
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.parallel.group import Members, WorkerGroup
group = WorkerGroup(Members(device="cpu", indices=(0, 1)), Hooks())
print(*group.process_ids, flush=True)
input()
"""
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(folder)},
        )  # fmt: skip
        self.ids = list(map(int, self._process.stdout.readline().split()))
        assert len(self.ids) == 3 and all(map(psutil.pid_exists, self.ids))

    def kill(self):
        self._process.kill()
        self._process.wait()


@pytest.fixture
def short_folder(monkeypatch):
    """A folder for temporary files; the name of a socket in it may not be long."""
    folder = Path(tempfile.mkdtemp(prefix="ranks-"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


def is_empty(folder, seconds=5):
    until = time.monotonic() + seconds
    while any(folder.iterdir()) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(folder.iterdir())


def test_ranks_end_with_the_process_that_has_started_them(short_folder):
    parent = Parent(short_folder)
    assert any(short_folder.iterdir())
    parent.kill()
    assert are_gone(parent.ids)
    assert is_empty(short_folder)


def test_what_killed_groups_leave_is_removed_by_the_next_one_and_nothing_else(short_folder, members):
    lives, dies = Parent(short_folder), Parent(short_folder)
    for each in dies.ids:
        os.kill(each, signal.SIGKILL)
    dies.kill()
    assert are_gone(dies.ids)
    assert len(list(short_folder.iterdir())) == 2
    (short_folder / "lightx2v-ranks-of-somebody").mkdir()
    group = groups.WorkerGroup(members(2), Hooks())
    left = set(short_folder.iterdir())
    assert len(left) == 3 and short_folder / "lightx2v-ranks-of-somebody" in left and group._folder in left
    assert all(map(psutil.pid_exists, lives.ids))
    group.close()
    lives.kill()
    assert are_gone(lives.ids)
    (short_folder / "lightx2v-ranks-of-somebody").rmdir()
    assert is_empty(short_folder)


def test_a_folder_with_too_long_a_name_is_a_sentence(tmp_path, members, monkeypatch):
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(RankError, match="or TMPDIR to a folder with a shorter name"):
        groups.WorkerGroup(members(2), Hooks())
    assert is_empty(folder)


def test_where_it_cannot_work_a_sentence_says_what_can(members, monkeypatch):
    with monkeypatch.context() as windows:
        windows.setattr(groups.sys, "platform", "win32")
        sentence = groups.find_problem(members(2))
        with pytest.raises(UnsupportedHardwareError):
            groups.WorkerGroup(members(2), Hooks())
    assert "WSL2" in sentence and "docs/several-gpus.md" in sentence
    with monkeypatch.context() as built_without:
        built_without.setattr(exchange, "is_available", lambda backend: False)
        assert "was built without it" in groups.find_problem(members(2))
    assert "to 8 or fewer" in groups.find_problem(members(9))
    assert groups.find_problem(members(2)) is None
