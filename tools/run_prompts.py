"""Make a video for every line of a file: python tools/run_prompts.py PROMPTS.txt --server URL (--help lists all)."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.argv.insert(1, "prompts")
    runpy.run_path(str(Path(__file__).parent), run_name="__main__")
