"""The download that the editor starts: one at a time, with progress, to be stopped and gone on with."""

import shutil
import threading

import pytest
from lightx2v_pack.engine.checkpoints.kinds import MODEL_REPOSITORY
from lightx2v_pack.engine.checkpoints.published import PUBLISHED
from lightx2v_pack.engine.errors import without_passwords
from lightx2v_pack.engine.panel import downloads as panel_downloads
from lightx2v_pack.engine.panel.downloads import Downloads, Progress
from lightx2v_pack.engine.sentences.hub import Hub
from support import checkpoints
from support.hub_server import HubServer

FP8 = PUBLISHED["fp8"]


@pytest.fixture
def hub(tmp_path):
    repository = shutil.copytree(checkpoints.repository(), tmp_path / "hub")
    (repository / "config.json").write_text("{}", encoding="utf-8")
    with HubServer({MODEL_REPOSITORY: repository}) as server:
        yield server


def fetch(downloads, folder, hub):
    downloads.start(FP8, folder, endpoint=hub.url)
    downloads.wait()
    return downloads.progress


def test_a_variant_arrives_whole(hub, tmp_path):
    progress = fetch(Downloads(), tmp_path / "models", hub)
    assert (progress.name, progress.is_running, progress.is_complete, progress.problem) == ("fp8", False, True, "")
    assert progress.done_bytes == progress.num_bytes > 0
    assert (tmp_path / "models" / FP8.entry / "distill_fp8" / "block_1.safetensors").is_file()


def test_the_pace_and_the_time_left_follow_the_last_half_minute(hub, tmp_path, monkeypatch):
    """A download that reports each second on a clock of its own: slow first, then 10 MB a second."""
    clock = iter(range(10_000))
    seen = []

    def slow_then_fast(variant, models_dir, *, on_progress, **_):
        for step in range(100):
            on_progress(step * 1_000 if step < 50 else (step - 49) * 10_000_000, 1_000_000_000, "a file")
            seen.append(downloads.progress)

    monkeypatch.setattr(panel_downloads, "download", slow_then_fast)
    downloads = Downloads(lambda: float(next(clock)))
    fetch(downloads, tmp_path, hub)
    assert seen[1].bytes_per_second is None and seen[2].bytes_per_second == 1_000
    assert seen[-1].bytes_per_second == pytest.approx(10_000_000)
    assert seen[-1].seconds_left == pytest.approx((1_000 - 500) / 10)
    assert downloads.progress.bytes_per_second is None


def test_one_download_runs_at_a_time_and_can_be_stopped(hub, tmp_path):
    downloads = Downloads()
    downloads.start(FP8, tmp_path, endpoint=hub.url)
    with pytest.raises(ValueError, match="fp8 is being downloaded"):
        downloads.start(PUBLISHED["int8"], tmp_path)
    downloads.stop()
    downloads.wait()
    assert downloads.progress.problem.startswith("Stopped.")
    assert fetch(downloads, tmp_path, hub).problem == ""


def test_a_failure_is_told_and_the_next_try_works(hub, tmp_path):
    hub.statuses["api"] = 500
    downloads = Downloads()
    assert "answered with status 500" in fetch(downloads, tmp_path, hub).problem
    hub.statuses.clear()
    assert fetch(downloads, tmp_path, hub).problem == ""


@pytest.mark.parametrize(
    "body", [b"<html>Sign in</html>", b"[]", b"null", b"[" * 100_000, b'{"id": "a/b"}', b"\xff\xfe"]
)
def test_an_answer_that_is_no_listing_is_no_success(hub, tmp_path, body):
    hub.listings[MODEL_REPOSITORY] = body
    progress = fetch(Downloads(), tmp_path / "models", hub)
    assert (progress.is_running, progress.is_complete) == (False, False)
    assert progress.problem.startswith(f"Open {hub.url}/") and "is no listing" in progress.problem
    assert not (tmp_path / "models").exists()


class _PanicError(BaseException):
    """As libraries in Rust end."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("sha256"), "KeyError: 'sha256'"),
        (ImportError("no socksio"), "ImportError: no socksio"),
        (RuntimeError("http://user:secret@proxy"), "RuntimeError: http://proxy"),
        (MemoryError(), "MemoryError"),
        (_PanicError(), "ended before it was complete"),
    ],
)
def test_success_is_a_fact_that_no_other_end_has(tmp_path, monkeypatch, error, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(panel_downloads, "download", fail)
    downloads = Downloads()
    downloads.start(FP8, tmp_path)
    downloads.wait()
    assert (downloads.progress.is_running, downloads.progress.is_complete) == (False, False)
    assert words in downloads.progress.problem


def test_a_thread_that_cannot_start_is_a_failure(tmp_path, monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    downloads = Downloads()
    downloads.start(FP8, tmp_path)
    downloads.wait()
    assert downloads.progress == Progress(name="fp8", problem="Restart ComfyUI: can't start new thread.")


def test_a_sentence_stays_one_where_there_is_no_password_in_it():
    said = Hub.STOPPED()
    assert without_passwords(said) is said
    assert without_passwords(f"{said} http://me:secret@hub/x") == f"{said} http://hub/x"
