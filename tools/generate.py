"""Make a video without ComfyUI: python tools/generate.py "a red fox" --out fox.mp4 (--help lists all)."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.argv.insert(1, "generate")
    runpy.run_path(str(Path(__file__).parent), run_name="__main__")
