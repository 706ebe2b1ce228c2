"""Train the tiny checkpoint: python demo/train --help."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts this folder first on the path, where its modules would hide others of their names.
    del sys.path[0]
    runpy.run_path(str(Path(__file__).resolve().parents[2] / "tools" / "register_pack.py"))
    from lightx2v_pack.demo.train.cli import main

    sys.exit(main())
