"""The download that the editor starts: one at a time, with progress, to be stopped and gone on with."""

import shutil
import threading
from types import SimpleNamespace

import pytest
from lightx2v_pack.engine.checkpoints.kinds import MODEL_REPOSITORY
from lightx2v_pack.engine.checkpoints.published import ALL_PUBLISHED, PUBLISHED, heading_of
from lightx2v_pack.engine.errors import without_passwords
from lightx2v_pack.engine.panel import downloads as panel_downloads
from lightx2v_pack.engine.panel.downloads import Downloads, Progress, Room, find_missing, offers_for, room_for
from lightx2v_pack.engine.sentences import translated
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


# What brings the files that a workflow names

IMAGE, VAE, T5 = (
    "wan2.1_i2v_480p_scaled_fp8_e4m3_lightx2v_4step.safetensors",
    "wan_2.1_vae.safetensors",
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
)
HIGH, LOW = (f"wan2.2_i2v_A14b_{noise}_noise_scaled_fp8_e4m3_lightx2v_4step.safetensors" for noise in ("high", "low"))
ORDINARY, LORA = "wan2.1_t2v_14B_fp8_scaled.safetensors", "wan2.1_t2v_14b_lora_rank64_lightx2v_4step.safetensors"
CLIP_VISION = "clip_vision_h.safetensors"
REPOSITORY = "Wan2.1-T2V-14B-StepDistill-CfgDistill-Lightx2v"
BLOCK = f"{REPOSITORY}\\distill_int8\\block_3.safetensors"


def offered(models, *names):
    variants = list(ALL_PUBLISHED.values())
    offers, unlisted = offers_for(names, variants, find_missing(variants, models))
    return [(" ".join([offer.variant.name, *offer.variant.only]), *offer.files) for offer in offers], unlisted


def put_in_place(models, *names):
    """Whole files, as long as published, of single files."""
    for part in {part for variant in ALL_PUBLISHED.values() for part in variant.parts if not part.keeps_path}:
        name = part.patterns[0].rpartition("/")[2]
        if name in names:
            (models / part.folder).mkdir(parents=True, exist_ok=True)
            with (models / part.folder / name).open("wb") as file:
                file.truncate(part.num_bytes)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([IMAGE], [("wan2.1-i2v-480p-fp8", IMAGE)]),
        ([VAE, CLIP_VISION, T5, IMAGE], [("wan2.1-i2v-480p-fp8", VAE, CLIP_VISION, T5, IMAGE)]),
        ([HIGH, LOW, VAE], [("wan2.2-i2v-fp8", HIGH, LOW, VAE)]),
        ([f"wan\\{LOW}"], [("wan2.2-i2v-fp8", f"wan\\{LOW}")]),
        ([LORA, ORDINARY, T5], [("wan2.1-t2v-lora", LORA), ("wan2.1-t2v-ordinary-fp8", ORDINARY, T5)]),
        ([REPOSITORY], [("fp8", REPOSITORY)]),
        ([f"{REPOSITORY}/distill_int8"], [("int8", f"{REPOSITORY}/distill_int8")]),
        ([BLOCK], [("int8", BLOCK)]),
        # Where no transformer and no LoRA is wanted, only what is; a text encoder of a folder reads its tokenizer.
        (["models_t5_umt5-xxl-enc-bf16.pth"], [("bf16 text-encoder tokenizer", "models_t5_umt5-xxl-enc-bf16.pth")]),
        (["wan_2.1_vae.safetensors", "fp8"], [("fp8-single vae", VAE)]),
        ([T5], [("fp8-single text-encoder", T5)]),
        ([CLIP_VISION], [("wan2.1-i2v-480p-fp8 clip-vision", CLIP_VISION)]),
        ([T5, "Wan2.1_VAE.pth"], [("fp8-single text-encoder", T5), ("fp8 vae", "Wan2.1_VAE.pth")]),
        ([VAE, T5], [("fp8-single text-encoder vae", VAE, T5)]),
    ],
)  # fmt: skip
def test_a_missing_file_is_brought_by_what_holds_it(tmp_path, names, expected):
    found, unlisted = offered(tmp_path, *names)
    assert found == expected
    assert unlisted == [name for name in names if name == "fp8"]


def test_every_published_file_has_a_download(tmp_path):
    for variant in ALL_PUBLISHED.values():
        if not variant.is_folder:
            for name in variant.file_names:
                assert any(name in files for _, *files in offered(tmp_path, name)[0]), name


def test_what_is_in_no_list_is_told_and_hides_nothing(tmp_path):
    found, unlisted = offered(tmp_path, "mine.safetensors", IMAGE, "..\\..\\x", "")
    assert found == [("wan2.1-i2v-480p-fp8", IMAGE)] and unlisted == ["mine.safetensors", "..\\..\\x", ""]


def test_what_is_here_is_not_brought_again(tmp_path):
    put_in_place(tmp_path, HIGH, VAE)
    assert offered(tmp_path, HIGH, LOW, VAE)[0] == [("wan2.2-i2v-fp8", LOW)]
    pair = ALL_PUBLISHED["wan2.2-i2v-fp8"]
    assert room_for(pair, tmp_path).missing_bytes == sum(part.num_bytes for part in pair.parts[1:3])
    put_in_place(tmp_path, LOW)
    assert offered(tmp_path, HIGH, LOW, VAE) == ([], [])


def test_a_companion_is_brought_by_the_model_that_is_here(tmp_path):
    put_in_place(tmp_path, IMAGE)
    assert offered(tmp_path, VAE)[0] == [("wan2.1-i2v-480p-fp8 vae", VAE)]


def test_a_part_alone_needs_its_own_room_and_is_called_what_it_is(tmp_path):
    alone = ALL_PUBLISHED["wan2.1-i2v-480p-fp8"].limited_to(["clip-vision"])
    assert str(alone.title) == "CLIP Vision of wan2.1-i2v-480p-fp8"
    assert translated(alone.title, "zh") == "wan2.1-i2v-480p-fp8 \u7684 CLIP \u89c6\u89c9"
    assert room_for(alone, tmp_path).missing_bytes == alone.num_bytes == 1_264_219_396
    assert room_for(alone, tmp_path).folder == "models/clip_vision"
    with pytest.raises(ValueError, match="fp8 has no part 'clip-vision'; its parts: transformer-blocks, rest-of"):
        FP8.limited_to(["clip-vision"])


def test_a_part_alone_arrives_alone(hub, tmp_path):
    downloads = Downloads()
    models = tmp_path / "models"
    downloads.start(FP8.limited_to(["vae"]), models, endpoint=hub.url)
    downloads.wait()
    assert downloads.progress.is_complete and downloads.progress.name == "VAE of fp8"
    assert {path.name for path in models.rglob("[!.]*") if path.is_file()} == {"Wan2.1_VAE.pth"}


def test_a_list_of_variants_has_short_headings():
    headings = {variant.name: heading_of(variant.name) for variant in ALL_PUBLISHED.values()}
    assert headings["fp8"] == headings["bf16-single"] == "Text to video"
    assert headings["wan2.1-i2v-720p-int8"] == "Image to video" and headings["wan2.2-i2v-fp8"] == "Experts of Wan2.2"
    assert headings["wan2.2-t2v-loras"].startswith("LoRAs")
    assert headings["wan2.2-i2v-ordinary-fp8"].startswith("Ordinary models")
    # Each once, one after the other.
    assert len(dict.fromkeys(headings.values())) == 5
