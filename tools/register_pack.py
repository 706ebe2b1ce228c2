"""Running or importing this file makes the repository root importable as `lightx2v_pack`.

The root is the pack itself. Under a name of its own its relative imports work, and ComfyUI's top-level `nodes` stays
free. Every program that is not started by ComfyUI begins with it: `runpy.run_path("tools/register_pack.py")`.
"""

import sys
import types
from pathlib import Path

pack = types.ModuleType("lightx2v_pack")
pack.__path__ = [str(Path(__file__).resolve().parent.parent)]
sys.modules.setdefault(pack.__name__, pack)
