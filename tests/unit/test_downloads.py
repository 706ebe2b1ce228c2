"""The download that the editor starts: one at a time, with progress, to be stopped and gone on with."""

import shutil
import threading
from types import SimpleNamespace

import pytest
from lightx2v_pack.engine.checkpoints.kinds import MODEL_REPOSITORY
from lightx2v_pack.engine.checkpoints.published import PUBLISHED
from lightx2v_pack.engine.errors import without_passwords
from lightx2v_pack.engine.panel import downloads as panel_downloads
from lightx2v_pack.engine.panel.downloads import Downloads, Progress, Room, room_for
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


# What there is room for


class _Disks:
    """Free bytes by folder name, each a drive of its own; everything else lies on the first."""

    def __init__(self, monkeypatch, **free):
        self._free = free
        monkeypatch.setattr(
            panel_downloads.shutil, "disk_usage", lambda place: SimpleNamespace(free=free[self._of(place)])
        )
        monkeypatch.setattr(panel_downloads, "_device", self._of)

    def _of(self, place):
        return next((name for name in self._free if name in place.parts), next(iter(self._free)))


def test_room_is_counted_for_what_is_missing(tmp_path, monkeypatch):
    models = tmp_path / "models"
    _Disks(monkeypatch, models=10_000_000_000)
    assert room_for(FP8, models) == Room(
        missing_bytes=FP8.num_bytes,
        free_bytes=10_000_000_000,
        lacking_bytes=FP8.num_bytes - 10_000_000_000,
        folder="models/lightx2v",
    )
    # What has arrived, in whole or in part, needs no room.
    folder = models / FP8.entry / "distill_fp8"
    folder.mkdir(parents=True)
    for name, size in (
        ("models_t5_umt5-xxl-enc-fp8.pth", 6_730_000_000),
        (".block_3.safetensors.0123456789ab.part", 5),
    ):
        with (folder / name).open("wb") as file:
            file.truncate(size)
    assert room_for(FP8, models).missing_bytes == FP8.num_bytes - 6_730_000_000 - 5
    _Disks(monkeypatch, models=30_000_000_000)
    assert room_for(FP8, models).lacking_bytes == 0


def test_room_is_counted_by_drive(tmp_path, monkeypatch):
    """Folders of models may be links to other drives: one of them may be full while another has room."""
    single = PUBLISHED["fp8-single"]
    transformer, *others = single.parts
    for folder in {part.folder for part in single.parts}:
        (tmp_path / folder).mkdir()
    _Disks(monkeypatch, models=100_000_000_000, diffusion_models=5_000_000_000)
    room = room_for(single, tmp_path)
    assert room.lacking_bytes == transformer.num_bytes - 5_000_000_000 and room.free_bytes == 5_000_000_000
    assert room.folder == "models/diffusion_models"
    _Disks(monkeypatch, models=1_000_000_000, diffusion_models=100_000_000_000)
    assert room_for(single, tmp_path).lacking_bytes == sum(part.num_bytes for part in others) - 1_000_000_000


def test_a_drive_that_cannot_be_looked_at_is_no_reason_to_refuse(tmp_path, monkeypatch):
    def fail(place):
        raise OSError("not now")

    monkeypatch.setattr(panel_downloads.shutil, "disk_usage", fail)
    room = room_for(FP8, tmp_path)
    assert (room.missing_bytes, room.free_bytes, room.lacking_bytes) == (FP8.num_bytes, None, 0)
