"""The import direction of the architecture, checked on the syntax trees."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What each part of the pack may import of the pack, longest prefix first.
BASE = {"engine.logic", "engine.constants", "engine.errors", "engine.settings"}
SHARED = {"engine.interfaces", "engine.latent_space"}
ALLOWED = {
    "engine/logic": BASE,
    "engine/stages": {"engine.stages", *SHARED} | BASE,
    "engine/adapters": {"engine.adapters", *SHARED} | BASE,
    "engine": {"engine"},
    "nodes": {"nodes", "engine"},
}
# The one place of the pack that imports a foreign package; None: tests and tools only. (ruff could ban them too, but it
# takes a relative import of a pack that lies in a folder called `lightx2v` for an import of LightX2V.)
TOUCHED_IN = {
    "comfy": "engine/adapters/comfy",
    "comfy_api": "nodes/_api.py",
    "diffusers": None,
    "folder_paths": "engine/adapters/comfy",
    "huggingface_hub": "engine/adapters/hub",
    "latent_preview": "engine/adapters/comfy",
    "lightx2v": "engine/adapters/lightx2v",
    "lightx2v_platform": "engine/adapters/lightx2v",
    "server": "engine/adapters/comfy",
    "transformers": None,
}
STDLIB_ONLY = ("engine/logic", "engine/constants.py", "engine/errors.py", "engine/settings.py")


def product_files():
    return sorted(path for folder in ("engine", "nodes") for path in (ROOT / folder).rglob("*.py"))


def imports_of(path: Path):
    """Yield (dotted name, level) of every import, relative ones resolved against the repository root."""
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


def part_of(path: Path):
    relative = path.relative_to(ROOT).as_posix()
    return next(part for part in ALLOWED if relative.startswith(part + "/"))


@pytest.mark.parametrize("path", product_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_downwards(path):
    allowed = ALLOWED[part_of(path)]
    for name, level in imports_of(path):
        if level:
            assert any(name == prefix or name.startswith(prefix + ".") for prefix in allowed), f"{path}: imports {name}"
        else:
            assert name.split(".")[0] not in {"engine", "nodes"}, f"{path}: {name} must be a relative import"


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
    """A foreign party stays in its folder; kernels, blocks and streaming are shared by the engines."""
    shared = {path.name, "kernels", "streaming", "blocks"}
    for file in path.rglob("*.py"):
        for name, level in imports_of(file):
            parts = name.split(".")
            if level and parts[:2] == ["engine", "adapters"] and (ROOT / "engine/adapters" / parts[2]).is_dir():
                assert parts[2] in shared, f"{file}: imports {name}"


@pytest.mark.parametrize("path", product_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_are_readable_on_windows(path):
    path.read_text(encoding="utf-8").encode("cp1252")
