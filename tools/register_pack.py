"""Running or importing this file makes the repository root importable as `lightx2v_pack`.

The root is the pack itself. Under a name of its own its relative imports work, and ComfyUI's top-level `nodes` stays
free. Every program that is not started by ComfyUI begins with it: `runpy.run_path("tools/register_pack.py")`.

The pack keeps the place by which it was reached: of an installation that is a link in custom_nodes, ComfyUI is beside
the link and not beside what it leads to.
"""

import os
import sys
import types
from pathlib import Path


def as_reached(file: str) -> Path:
    """Return the absolute path of a file with the links by which it was reached.

    Python makes a relative path absolute by the working folder without its links; a shell has it with them in PWD.
    """
    path, here, shown = Path(os.path.abspath(file)), Path.cwd(), Path(os.environ.get("PWD", ""))
    while shown.is_absolute() and shown != here and _is_same(shown, here):
        if path.is_relative_to(here):
            path = shown / path.relative_to(here)
            break
        here, shown = here.parent, shown.parent
    # Behind a link .. leads elsewhere than its text says.
    return path if _is_same(path, Path(file)) else Path(file).resolve()


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


pack = types.ModuleType("lightx2v_pack")
pack.__path__ = [str(as_reached(__file__).parent.parent)]
sys.modules.setdefault(pack.__name__, pack)
