"""Fetching published checkpoints, against a local server that speaks the hub's protocol."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from lightx2v_pack.engine.adapters.hub import download as hub_download
from lightx2v_pack.engine.adapters.hub.download import download, plan_download
from lightx2v_pack.engine.checkpoints.files import resolve_checkpoint, resolve_transformer
from lightx2v_pack.engine.checkpoints.kinds import MODEL_REPOSITORY
from lightx2v_pack.engine.checkpoints.published import (
    ALL_PUBLISHED,
    COMFY_REPOSITORY,
    PUBLISHED,
    PUBLISHED_LORAS,
    SINGLE_FILE_REPOSITORY,
    WAN22_LORA_REPOSITORY,
    DownloadError,
)
from lightx2v_pack.engine.errors import CheckpointError
from lightx2v_pack.tools import download_cli
from safetensors.torch import save_file
from support import checkpoints
from support.cancel import Cancelled
from support.hub_server import HubServer
from support.scripts import run_script

FP8 = PUBLISHED["fp8"]
FOLDER = Path(FP8.entry)
BLOCK = "block_1.safetensors"


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """Four repositories at tiny size, laid out as published: tokenizer and config at the root."""
    root = tmp_path_factory.mktemp("hub")
    model = shutil.copytree(checkpoints.repository(), root / "model")
    for index, folder in enumerate(("distill_fp8", "distill_int8", "distill_models")):
        if index:
            shutil.rmtree(model / folder / "google")
        else:
            (model / folder / "google").rename(model / "google")
    (model / "config.json").write_text(json.dumps({"dim": 256, "num_layers": 2}), encoding="utf-8")
    (model / "loras").mkdir()
    (model / "loras" / "lora.safetensors").write_bytes(b"not wanted")
    single, comfy = root / "single", root / "comfy" / "split_files"
    for folder in (single, comfy / "text_encoders", comfy / "vae"):
        folder.mkdir(parents=True)
    for precision in ("fp8", "int8", "bf16"):
        shutil.copy(checkpoints.single_file(precision), single)
    shutil.copy(checkpoints.comfy_transformer(), single)
    for scaled_fp8 in (True, False):
        shutil.copy(checkpoints.comfy_text_encoder(scaled_fp8), comfy / "text_encoders")
    shutil.copy(checkpoints.vae(), comfy / "vae")
    loras = root / "loras"
    loras.mkdir()
    high, low = (part.patterns[0] for part in PUBLISHED_LORAS["wan2.2-t2v-loras"].parts)
    pair = {"blocks.0.ffn.0.lora_down.weight": torch.zeros(2, 8), "blocks.0.ffn.0.lora_up.weight": torch.zeros(8, 2)}
    for name in (high, low):
        save_file(pair, loras / name)
    i2v_high, i2v_low = (part.patterns[0] for part in PUBLISHED_LORAS["wan2.2-i2v-loras"].parts)
    save_file(pair, loras / i2v_high)
    shutil.copy(checkpoints.single_file("bf16"), loras / i2v_low)
    return {
        MODEL_REPOSITORY: model,
        SINGLE_FILE_REPOSITORY: single,
        COMFY_REPOSITORY: root / "comfy",
        WAN22_LORA_REPOSITORY: loras,
    }


@pytest.fixture
def hub(repositories, monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    # No token of the machine; small pieces, so that a tiny file arrives in several.
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    with HubServer(repositories) as server:
        yield server


@pytest.fixture
def models_dir(tmp_path):
    return tmp_path / "models"


@pytest.fixture
def fetch(hub, models_dir):
    return lambda variant=FP8, **options: download(variant, models_dir, endpoint=hub.url, **options)


def content_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lightx2v-download.lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def stop_at(name: str):
    """Return callables that stop a download when 50,000 bytes of a file have arrived."""
    state = {"started": None, "stop": False}

    def on_progress(done, total, what):
        if what.endswith(name) and not what.startswith("checking"):
            state["started"] = done if state["started"] is None else state["started"]
            state["stop"] = done - state["started"] > 50_000

    def check_cancel():
        if state["stop"]:
            raise Cancelled

    return {"on_progress": on_progress, "check_cancel": check_cancel}


@pytest.mark.parametrize("precision", ["fp8", "int8", "bf16"])
def test_a_precision_arrives_whole_and_loads(fetch, hub, models_dir, repositories, precision):
    plan = fetch(PUBLISHED[precision])
    found = resolve_checkpoint(models_dir / plan.variant.entry, precision)
    assert plan.entry == found.path
    assert found.missing == ()
    assert found.transformer.format.precision == precision
    assert found.text_encoder.name == f"models_t5_umt5-xxl-enc-{precision}.pth"
    assert found.tokenizer == models_dir / FOLDER / "google" / "umt5-xxl"
    published = content_of(repositories[MODEL_REPOSITORY])
    arrived = content_of(models_dir / FOLDER)
    assert arrived == {name: published[name] for name in arrived}
    assert "config.json" in arrived
    assert not [name for name in arrived if "lora" in name or name.endswith(".part")]
    assert {name.partition("/")[0] for name in arrived} == {found.vae.parent.name, "google", "config.json"}


@pytest.mark.parametrize("name", ["fp8-single", "fp8-comfyui", "int8-single", "bf16-single"])
def test_single_files_arrive_where_the_loaders_look(fetch, models_dir, name):
    plan = fetch(PUBLISHED[name])
    assert resolve_transformer(plan.entry).format.precision == PUBLISHED[name].precision
    assert {path.parent.name for path in models_dir.rglob("*.safetensors")} == {
        "diffusion_models",
        "text_encoders",
        "vae",
    }


def test_loras_of_both_experts_arrive_where_the_lora_node_looks(hub, models_dir, capsys):
    options = ("--models-dir", models_dir, "--endpoint", hub.url, "--quiet")
    code, out, _ = call(capsys, "get", "wan2.2-t2v-loras", *options)
    names = [part.patterns[0] for part in PUBLISHED_LORAS["wan2.2-t2v-loras"].parts]
    assert code == 0 and out.splitlines() == [f"loras/{name}" for name in names]
    assert sorted(content_of(models_dir / "loras")) == sorted(names)


def test_a_published_lora_that_is_none_is_reported(fetch):
    with pytest.raises(CheckpointError, match="is a Wan transformer; expected a LoRA"):
        fetch(PUBLISHED_LORAS["wan2.2-i2v-loras"])


def test_two_precisions_share_a_folder_and_their_common_files(fetch, hub):
    fetch()
    hub.requests.clear()
    fetch(PUBLISHED["int8"])
    assert not hub.requested("tokenizer.json")
    assert hub.requested(BLOCK) == [None]


def test_progress_ends_at_the_sum_of_the_sizes(fetch, hub):
    seen = []
    plan = fetch(on_progress=lambda done, total, what: seen.append((done, total, what)))
    dones = [done for done, _, _ in seen]
    assert dones == sorted(dones)
    assert seen[-1][0] == plan.num_bytes == seen[-1][1]
    assert {what.removeprefix("checking ") for _, _, what in seen} == {file.remote.path for file in plan.files}
    assert hub.content_bytes == plan.num_bytes


def test_an_interrupted_file_is_continued_not_begun_again(fetch, hub, models_dir):
    with pytest.raises(Cancelled):
        fetch(**stop_at(BLOCK))
    target = models_dir / FOLDER / "distill_fp8" / BLOCK
    part = next(target.parent.glob(f".{BLOCK}.*.part"))
    kept = part.stat().st_size
    assert 0 < kept < plan_download(FP8, models_dir, endpoint=hub.url).num_bytes
    assert not target.exists()
    hub.requests.clear()
    hub.content_bytes = 0
    remaining = plan_download(FP8, models_dir, endpoint=hub.url).missing_bytes
    fetch()
    assert set(hub.requested(BLOCK)) == {f"bytes={kept}-"}
    assert hub.content_bytes == remaining
    assert not hub.requested("block_0.safetensors")
    assert not list(models_dir.rglob("*.part"))


def test_a_connection_that_breaks_is_taken_up_again(fetch, hub, models_dir, repositories):
    hub.cut = {BLOCK: 50_000}
    fetch()
    ranges = [given for method, path, given in hub.requests if path.startswith("/cdn/") and given]
    assert ranges
    assert all(int(given.removeprefix("bytes=").rstrip("-")) <= 50_000 for given in ranges)
    assert (
        content_of(models_dir / FOLDER)[f"distill_fp8/{BLOCK}"]
        == (repositories[MODEL_REPOSITORY] / "distill_fp8" / BLOCK).read_bytes()
    )


def test_a_server_without_ranges_costs_time_and_nothing_else(fetch, hub, models_dir):
    with pytest.raises(Cancelled):
        fetch(**stop_at(BLOCK))
    hub.ignores_ranges = True
    try:
        fetch()
    except DownloadError as error:
        # Until 1.x huggingface_hub appends what comes instead: the size is wrong and the part is dropped.
        assert error.problem == "damaged"
        fetch()
    assert resolve_checkpoint(models_dir / FOLDER, "fp8").missing == ()


def test_a_second_run_fetches_nothing(fetch, hub, models_dir):
    fetch()
    before = {path: path.stat().st_mtime_ns for path in models_dir.rglob("*.safetensors")}
    hub.requests.clear()
    fetch()
    assert [path for _, path, _ in hub.requests] == [f"/api/models/{MODEL_REPOSITORY}"]
    assert {path: path.stat().st_mtime_ns for path in models_dir.rglob("*.safetensors")} == before


def test_damage_in_transit_is_found_and_repaired_by_the_next_run(fetch, hub, models_dir):
    hub.corrupt = {BLOCK}
    with pytest.raises(DownloadError, match=r"block_1.safetensors arrived with a wrong hash and was dropped") as caught:
        fetch()
    assert caught.value.problem == "damaged"
    assert not list(models_dir.rglob(f"*{BLOCK}*"))
    hub.corrupt = set()
    fetch()


def test_small_files_are_verified_too(fetch, hub):
    hub.corrupt = {"config.json"}
    with pytest.raises(DownloadError, match=r"config.json arrived with a wrong hash"):
        fetch()


@pytest.mark.parametrize(
    ("content", "difference"), [(b"short", "5 bytes, published"), (None, "right size, wrong hash")]
)
def test_a_file_with_other_content_is_never_replaced_unasked(fetch, models_dir, repositories, content, difference):
    good = (repositories[MODEL_REPOSITORY] / "distill_fp8" / BLOCK).read_bytes()
    mine = content or good[:-1] + bytes([good[-1] ^ 1])
    target = models_dir / FOLDER / "distill_fp8" / BLOCK
    target.parent.mkdir(parents=True)
    target.write_bytes(mine)
    with pytest.raises(DownloadError, match=difference) as caught:
        fetch()
    assert caught.value.problem == "in the way"
    assert content_of(models_dir) == {target.relative_to(models_dir).as_posix(): mine}
    fetch(replace=True)
    assert target.read_bytes() == good


def test_a_file_being_replaced_stays_until_the_new_one_is_complete(fetch, models_dir):
    fetch()
    target = models_dir / FOLDER / "distill_fp8" / BLOCK
    target.write_bytes(b"mine")
    with pytest.raises(Cancelled):
        fetch(replace=True, **stop_at(BLOCK))
    assert target.read_bytes() == b"mine"


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_fetched(fetch, hub, models_dir, monkeypatch):
    usage = shutil.disk_usage(models_dir.parent)
    monkeypatch.setattr(hub_download.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DownloadError, match=r"Make room for .*iB more") as caught:
        fetch()
    assert caught.value.problem == "disk"
    assert hub.content_bytes == 0


def test_a_disk_that_fills_up_keeps_what_is_there(fetch, hub, models_dir, monkeypatch):
    full = stop_at(BLOCK)

    def no_space(*_):
        raise OSError(28, "No space left on device")

    check = full["check_cancel"]

    def check_cancel():
        try:
            check()
        except Cancelled:
            no_space()

    with pytest.raises(DownloadError, match="The disk is full") as caught:
        fetch(on_progress=full["on_progress"], check_cancel=check_cancel)
    assert caught.value.problem == "disk"
    assert list(models_dir.rglob("*.part"))


@pytest.mark.parametrize(
    ("status", "problem", "words"),
    [(401, "denied", "HF_TOKEN"), (403, "denied", "HF_TOKEN"), (404, "missing", "moved or removed")],
)
@pytest.mark.parametrize("where", ["api", "Wan2.1_VAE.pth"])
def test_refusals_are_explained(fetch, hub, status, problem, words, where):
    hub.statuses = {where: status}
    with pytest.raises(DownloadError, match=words) as caught:
        fetch()
    assert caught.value.problem == problem
    assert hub.url in str(caught.value)


def test_the_token_is_sent(fetch, hub, monkeypatch):
    hub.token = "hf_test"
    with pytest.raises(DownloadError) as caught:
        fetch()
    assert caught.value.problem == "denied"
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    fetch()
    assert "hf_test" not in str(caught.value)


def test_a_hub_that_is_not_there(models_dir):
    # Port 9 is reserved for a service nobody runs.
    with pytest.raises(DownloadError, match=r"http://127.0.0.1:9 failed .* set HF_ENDPOINT to a mirror") as caught:
        download(FP8, models_dir, endpoint="http://127.0.0.1:9")
    assert caught.value.problem == "unreachable"
    assert not models_dir.exists()


LISTED = {"rfilename": "a", "size": 12, "blobId": "1" * 40}
LFS = {"sha256": "2" * 64, "size": 12, "pointerSize": 1}


def listing(entry=None, **fields):
    return json.dumps({"id": "a/b", "sha": "0" * 40, "siblings": [LISTED | (entry or {})], **fields}).encode()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html>Sign in</html>", "JSONDecodeError"),
        (b"[]", "TypeError"),
        (b"[" * 100_000, "RecursionError"),
        (listing(siblings="x"), "TypeError"),
        (listing(siblings=[5]), "TypeError"),
        (listing({"rfilename": "a\0b"}), r"the path is 'a\x00b'"),
        (listing({"rfilename": "\ud800.safetensors"}), r"the path is '\ud800.safetensors'"),
        (listing({"rfilename": "a\nb"}), r"the path is 'a\nb'"),
        (listing({"rfilename": 5}), "the path is 5"),
        (listing({"size": "12"}), "the size of a is '12'"),
        (listing({"size": -1}), "the size of a is -1"),
        (listing({"size": True}), "the size of a is True"),
        (listing({"size": 1e999}), "the size of a is inf"),
        (listing({"size": None}), "the size of a is None"),
        (listing({"size": 10**400}), "the size of a is 1000"),
        (listing({"lfs": {**LFS, "sha256": "../../.."}}), "the hash of a is '../../..'"),
        (listing({"lfs": {**LFS, "sha256": None}}), "the hash of a is None"),
        (listing({"lfs": {**LFS, "sha256": "A" * 64}}), "the hash of a is 'AAAA"),
        (listing({"lfs": 5}), "TypeError"),
        (listing({"blobId": None}), "the hash of a is None"),
        (listing({"blobId": "../x"}), "the hash of a is '../x'"),
        (listing(sha="../main"), "the commit is '../main'"),
        (listing(sha=None), "the commit is None"),
        (listing(lastModified="x"), "ValueError"),
    ],
    ids=str,
)
def test_a_hostile_listing_is_refused_with_what_to_do(fetch, hub, models_dir, body, words):
    hub.listings[MODEL_REPOSITORY] = body
    with pytest.raises(DownloadError) as caught:
        fetch()
    assert str(caught.value).startswith(f"Open {hub.url}/{MODEL_REPOSITORY} in a browser: if a login page")
    assert words in str(caught.value) and len(str(caught.value)) < 800
    assert not models_dir.exists()


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ("socks5://127.0.0.1:9", "Run 'python -m pip install socksio', which a SOCKS proxy needs"),
        ("socks5h://me:secret@127.0.0.1:9", "Run 'python -m pip install socksio', which a SOCKS proxy needs"),
        ("socks4://me:secret@127.0.0.1:9", "Check the proxy of the environment"),
        ("ftp://127.0.0.1:9", "Check the proxy of the environment"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_a_sentence(models_dir, capsys, monkeypatch, proxy, words):
    from huggingface_hub.utils import close_session

    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", "")
    # The next one reads the proxy.
    close_session()
    code, out, err = call(capsys, "get", "fp8", "--models-dir", models_dir)
    close_session()
    assert (code, out) == (4, "")
    assert err.strip().startswith(f"download: {words}")
    assert "secret" not in err


@pytest.mark.parametrize("endpoint", ["nonsense", "htp://x", "http://a..b", f"http://{'a' * 70}.org", "http://\x01"])
def test_an_address_that_is_none_is_a_sentence(models_dir, endpoint):
    with pytest.raises(DownloadError, match=r"[Ss]et HF_ENDPOINT") as caught:
        download(FP8, models_dir, endpoint=endpoint)
    assert caught.value.problem == "unreachable"


@pytest.mark.parametrize("kind", [{"api": 401}, {"api": 503}, {}, None])
def test_a_password_in_the_address_is_in_no_message(hub, models_dir, kind):
    hub.statuses = kind or {}
    if kind == {}:
        hub.listings[MODEL_REPOSITORY] = b"[]"
    port = 9 if kind is None else hub.url.rpartition(":")[2]
    with pytest.raises(DownloadError) as caught:
        download(FP8, models_dir, endpoint=f"http://me:sec@ret@127.0.0.1:{port}")
    assert "ret@" not in str(caught.value) and "sec" not in str(caught.value)
    assert f"http://127.0.0.1:{port}" in str(caught.value)


@pytest.mark.parametrize("where", ["", "gone/", "../"])
def test_a_link_to_a_drive_that_is_not_there_is_not_replaced_unasked(fetch, hub, models_dir, where):
    files = plan_download(FP8, models_dir, endpoint=hub.url).files
    target = next(file.target for file in files if file.target.name == "Wan2.1_VAE.pth")
    target.parent.mkdir(parents=True)
    target.symlink_to(f"{where}elsewhere.pth")
    with pytest.raises(DownloadError, match=r"a link to .*elsewhere\.pth, which is not there") as caught:
        fetch()
    assert caught.value.problem == "in the way" and target.is_symlink()
    fetch(replace=True)
    assert target.is_file() and not target.is_symlink()
    assert not (target.parent / f"{where}elsewhere.pth").exists()


def test_one_download_at_a_time(fetch):
    errors = []

    def on_progress(*_):
        if not errors:
            with pytest.raises(DownloadError, match="Another download") as caught:
                fetch()
            errors.append(caught.value.problem)

    fetch(on_progress=on_progress)
    assert errors == ["busy"]


def test_a_published_file_that_no_loader_takes_is_reported(fetch, hub, repositories, tmp_path):
    broken = shutil.copytree(repositories[MODEL_REPOSITORY], tmp_path / "broken")
    (broken / "distill_fp8" / "block_0.safetensors").unlink()
    hub.repositories = {**repositories, MODEL_REPOSITORY: broken}
    with pytest.raises(CheckpointError, match=r"incomplete.*block_0\.safetensors"):
        fetch()


def run(*arguments, environment=None):
    """Run the script as a shell does."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return run_script("download.py", *arguments, environment=clean | (environment or {}))


