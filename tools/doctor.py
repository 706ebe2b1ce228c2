"""Show what this machine has and lacks for the pack: python tools/doctor.py [--models-dir DIR] [--json]."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.argv.insert(1, "doctor")
    runpy.run_path(str(Path(__file__).parent), run_name="__main__")
