"""Let tests import the pack as `lightx2v_pack.engine...` and `lightx2v_pack.nodes...`.

The repository root is the pack itself; it is registered under a name of its own so that its relative
imports work and ComfyUI's top-level `nodes` module stays free.
"""

import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

pack = types.ModuleType("lightx2v_pack")
pack.__path__ = [str(ROOT)]
sys.modules["lightx2v_pack"] = pack
