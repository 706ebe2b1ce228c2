"""Importing LightX2V: only what we need, without side effects, and with one clear error when it does not fit.

Most tests run in an interpreter of their own, as an import happens once a process.
"""

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from lightx2v_pack.engine.adapters.lightx2v import bootstrap
from support import lightx2v_cpu

TESTS = Path(__file__).resolve().parents[1]
PRELUDE = """
import os, sys
sys.path.insert(0, {tests!r})
import conftest
from lightx2v_pack.engine.adapters.lightx2v import bootstrap
from lightx2v_pack.engine.errors import LightX2VError, MissingDependencyError
"""


def run(code: str, folder: Path | None = None) -> str:
    """Run code after PRELUDE and return what it prints; `folder` holds the lightx2v to be found, if any."""
    environment = {name: value for name, value in os.environ.items() if name not in ("LIGHTX2V_DIR", "PYTHONPATH")}
    if folder is not None:
        environment |= {"LIGHTX2V_DIR": str(folder), "PYTHONPATH": str(folder)}
    script = PRELUDE.format(tests=str(TESTS)) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_the_wan_components_are_imported_and_nothing_stays_changed():
    folder = lightx2v_cpu.source_folder_for_cpu()
    run(
        """
        import torch
        from support import lightx2v_cpu
        os.environ["DTYPE"] = "FP16"
        # First: torch's compiler notes its cache folder in the environment when it is imported.
        limits = torch._dynamo.config.cache_size_limit, torch.get_default_dtype(), torch.backends.cudnn.benchmark
        before, path = dict(os.environ), list(sys.path)
        lightx2v_cpu.import_lightx2v()
        bootstrap.import_lightx2v()
        assert dict(os.environ) == before
        assert sys.path == path
        after = torch._dynamo.config.cache_size_limit, torch.get_default_dtype(), torch.backends.cudnn.benchmark
        assert after == limits
        # The package's own __init__ has not run, and no runner, server or pipeline came with it.
        assert not hasattr(sys.modules["lightx2v"], "LightX2VPipeline")
        loaded = [name for name in sys.modules if name.startswith("lightx2v.")]
        assert loaded and not [name for name in loaded if "runner" in name or "server" in name or "pipeline" in name]
        from lightx2v.utils.envs import GET_DTYPE, GET_SENSITIVE_DTYPE
        assert GET_DTYPE() == GET_SENSITIVE_DTYPE() == torch.bfloat16
        """,
        folder,
    )


def test_nothing_is_imported_or_set_before_first_use_and_its_absence_says_how_to_get_it():
    out = run("""
        class WithoutLightX2V:
            # Finds what another finder does, but for an installed LightX2V.
            def __init__(self, finder):
                self.finder = finder
            def __getattr__(self, name):
                return getattr(self.finder, name)
            def find_spec(self, name, path=None, target=None):
                return None if name in ("lightx2v", "lightx2v_platform") else self.finder.find_spec(name, path, target)
        sys.meta_path = [WithoutLightX2V(finder) for finder in sys.meta_path]
        before = dict(os.environ)
        from lightx2v_pack.engine.adapters.lightx2v import config, transformer, vae
        assert not [name for name in sys.modules if name.split(".")[0] in ("lightx2v", "lightx2v_platform")]
        assert dict(os.environ) == before
        print(bootstrap.unavailable_reason())
        try:
            bootstrap.import_lightx2v()
        except MissingDependencyError as error:
            print(error)
    """)
    wanted = "pip install --no-deps git+https://github.com/ModelTC/LightX2V@f8aee98b5462cca8d7288888146ebd95592bf266"
    assert out.count(wanted) == 2


def write_package(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


PLATFORM = {"lightx2v_platform/__init__.py": "", "lightx2v_platform/set_ai_device.py": ""}


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"lightx2v/__init__.py": "raise RuntimeError('ran')"}, id="lacks-a-module"),
        pytest.param(
            {
                "lightx2v/__init__.py": "raise RuntimeError('ran')",
                "lightx2v/common/__init__.py": "",
                "lightx2v/common/ops/__init__.py": "",
                "lightx2v/common/ops/attn/__init__.py": "",
                "lightx2v/common/ops/attn/template.py": "class Other: pass",
            },
            id="lacks-a-name",
        ),
    ],
)
def test_another_version_gives_one_error_with_the_known_commit_and_the_line_to_install(tmp_path, files):
    folder = write_package(tmp_path, PLATFORM | files)
    out = run(
        """
        bootstrap.DEPENDENCIES = {}
        sys.modules["loguru"] = type(sys)("loguru")
        sys.modules["loguru"].logger = type("Logger", (), {"disable": staticmethod(lambda name: None)})
        for _ in range(2):
            try:
                bootstrap.import_lightx2v()
            except LightX2VError as error:
                assert not isinstance(error, MissingDependencyError)
                print(error)
        # A failed import leaves nothing behind that a repaired install would stumble over.
        assert not [name for name in sys.modules if name.split(".")[0] in ("lightx2v", "lightx2v_platform")]
        """,
        folder,
    )
    lines = out.strip().splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "f8aee98b5462cca8d7288888146ebd95592bf266" in line
        assert "pip install --no-deps git+https://github.com/ModelTC/LightX2V@" in line


def test_everything_that_the_adapter_imports_is_checked():
    folder = Path(bootstrap.__file__).parent
    imported = {
        (node.module, alias.name)
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and not node.level and node.module.startswith("lightx2v")
        for alias in node.names
    }
    checked = {(module, name.split(".")[0]) for module, names in bootstrap.NEEDED.items() for name in names}
    assert imported
    assert imported <= checked


def test_a_missing_small_package_is_named(monkeypatch):
    lightx2v_cpu.import_lightx2v()
    monkeypatch.setattr(bootstrap, "DEPENDENCIES", {"no_such_package": "no-such-package", "json": "json"})
    assert bootstrap.unavailable_reason() == "LightX2V needs no-such-package. Run: pip install no-such-package"
