"""Fetch the published checkpoints: python tools/download.py list | get NAME (--help lists all)."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.argv.insert(1, "download")
    runpy.run_path(str(Path(__file__).parent), run_name="__main__")
