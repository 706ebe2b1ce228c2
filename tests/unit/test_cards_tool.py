"""What `python tools cards run` pretends, as far as no card is needed."""

import subprocess
import sys
from pathlib import Path

import pytest
from lightx2v_pack.tools.cards.limits import LIMITS

ROOT = Path(__file__).resolve().parents[2]


def run(*words):
    return subprocess.run([sys.executable, "-I", "tools", "cards", *words], capture_output=True, text=True, cwd=ROOT)


def test_a_program_takes_as_large_a_part_of_the_shared_memory_as_there():
    there, here = LIMITS[89], LIMITS[90]
    for kib in (24, 32, 40, 48, 99):
        programs = there.multiprocessor_kib * 1024 // ((kib + 1) * 1024)
        taken = there.part_of(here, kib * 1024) + 1024
        assert here.multiprocessor_kib * 1024 // taken == programs
        assert taken - 1024 <= here.program_kib * 1024


def test_only_the_pack_finds_another_system():
    code = f"""
import runpy, sys
runpy.run_path({str(ROOT)!r} + "/tools/register_pack.py")
from lightx2v_pack.tools.cards.as_card import pretend_platform
pretend_platform("win32")
from lightx2v_pack.engine.backends import table
import subprocess
print(table.sys.platform, sys.platform, subprocess.sys.platform, table._TRITON_INSTALL)
print(table.sys.version == sys.version)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["win32", sys.platform, sys.platform, "pip", "install", "triton-windows", "True"]


@pytest.mark.parametrize("words", [("run",), ("run", "--arch", "89", "--")])
def test_nothing_to_run_is_said(words):
    done = run(*words)
    assert done.returncode == 2 and "there is nothing to run" in done.stderr


def test_a_card_that_is_not_known_is_refused():
    done = run("run", "--arch", "70", "--", "-m", "this")
    assert done.returncode == 2 and "70" in done.stderr


def test_a_wrong_command_is_told_which_there_are():
    done = run("complie")
    assert done.returncode == 2 and "compile" in done.stderr and "run" in done.stderr
