"""Run a ComfyUI workflow file from the command line: python tools/run_workflow.py WORKFLOW.json (--help lists all)."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.argv.insert(1, "workflow")
    runpy.run_path(str(Path(__file__).parent), run_name="__main__")
