"""Folders for temporary files: they go with their process, however it ends, and nobody else's do."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from lightx2v_pack.engine.temporary import make_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks on Windows")
ROOT = Path(__file__).resolve().parents[2]
# Makes a folder, hands its file to a child where that is asked for, and waits.
OWNER = """
import runpy, subprocess, sys
runpy.run_path(sys.argv[1])
from lightx2v_pack.engine.temporary import make_folder
folder, file = make_folder("of-a-test-")
if sys.argv[2] == "child":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=file)
    print(child.pid, flush=True)
else:
    print(0, flush=True)
input()
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def owner(place, monkeypatch):
    """owner("child" or "alone") -> a process that has a folder."""
    started, children = [], []
    monkeypatch.setenv("TMPDIR", str(place))

    def start(kind):
        command = [sys.executable, "-c", OWNER, str(ROOT / "tools" / "register_pack.py"), kind]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        children.append(int(process.stdout.readline()))
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    for child in filter(None, children):
        os.kill(child, signal.SIGKILL)


def names(place):
    return {folder.name for folder in place.iterdir()}


def test_what_a_killed_process_left_goes_with_the_next_one(place, owner):
    lives, dies = owner("alone"), owner("alone")
    before = names(place)
    assert len(before) == 2
    dies.kill()
    dies.wait()
    folder, file = make_folder("of-a-test-")
    left = names(place)
    assert len(left) == 2 and folder.name in left and left & before
    lives.kill()
    lives.wait()
    file.close()
    make_folder("of-a-test-")
    assert not names(place) & (left | before)


def test_a_child_that_has_the_file_keeps_the_folder(place, owner):
    process = owner("child")
    before = names(place)
    process.kill()
    process.wait()
    make_folder("of-a-test-")
    assert before < names(place)


def test_what_is_somebody_else_s_stays(place):
    for name in ("of-a-test-empty", "of-another-test-1"):
        (place / name).mkdir()
    (place / "of-another-test-1" / "lock").write_bytes(b"")
    (place / "elsewhere").mkdir()
    (place / "elsewhere" / "lock").write_bytes(b"")
    (place / "of-a-test-link").symlink_to(place / "elsewhere")
    make_folder("of-a-test-")
    assert (place / "elsewhere" / "lock").exists()
    assert {"of-a-test-empty", "of-another-test-1", "of-a-test-link"} < names(place)
