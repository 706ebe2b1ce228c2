"""The few names inside the pack that a probe needs. Nodes, routes and foreign packages do for the rest.

A name is looked for in every module of the pack, so that it may move; one that is gone is an error here, not a silence.
"""

from __future__ import annotations

import functools
import gc
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from .record import CannotRunError


def modules(pack: str) -> Iterator[ModuleType]:
    """Yield the modules of a pack that are imported."""
    yield from [module for name, module in sys.modules.items() if name.startswith(f"{pack}.") and module is not None]


def forget_answers(pack: str) -> None:
    """Clear every function cache of the pack, but what it knows of a path: files are the same on every machine."""
    for module in modules(pack):
        for value in list(vars(module).values()):
            clear = getattr(value, "cache_clear", None)
            if callable(clear) and "path" not in inspect.signature(value).parameters:
                clear()


def accept_few_blocks(pack: str) -> None:
    """Let a transformer of the published width have fewer blocks than the published one."""
    values = [value for module in modules(pack) for value in vars(module).values()]
    tables = [value for value in values if isinstance(value, dict) and value.get(5120) == 40]
    if not tables:
        raise LookupError("no table says that a transformer of width 5120 has 40 blocks; mend tools/net/reach.py")
    for table in tables:
        table.pop(5120, None)


def run_lightx2v_on_cpu(pack: str, root: Path) -> None:
    """Let the engine `lightx2v` compute on the CPU, by what the tests of this commit do for it.

    Raises:
        CannotRunError: LightX2V or something it needs is not here.
    """
    problem = _prepare_lightx2v(pack, root)
    if problem:
        raise CannotRunError(problem)


@functools.cache
def _prepare_lightx2v(pack: str, root: Path) -> str:
    folder = next(root.joinpath("tests").rglob("lightx2v_cpu.py")).parent
    sys.path.append(str(folder))
    import pytest

    try:
        importlib.import_module("lightx2v_cpu").import_lightx2v()
    except pytest.skip.Exception as reason:
        return str(reason)
    finally:
        sys.path.remove(str(folder))
    found = [module for module in modules(pack) if hasattr(module, "choose_engine")]
    if not found:
        raise LookupError("no module of the pack has choose_engine; mend tools/net/reach.py")
    for module in found:
        choose = module.choose_engine
        module.choose_engine = functools.partial(_choose_engine, choose)
    gc.freeze()
    return ""


def _choose_engine(choose: Callable[..., str], wanted: str, *where: object) -> str:
    return wanted if wanted == "lightx2v" else choose(wanted, *where)
