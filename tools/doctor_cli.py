"""The command line of tools/doctor.py."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..engine.backends import remembered
from ..engine.checkpoints.files import list_checkpoint_folders
from ..engine.panel import doctor
from . import console

_PACK_ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str] | None = None) -> int:
    """Print the findings; returns 1 when something is missing."""
    parser = argparse.ArgumentParser(
        prog="doctor.py", description="Show what this machine has and lacks for the LightX2V nodes."
    )
    parser.add_argument(
        "--models-dir",
        type=Path,
        # custom_nodes/<pack>/ in a ComfyUI.
        default=_PACK_ROOT.parent.parent / "models",
        help="ComfyUI's models folder (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if not options.models_dir.is_dir():
        console.complain(f"doctor: Give --models-dir ComfyUI's models folder: {options.models_dir} is no folder.")
    remembered.keep_in(options.models_dir.parent / "user" / remembered.FILE)
    root = options.models_dir / "lightx2v"
    found = {name: root / name for name in list_checkpoint_folders(root)}
    items = doctor.examine(found, options.models_dir, measures_links=True)
    console.say(json.dumps(doctor.as_json(items), indent=2) if options.json else doctor.as_text(items))
    return int(any(item.state == doctor.MISSING for item in items))
