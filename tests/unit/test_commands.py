"""python tools COMMAND, and the files with names of their own that stand for a command."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*words):
    """Run Python without the script's folder on its path, as the one of ComfyUI's portable build does."""
    return subprocess.run([sys.executable, "-I", *words], capture_output=True, text=True, timeout=120, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "command", "option"),
    [
        ("generate.py", "generate", "--benchmark"),
        ("run_workflow.py", "workflow", "--report"),
        ("run_prompts.py", "prompts", "--results"),
        ("download.py", "download", "get"),
        ("doctor.py", "doctor", "--models-dir"),
    ],
)
def test_a_file_is_its_command(file, command, option):
    by_file, by_name = run(f"tools/{file}", "--help"), run("tools", command, "--help")

    assert by_file.returncode == by_name.returncode == 0, by_file.stderr + by_name.stderr
    assert by_file.stdout == by_name.stdout
    assert by_file.stdout.startswith(f"usage: {file} ") and option in by_file.stdout


def test_exit_codes_pass_through():
    assert run("tools/run_workflow.py", "no such file.json").returncode == 2


@pytest.mark.parametrize("file", ["generate.py", "run_workflow.py", "doctor.py"])
def test_ctrl_c_while_it_starts_cancels(file):
    """At the first module of the pack that it imports."""
    # A job in the background of a shell begins with Ctrl-C ignored.
    watched = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    watched += "sys.addaudithook(lambda name, given: name == 'import' and given[0] == "
    watched += "'lightx2v_pack.tools.console' and signal.raise_signal(signal.SIGINT)); import runpy; "
    watched += f"sys.argv = ['tools/{file}', 'x']; runpy.run_path('tools/{file}', run_name='__main__')"
    done = run("-c", watched)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Cancelled.\n")


def test_a_wrong_command_is_told_which_there_are():
    done = run("tools", "worklow")

    assert done.returncode == 2 and not done.stdout
    assert "there is no command 'worklow'" in done.stderr
    assert all(
        f"\n  {name} " in done.stderr for name in ("generate", "workflow", "prompts", "download", "doctor", "pictures")
    )


def test_without_a_command_it_lists_them():
    done = run("tools")

    assert done.returncode == 0 and "\n  workflow " in done.stdout
