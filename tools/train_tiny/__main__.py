"""Train the tiny checkpoint: python tools/train_tiny --help."""

import sys
import types
from pathlib import Path

if __name__ == "__main__":
    # Python puts this folder first on the path, where its modules would hide others of their names.
    del sys.path[0]
    # The repository root is the pack; under a name of its own its relative imports work.
    pack = types.ModuleType("lightx2v_pack")
    pack.__path__ = [str(Path(__file__).resolve().parent.parent.parent)]
    sys.modules["lightx2v_pack"] = pack
    from lightx2v_pack.tools.train_tiny.cli import main

    sys.exit(main())
