"""The import direction of the architecture, checked on the syntax trees."""

import ast
import functools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# From the ground up: a part may import itself and what stands above it in this list.
FLOORS = (
    "engine/sentences",
    "engine/constants.py", "engine/quantities.py", "engine/errors.py", "engine/system.py", "engine/shapes.py",
    "engine/temporary.py",
    "engine/latent_space.py", "engine/inputs.py",
    "engine/parallel/split.py",
    "engine/checkpoints", "engine/backends/versions.py", "engine/backends/table.py", "engine/settings.py",
    "engine/lora/report.py", "engine/lora/changes.py", "engine/interfaces.py", "engine/progress.py", "engine/kernels",
    "engine/backends",
    "engine/memory", "engine/offload", "engine/lora", "engine/wan",
    "engine/umt5", "engine/stages", "engine/prompting", "engine/report.py", "engine/report_table.py",
    "engine/adapters/lightx2v", "engine/engines.py", "engine/trial_child.py", "engine/parallel", "engine/handles.py",
    "engine/kernel_choice.py", "engine/pipeline.py", "engine/adapters/hub", "engine/adapters/comfy", "engine/panel",
    "nodes",
)  # fmt: skip
# The one place of the pack that imports a foreign package; None: tests and tools only. (ruff could ban them too, but it
# takes a relative import of a pack that lies in a folder called `lightx2v` for an import of LightX2V.)
TOUCHED_IN = {
    "comfy": "engine/adapters/comfy",
    "comfy_api": "nodes/_api.py",
    "comfy_execution": "engine/adapters/comfy",
    "comfyui_version": "engine/adapters/comfy",
    "diffusers": None,
    "folder_paths": "engine/adapters/comfy",
    "huggingface_hub": "engine/adapters/hub",
    "latent_preview": "engine/adapters/comfy",
    "lightx2v": "engine/adapters/lightx2v",
    "lightx2v_platform": "engine/adapters/lightx2v",
    "server": "engine/adapters/comfy",
    "transformers": None,
}
# Decisions on plain numbers and headers: the standard library only.
STDLIB_ONLY = (
    *(
        f"engine/checkpoints/{name}.py"
        for name in (
            "bounds",
            "cast",
            "checks",
            "files",
            "formats",
            "header",
            "kinds",
            "published",
            "tae",
            "transformers",
        )
    ),
    *(
        f"engine/memory/{name}.py"
        for name in (
            "activations",
            "clip",
            "decoder",
            "encoder",
            "explain",
            "needs",
            "placement",
            "plan",
            "rounding",
            "tiles",
            "weights",
        )
    ),
    "engine/adapters/comfy/host_flags.py",
    "engine/backends/choose.py",
    "engine/backends/remembered.py",
    "engine/backends/table.py",
    "engine/backends/versions.py",
    "engine/constants.py",
    "engine/quantities.py",
    "engine/errors.py",
    "engine/lora/keys.py",
    "engine/lora/report.py",
    "engine/panel/advice.py",
    "engine/parallel/split.py",
    "engine/parallel/start_group.py",
    "engine/parallel/start_rank.py",
    "engine/panel/speed.py",
    *(f"engine/prompting/{name}.py" for name in ("addresses", "answers", "client", "composing")),
    "engine/report_table.py",
    "engine/sentences",
    "engine/settings.py",
    "engine/shapes.py",
    "engine/stages/schedule.py",
    "engine/temporary.py",
    "engine/wan/layout.py",
)


def product_files():
    return sorted(path for folder in ("engine", "nodes") for path in (ROOT / folder).rglob("*.py"))


@functools.cache
def imports_of(path: Path):
    """Return (dotted name, level) of every import, relative ones resolved against the repository root."""
    return list(_find_imports(path))


def _find_imports(path: Path):
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module, 0
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{stem}.{alias.name}", node.level) for alias in node.names)


def floor_of(name: str) -> str:
    """Return the entry of FLOORS that a dotted name belongs to."""
    entries = {entry.removesuffix(".py").replace("/", "."): entry for entry in FLOORS}
    return entries[max((entry for entry in entries if f"{name}.".startswith(f"{entry}.")), key=len)]


@pytest.mark.parametrize("path", product_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_to_lower_floors(path):
    if path in (ROOT / "engine/__init__.py", ROOT / "engine/adapters/__init__.py"):
        return
    here = floor_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for name, level in imports_of(path):
        if level:
            there = floor_of(name)
            assert FLOORS.index(there) <= FLOORS.index(here), f"{path}: imports {name}"
        else:
            assert name.split(".")[0] not in {"engine", "nodes"}, f"{path}: {name} must be a relative import"


@pytest.mark.parametrize("entry", [*FLOORS, *STDLIB_ONLY])
def test_every_part_is_there(entry):
    assert (ROOT / entry).exists()


@pytest.mark.parametrize(
    "path", [path for path in product_files() if path.relative_to(ROOT).as_posix().startswith(STDLIB_ONLY)], ids=str
)
def test_decisions_need_the_standard_library_only(path):
    foreign = {
        name for name, level in imports_of(path) if not level and name.split(".")[0] not in sys.stdlib_module_names
    }
    assert not foreign


@pytest.mark.parametrize("package", TOUCHED_IN)
def test_a_foreign_package_is_imported_in_one_place(package):
    place = TOUCHED_IN[package]
    files = [ROOT / "__init__.py", *product_files(), *ROOT.glob("demo/*.py")]
    users = {path for path in files for name, level in imports_of(path) if not level and name.split(".")[0] == package}
    strangers = {path for path in users if place is None or not path.is_relative_to(ROOT / place)}
    assert not strangers, f"{package} is imported outside {place}"
    assert place is None or (ROOT / place).exists(), f"{place} is not there any more"


def test_users_need_not_install_diffusers():
    """It is the tests' reference; what the pack computes with is its own."""
    assert "diffusers" not in (ROOT / "requirements.txt").read_text()


@pytest.mark.parametrize("path", sorted(ROOT.glob("engine/adapters/*/")), ids=lambda path: path.name)
def test_adapters_do_not_know_each_other(path):
    """A foreign party stays in its folder."""
    for file in path.rglob("*.py"):
        for name, level in imports_of(file):
            if level and name.startswith("engine.adapters."):
                assert name.split(".")[2] == path.name, f"{file}: imports {name}"


@pytest.mark.parametrize("path", product_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_are_readable_on_windows(path):
    path.read_text(encoding="utf-8").encode("cp1252")
