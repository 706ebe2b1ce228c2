"""Let tests import the pack as `lightx2v_pack.engine...` and `lightx2v_pack.nodes...`."""

import collections
import os
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# They start a real ComfyUI, LightX2V or browser.
SLOW_SUITES = [ROOT / "tests" / name for name in ("contract", "browser")]

# Tiny models on few cores: one thread an operator is faster than waiting for the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests read English, whatever the machine speaks.
os.environ["LANGUAGE"] = "en"

runpy.run_path(str(ROOT / "tools" / "register_pack.py"))
# Its asserts explain themselves as those of a test file do.
pytest.register_assert_rewrite("support")


@pytest.fixture(autouse=True)
def every_test_starts_with_the_gpu():
    """A ComfyUI with --cpu, which a test ran, told the engine not to use it; any told it where to keep notes."""
    forget_the_host()
    yield
    forget_the_host()


def forget_the_host():
    system = sys.modules.get("lightx2v_pack.engine.system")
    if system is not None:
        system.use_cpu_only(False)
    remembered = sys.modules.get("lightx2v_pack.engine.backends.remembered")
    if remembered is not None:
        remembered.keep_in(None)
    forecast = sys.modules.get("lightx2v_pack.engine.panel.forecast")
    if forecast is not None:
        forecast.keep_speeds_in(None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark whole suites, so that `-m "not slow"` leaves them out, and begin with the files that take longest.

    A process works through a file; one that begins last would be waited for.
    """
    for item in items:
        if any(item.path.is_relative_to(suite) for suite in SLOW_SUITES):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.parent.name not in ("workflows", "demo"))


def pytest_terminal_summary(terminalreporter):
    """Say once for each reason how many tests were skipped."""
    reasons = collections.Counter(
        report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", ())
    )
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")
