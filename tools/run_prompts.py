"""Make a video for every line of a file: python tools/run_prompts.py PROMPTS.txt --server URL (--help lists all)."""

import sys
import types
from pathlib import Path

if __name__ == "__main__":
    # The repository root is the pack; under a name of its own its relative imports work.
    pack = types.ModuleType("lightx2v_pack")
    pack.__path__ = [str(Path(__file__).resolve().parent.parent)]
    sys.modules["lightx2v_pack"] = pack
    from lightx2v_pack.tools.prompts_cli import main

    sys.exit(main())
