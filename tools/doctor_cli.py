"""The command line of tools/doctor.py."""

from __future__ import annotations

import json
from pathlib import Path

from ..engine.backends import remembered
from ..engine.checkpoints.files import list_checkpoints
from ..engine.errors import LightX2VError
from ..engine.panel import doctor
from ..engine.panel.verify import verify
from ..engine.quantities import format_bytes
from ..engine.sentences.tools import Command
from . import console
from .arguments import Parser, filled

_PACK_ROOT = Path(__file__).parent.parent


def main(arguments: list[str] | None = None) -> int:
    """Print the findings; returns 1 when something is missing."""
    parser = Parser(prog="doctor.py", description="Show what this machine has and lacks for the LightX2V nodes.")
    parser.add_argument(
        "--models-dir",
        type=Path,
        # custom_nodes/<pack>/ in a ComfyUI.
        default=_PACK_ROOT.parent.parent / "models",
        help="ComfyUI's models folder (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--check",
        type=filled,
        metavar="NAME",
        help="read every byte of a checkpoint (its name in models/lightx2v, or a path) and compare it with what is "
        "published; takes as long as reading the files",
    )
    parser.add_argument("--endpoint", metavar="URL", help="a mirror of the hub for --check (default: HF_ENDPOINT)")
    options = parser.parse_args(arguments)
    if not options.models_dir.is_dir():
        console.complain(Command.NO_MODELS_FOLDER(models_dir=options.models_dir), by="doctor")
    remembered.keep_in(options.models_dir.parent / "user" / remembered.FILE)
    root = options.models_dir / "lightx2v"
    if options.check:
        return _check(_named(options.check, root), options.endpoint, as_json=options.json)
    found = {name: root / name for name in list_checkpoints(root)}
    items = doctor.examine(found, options.models_dir, measures_links=True)
    console.say(
        json.dumps(doctor.as_json(items), indent=2) if options.json else doctor.as_text(items, console.language())
    )
    return int(any(item.state == doctor.MISSING for item in items))


def _named(name: str, root: Path) -> Path:
    """Return where a checkpoint is: one of the models of this name, else what is at this path."""
    path = Path(name)
    return path if not (root / name).exists() and path.exists() else root / name


def _check(path: Path, endpoint: str | None, *, as_json: bool) -> int:
    """Look at a checkpoint in full; returns 1 where something is wrong with it, 2 where it is none."""
    shown = -1

    def show(done: int, total: int, what: str) -> None:
        nonlocal shown
        tenth = 10 * done // max(total, 1)
        if tenth > shown:
            shown = tenth
            console.complain(Command.CHECKED(percent=10 * tenth, total=format_bytes(total), what=what))

    try:
        items = verify(path, on_progress=show, endpoint=endpoint)
    except LightX2VError as error:
        console.complain(str(error), by="doctor")
        return 2
    _show(items, as_json=as_json)
    return int(any(item.state == doctor.MISSING for item in items))


def _show(items: list[doctor.Item], *, as_json: bool) -> None:
    """Print findings; JSON, which programs read, is in English."""
    console.say(json.dumps(doctor.as_json(items), indent=2) if as_json else doctor.as_text(items, console.language()))
