"""python tools cards run|compile|tables: the pack on cards that are not here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "run": ("as_card", "run a program on this card as if it were another one"),
    "compile": ("compile", "compile every Triton kernel for every card, without a GPU"),
    "tables": ("tables", "write the tables of docs/models.md and docs/cards.md"),
}


def main(arguments: Sequence[str]) -> int:
    """Run the named command; returns its exit code."""
    name, *others = arguments or ["--help"]
    if name in COMMANDS:
        module = importlib.import_module(f".{COMMANDS[name][0]}", __package__)
        return int(module.main(others))
    lines = [
        "usage: python tools cards COMMAND ...\n",
        *(f"  {name:<8} {what}" for name, (_, what) in COMMANDS.items()),
    ]
    is_help = name in ("-h", "--help")
    print("\n".join(lines), file=sys.stdout if is_help else sys.stderr)
    return 0 if is_help else 2
