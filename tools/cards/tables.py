"""Write the tables of README.md, README.zh.md, docs/models.md and docs/cards.md that the tables of back ends decide.

    python tools cards tables

What stands between markers is replaced; a test guards that the pages are what the tables give. Only names of cards,
versions that belong together, and what was run where are written here.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ...engine.backends.choose import Wanted, choose
from ...engine.backends.table import Machine
from ...engine.backends.versions import TORCH_WITH_TRITON
from ...engine.checkpoints.published import ARCHITECTURE, PUBLISHED, Variant
from ...engine.panel.advice import rank_files
from ...engine.quantities import format_seconds
from ...engine.sentences import translated

ROOT = Path(__file__).resolve().parents[2]
# Page -> its language.
PAGES = {"README.md": "en", "README.zh.md": "zh", "docs/models.md": "en", "docs/cards.md": "en"}


class Family(NamedTuple):
    """Cards of a compute capability."""

    name: str
    capability: tuple[int, int]
    examples: tuple[str, ...]
    """As torch names them."""
    since: str = "2.6"
    """The first PyTorch with code for them."""


FAMILIES = (
    Family("A100", (8, 0), ("NVIDIA A100-SXM4-80GB",)),
    Family("RTX 30", (8, 6), tuple(f"NVIDIA GeForce RTX {name}" for name in ("3060", "3080", "3090"))),
    Family("RTX 40", (8, 9), tuple(f"NVIDIA GeForce RTX {name}" for name in ("4060", "4060 Ti", "4070", "4090"))),
    Family("H100, H200", (9, 0), ("NVIDIA H100 80GB HBM3", "NVIDIA H200")),
    Family("RTX 50", (12, 0), tuple(f"NVIDIA GeForce RTX {name}" for name in ("5060 Ti", "5070", "5090")), since="2.7"),
)
_SOME = ("RTX 3060", "RTX 4060", "RTX 4060 Ti", "RTX 4090", "RTX 5070", "RTX 5090", "H100 80GB HBM3")
SYSTEMS = {"linux": "Linux", "win32": "Windows"}


def main(arguments: Sequence[str]) -> int:
    """Write the tables into the pages."""
    argparse.ArgumentParser(
        prog="cards tables", description="Write the tables of README.md and of pages in docs/."
    ).parse_args(arguments)
    for page, language in PAGES.items():
        path = ROOT / page
        path.write_text(with_tables(path.read_text(encoding="utf-8"), language), encoding="utf-8")
    return 0


def with_tables(text: str, language: str = "en") -> str:
    """Return a page with what its markers ask for."""
    tables = (("files", files_table()), ("choices", choices_table()), ("clips", clips_table(language)))
    for name, lines in tables:
        made = "\n".join([f"<!-- {name} -->", *lines, f"<!-- /{name} -->"])
        text = re.sub(rf"<!-- {name} -->\n.*?<!-- /{name} -->", lambda _, made=made: made, text, flags=re.DOTALL)
    return text


def files_table() -> Iterator[str]:
    """Yield a row a card: the published file for it, and seconds a step with each."""
    names = [variant.name for variant in _folders()]
    yield "| Card | File | " + " | ".join(names) + " |"
    yield "|---|---" + "|---:" * len(names) + "|"
    for card, best, seconds in _ranked():
        yield f"| {card} | {best} | " + " | ".join(_short(seconds[name]) for name in names) + " |"


def clips_table(language: str) -> Iterator[str]:
    """Yield what the four steps of a clip take on some cards, with the file for each."""
    found = {card: 4 * seconds[best] for card, best, seconds in _ranked() if card in _SOME}
    yield f"| {' | '.join(found)} |"
    yield "|---" * len(found) + "|"
    yield f"| {' | '.join(translated(format_seconds(seconds), language) for seconds in found.values())} |"


def _folders() -> list[Variant]:
    return [variant for variant in PUBLISHED.values() if variant.is_folder]


def _ranked() -> Iterator[tuple[str, str, dict[str, float]]]:
    """Yield cards, the file for each, and seconds a step by file."""
    for family in FAMILIES:
        machine = _machine(family, "linux", ("2.11", "3.6"))
        for card in family.examples:
            found = rank_files(machine, card, _folders())
            seconds = {advice.variant.name: advice.step_seconds or 0.0 for advice in found}
            yield card.removeprefix("NVIDIA ").removeprefix("GeForce "), found[0].variant.name, seconds


def _short(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds < 10 else f"{seconds:.1f}"


def choices_table() -> Iterator[str]:
    """Yield what runs on every family of cards, system and version of torch."""
    yield "| Cards | System | torch | Triton | blocks | attention | FP8 file | INT8 file |"
    yield "|---|---|---|---|---|---|---|---|"
    for family in FAMILIES:
        for system, name in SYSTEMS.items():
            for has_triton in (True, False):
                for torch, kernels in _runs(family, system, has_triton=has_triton):
                    triton = "yes" if has_triton else "no"
                    yield f"| {family.name} | {name} | {torch} | {triton} | {' | '.join(kernels)} |"


def _runs(family: Family, system: str, *, has_triton: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield runs of versions of torch for which the same is chosen, and what that is."""
    runs: list[tuple[list[str], tuple[str, ...]]] = []
    there = [version for version, _ in TORCH_WITH_TRITON].index(family.since)
    for torch, triton in TORCH_WITH_TRITON[there:]:
        kernels = _kernels(_machine(family, system, (torch, triton if has_triton else None)))
        if runs and runs[-1][1] == kernels:
            runs[-1][0].append(torch)
        else:
            runs.append(([torch], kernels))
    for versions, kernels in runs:
        yield versions[0] if len(versions) == 1 else f"{versions[0]} to {versions[-1]}", kernels


def _kernels(machine: Machine) -> tuple[str, ...]:
    sizes = {"dim": ARCHITECTURE.dim, "ffn_dim": ARCHITECTURE.ffn_dim}
    fp8, int8 = (choose(machine, Wanted(precision=precision, **sizes)) for precision in ("fp8", "int8"))
    as_int8 = " (as INT8)" if fp8.requantizes else ""
    return fp8.blocks.name, fp8.attention.name, f"{fp8.matmul.name}{as_int8}", int8.matmul.name


def _machine(family: Family, system: str, versions: tuple[str, str | None]) -> Machine:
    torch, triton = versions
    packages = {} if triton is None else {"triton": f"{triton}.0"}
    return Machine(capability=family.capability, system=system, torch=f"{torch}.0", packages=packages)