@pytest.mark.slow
def test_the_command_honours_endpoint_and_token(hub, models_dir):
    hub.token = "hf_test"
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test"}
    done = run("get", "fp8", "--models-dir", models_dir, environment=environment)
    assert (done.returncode, done.stdout) == (0, f"{FP8.entry}\n"), done.stderr
    assert "100 %" in done.stderr
    assert resolve_checkpoint(models_dir / FP8.entry).missing == ()


def call(capsys, *arguments):
    code = download_cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_list_names_every_variant_with_its_size(capsys):
    code, out, _ = call(capsys, "list")
    assert code == 0
    for variant in ALL_PUBLISHED.values():
        assert f"{variant.name} " in out
    assert "20.7 GiB" in out and "37.7 GiB" in out and "GB" not in out.replace("GiB", "")


def test_parts_are_fetched_alone(hub, models_dir, capsys):
    options = ("--models-dir", models_dir, "--endpoint", hub.url, "--quiet")
    assert call(capsys, "get", "fp8", "--part", "text-encoder", "--part", "vae", *options)[0] == 0
    there = {path.name for path in models_dir.rglob("*") if path.is_file()}
    assert "Wan2.1_VAE.pth" in there and not {"block_0.safetensors", "config.json"} & there
    assert any(name.startswith("models_t5") for name in there) and "spiece.model" in there | {"spiece.model"}
    code, out, _ = call(capsys, "get", "fp8", "--part", "vae", *options)
    assert code == 0 and out.rstrip().endswith("Wan2.1_VAE.pth") and len(out.splitlines()) == 1
    with pytest.raises(SystemExit, match="2"):
        call(capsys, "get", "fp8", "--part", "clip-vision", *options)
    assert "fp8 has no part 'clip-vision'; its parts: transformer-blocks" in capsys.readouterr().err
    vae = next(models_dir.rglob("Wan2.1_VAE.pth"))
    vae.write_bytes(vae.read_bytes()[:-1])
    code, _, error = call(capsys, "get", "fp8", "--part", "vae", *options)
    assert code == 3 and "'python tools/download.py get fp8 --part vae --replace'" in error


