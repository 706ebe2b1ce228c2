"""The scripts of tools/, run as a shell does."""

import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def run_script(name, *arguments, environment=None):
    """Run tools/<name> with words as its arguments and return the finished process, its output as text.

    Args: environment: its variables; those of this process if None.
    """
    command = [sys.executable, str(TOOLS / name), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
