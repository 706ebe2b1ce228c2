"""Let tests import the pack as `lightx2v_pack.engine...` and `lightx2v_pack.nodes...`.

The repository root is the pack itself; it is registered under a name of its own so that its relative
imports work and ComfyUI's top-level `nodes` module stays free.
"""

import os
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Tiny models on few cores: one thread an operator is faster than waiting for the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pack = types.ModuleType("lightx2v_pack")
pack.__path__ = [str(ROOT)]
sys.modules["lightx2v_pack"] = pack
