"""The few names inside the pack that a probe needs. Nodes, routes and foreign packages do for the rest.

A name is looked up wherever it is now: by its value, or in every module of the pack that has it.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from .record import Skip


def modules(pack: str) -> Iterator[ModuleType]:
    """Yield the modules of a pack that are imported."""
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{pack}.") and module is not None:
            yield module


def forget_answers(pack: str) -> None:
    """Clear every function cache of the pack, but what it knows of a path: files are the same on every machine."""
    for module in modules(pack):
        for value in list(vars(module).values()):
            clear = getattr(value, "cache_clear", None)
            if callable(clear) and "path" not in inspect.signature(value).parameters:
                clear()


def accept_few_blocks(pack: str) -> None:
    """Let a transformer of the published width have fewer blocks than the published one."""
    tables = [each for module in modules(pack) for each in vars(module).values() if _counts_blocks(each)]
    if not tables:
        raise LookupError("no table says that a transformer of width 5120 has 40 blocks; mend tools/net/reach.py")
    for table in tables:
        table.pop(5120, None)


def _counts_blocks(value: Any) -> bool:
    return isinstance(value, dict) and value.get(5120) == 40


def run_lightx2v_on_cpu(pack: str, root: Path) -> None:
    """Let the engine `lightx2v` compute on the CPU, by what this commit's own tests do for it.

    Raises:
        Skip: LightX2V or something it needs is not here.
    """
    folder = next(iter(root.joinpath("tests").rglob("lightx2v_cpu.py"))).parent
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    helper = importlib.import_module("lightx2v_cpu")
    try:
        helper.import_lightx2v()
    except BaseException as skipped:
        # pytest.skip's exception is no Exception.
        if type(skipped).__name__ != "Skipped":
            raise
        raise Skip(str(skipped)) from skipped
    found = [each for each in modules(pack) if hasattr(each, "choose_engine")]
    if not found:
        raise LookupError("no module of the pack has choose_engine; mend tools/net/reach.py")
    for module in found:
        choose = module.choose_engine
        module.choose_engine = lambda wanted, choose=choose: wanted if wanted == "lightx2v" else choose(wanted)
