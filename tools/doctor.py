"""Show what this machine has and lacks for the pack: python tools/doctor.py [--models-dir DIR] [--json]."""

import argparse
import json
import sys
import types
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent


def main() -> int:
    """Print the findings; returns 1 when something is missing."""
    from lightx2v_pack.engine.checkpoints.files import list_checkpoint_folders
    from lightx2v_pack.engine.panel import doctor

    parser = argparse.ArgumentParser(description="Show what this machine has and lacks for the LightX2V nodes.")
    parser.add_argument(
        "--models-dir",
        type=Path,
        # custom_nodes/<pack>/ in a ComfyUI.
        default=PACK.parent.parent / "models",
        help="ComfyUI's models folder (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    root = options.models_dir / "lightx2v"
    items = doctor.examine({name: root / name for name in list_checkpoint_folders(root)}, options.models_dir)
    print(json.dumps(doctor.as_json(items), indent=2) if options.json else doctor.as_text(items))
    return int(any(item.state == doctor.MISSING for item in items))


if __name__ == "__main__":
    pack = types.ModuleType("lightx2v_pack")
    pack.__path__ = [str(PACK)]
    sys.modules["lightx2v_pack"] = pack
    sys.exit(main())