def test_a_dry_run_shows_exact_sizes_and_fetches_nothing(hub, models_dir, capsys):
    code, out, _ = call(capsys, "get", "fp8", "--models-dir", models_dir, "--endpoint", hub.url, "--dry-run")
    plan = plan_download(FP8, models_dir, endpoint=hub.url)
    assert code == 0
    assert len(out.splitlines()) == len(plan.files) + 1
    assert out.count("to fetch") == len(plan.files) + 1
    assert not models_dir.exists()


@pytest.mark.parametrize(
    ("prepare", "code", "words"),
    [
        (lambda hub: hub.statuses.update(api=503), 4, "answered with status 503"),
        (lambda hub: hub.statuses.update(api=401), 4, "does not give access"),
        (lambda hub: hub.statuses.update({BLOCK: 404}), 3, "was moved or removed"),
        (lambda hub: hub.corrupt.add(BLOCK), 3, "wrong hash"),
    ],
)
def test_exit_codes(hub, models_dir, capsys, prepare, code, words):
    prepare(hub)
    found, out, err = call(capsys, "get", "fp8", "--models-dir", models_dir, "--endpoint", hub.url, "--quiet")
    assert (found, out) == (code, "")
    assert words in err
    assert "Traceback" not in err


def test_ctrl_c_says_that_the_next_run_goes_on(hub, models_dir, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(download_cli._Display, "update", interrupt)
    found, out, err = call(capsys, "get", "fp8", "--models-dir", models_dir, "--endpoint", hub.url)
    assert (found, out) == (130, "")
    assert "go on where it stopped" in err


def test_unknown_names_are_refused_with_the_known_ones():
    done = run("get", "fp4")
    assert done.returncode == 2
    assert "fp8" in done.stderr and "Traceback" not in done.stderr


def test_help_lists_the_exit_codes():
    done = run("--help")
    assert all(f"\n  {code} " in done.stdout for code in (0, 2, 3, 4, 5, 130))
