"""Each editor gets its own language: what routes answer, what is refused, what fails and how far a run is."""

import asyncio
import json
import logging
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from lightx2v_pack.engine.sentences import Said
from support import checkpoints, loras
from support.chinese import CHINESE_CHARACTER, english_in

ROOT = Path(__file__).resolve().parents[2]
# What the panels read and do not show: states, kinds and engines by name.
NOT_SHOWN = {
    "state",
    "kind",
    "engine",
    "basis",
    "offload",
    "models_folder",
    "attention",
    "matmul",
    "sentence_id",
    "absent",
    "waits_for",
}
CHINESE, ENGLISH = "a-chinese-editor", "an-english-editor"


@pytest.fixture
def server_of_two(host, monkeypatch):
    """A server with an editor of each language; `client_id` is whose prompt runs, `post` what arrives as /prompt."""
    import server
    from lightx2v_pack.engine.adapters.comfy import language
    from lightx2v_pack.engine.panel import editor

    handlers, texts = [], []

    def post(client, check):
        """Call `check` where ComfyUI checks a prompt of this client."""
        for handler in handlers:
            assert handler(request := {"prompt": {}, "client_id": client}) is request
        return check()

    instance = SimpleNamespace(
        client_id=None,
        routes=web.RouteTableDef(),
        add_on_prompt_handler=handlers.append,
        send_progress_text=lambda text, node_id, sid=None: texts.append(text),
        texts=texts,
        post=lambda client, check: asyncio.run(_in_task(post, client, check)),
    )
    monkeypatch.setattr(server.PromptServer, "instance", instance)
    language.follow_prompts()
    editor.register_routes()
    for client, name in ((CHINESE, "zh"), (ENGLISH, "en")):
        status, answer = ask(instance, "POST", "language", {"client": client, "language": name})
        assert (status, answer) == (200, {})
    return instance


async def _in_task(function, *values):
    """A request is a task of its own."""
    return await asyncio.create_task(asyncio.to_thread(function, *values))


def ask(instance, method, name, body=None, accepted=""):
    async def send():
        app = web.Application()
        app.add_routes(instance.routes)
        headers = {"Accept-Language": accepted}
        async with (
            TestClient(TestServer(app)) as client,
            client.request(method, f"/lightx2v/{name}", json=body, headers=headers) as answer,
        ):
            return answer.status, await answer.json()

    return asyncio.run(send())


@pytest.mark.parametrize(
    ("accepted", "is_chinese"),
    [
        ("", False),
        ("en", False),
        ("fr-FR, de;q=0.5", False),
        ("zh", True),
        ("zh-CN,zh;q=0.9,en;q=0.8", True),
        ("fr, ZH-TW;q=0.2", True),
        ("en-US,en;q=0.9,zh;q=0.8", False),
        ("en;q=0.5, zh;q=0.9", True),
        ("zh_CN", True),
        ("zh-Hans-CN", True),
        ("zh;q=0", False),
    ],
)
def test_a_route_answers_in_the_language_that_is_asked_for(server_of_two, accepted, is_chinese):
    status, answer = ask(server_of_two, "POST", "download", {"variant": "x"}, accepted)
    assert status == 400 and "'x'" in answer["error"] and "int8" in answer["error"]
    assert bool(CHINESE_CHARACTER.search(answer["error"])) == is_chinese
    assert ("expected one of" in answer["error"]) != is_chinese


@pytest.mark.parametrize("body", [{}, {"client": "a"}, {"language": "zh"}, {"client": "a", "language": "fr"}])
def test_a_language_is_not_noted_without_a_client_or_for_one_that_is_not_spoken(server_of_two, body):
    assert ask(server_of_two, "POST", "language", body)[0] == 400


@pytest.mark.parametrize("tag", ["zh-CN", "zh_CN", "zh-Hans", "ZH"])
def test_an_editor_may_name_its_language_in_any_spelling(server_of_two, host, models_dir, tag):
    assert ask(server_of_two, "POST", "language", {"client": "third", "language": tag})[0] == 200
    said = server_of_two.post(
        "third", lambda: host.classes["LightX2VLoadCheckpoint"].validate_inputs(checkpoint="gone")
    )
    assert CHINESE_CHARACTER.match(said)


def test_a_prompt_is_checked_in_the_language_of_its_editor(server_of_two, host, models_dir):
    node = host.classes["LightX2VLoadCheckpoint"]

    def check():
        return node.validate_inputs(checkpoint="gone")

    english = "No checkpoint was found. To have one, "
    assert server_of_two.post(ENGLISH, check).startswith(english)
    assert "models/lightx2v" in (said := server_of_two.post(CHINESE, check)) and CHINESE_CHARACTER.match(said)
    # Programs, and editors that said nothing.
    assert server_of_two.post("unknown", check).startswith(english)
    assert server_of_two.post(None, check).startswith(english)


def test_an_error_of_a_node_is_said_to_the_editor_whose_prompt_runs(server_of_two, run, models_dir, caplog):
    def fail(client):
        server_of_two.client_id = client
        with pytest.raises(ValueError) as caught:
            run("LightX2VDecode", vae=object(), latent={"samples": torch.zeros(1, 16, 1, 8, 8)}, tiling="auto")
        return str(caught.value)

    assert fail(ENGLISH).startswith("The vae input holds no VAE (found object). Connect ")
    assert not caplog.records
    said = fail(CHINESE)
    assert CHINESE_CHARACTER.search(said) and "object" in said and "Connect" not in said
    # The log, which others read, stays English.
    assert [record.getMessage()[:40] for record in caplog.records] == ["LightX2V: The vae input holds no VAE (fo"]
    assert caplog.records[0].levelno == logging.ERROR
    assert fail(None) == fail("unknown") == fail(ENGLISH)


def test_what_comfyuis_own_nodes_meet_is_said_to_the_editor_too(server_of_two):
    from lightx2v_pack.engine.adapters.comfy import progress, refusals
    from lightx2v_pack.engine.sentences.comfyui import Inputs

    server_of_two.client_id = CHINESE
    with pytest.raises(ValueError, match=CHINESE_CHARACTER.pattern), progress.reporting("3"):
        raise ValueError(Inputs.EMPTY_CONDITIONING())
    assert CHINESE_CHARACTER.match(str(refusals.cannot_be_merged()))
    server_of_two.client_id = ENGLISH
    assert str(refusals.cannot_be_merged()).startswith("Merge models")


def test_a_cancelled_run_stays_one(server_of_two):
    import comfy.model_management as mm
    from lightx2v_pack.engine.adapters.comfy import progress

    server_of_two.client_id = CHINESE
    with pytest.raises(mm.InterruptProcessingException) as caught, progress.reporting("3"):
        raise mm.InterruptProcessingException()
    assert caught.value.args == ()


def test_only_so_many_editors_are_remembered(server_of_two):
    from lightx2v_pack.engine.adapters.comfy import language
    from lightx2v_pack.engine.sentences import translated
    from lightx2v_pack.engine.sentences.comfyui import Inputs

    for number in range(999):
        language.remember_editor(f"editor {number}", "zh")
    server_of_two.client_id = CHINESE
    assert language.to_editor(Inputs.EMPTY_CONDITIONING()).startswith("The conditioning")
    server_of_two.client_id = "editor 998"
    assert language.to_editor(Inputs.EMPTY_CONDITIONING()).startswith(translated(Inputs.EMPTY_CONDITIONING(), "zh"))


def texts_of(data):
    if isinstance(data, dict):
        return [text for name, value in data.items() if name not in NOT_SHOWN for text in texts_of(value)]
    if isinstance(data, list | tuple):
        return [text for value in data for text in texts_of(value)]
    return [data] if isinstance(data, str) else []


@pytest.fixture
def parts_kept(monkeypatch):
    """A text that the pack puts together from a sentence by an f-string fails: it cannot be said again."""

    def put_together(said, spec):
        caller = Path(sys._getframe(1).f_code.co_filename)
        assert (
            not caller.is_relative_to(ROOT)
            or caller.is_relative_to(ROOT / "engine" / "sentences")
            or (caller.is_relative_to(ROOT / "tests"))
        ), f"{caller} puts together: {said}"
        return str.__format__(said, spec)

    monkeypatch.setattr(Said, "__format__", put_together, raising=False)


@pytest.fixture
def repository(models_dir):
    """The tiny model repository in models/lightx2v, as links."""
    shutil.copytree(checkpoints.repository(), models_dir / "lightx2v" / "tiny", copy_function=os.symlink)
    return models_dir / "lightx2v" / "tiny"


HUGE = {"width": 4096, "height": 4096, "frames": 4097}
QUESTIONS = [
    ("plan", {"checkpoint": "tiny", "lora_1": "tiny.safetensors", "uses_vae": 1, "uses_text_encoder": 1}),
    ("plan", {"checkpoint": "tiny", "width": 833}),
    ("plan", {"checkpoint": "tiny", "frames": 6}),
    ("plan", {"checkpoint": "tiny", "engine": "lightx2v", "compile": "on"}),
    ("plan", {"checkpoint": "tiny", "engine": "lightx2v"}),
    ("plan", {"checkpoint": "tiny", "gpus": "2"}),
    ("plan", {"checkpoint": "tiny", "gpus": "x"}),
    ("plan", {"checkpoint": "tiny", "attention": "triton"}),
    ("plan", {"checkpoint": "tiny", "offload": "none", **HUGE}),
    ("plan", {"checkpoint": "tiny", "batch": 50, **HUGE}),
    ("plan", {"checkpoint": "tiny/distill_fp8", "precision": "int8"}),
    ("plan", {"checkpoint": "gone"}),
    ("plan", {}),
    ("plan", {"checkpoint": "tiny", "width": "wide"}),
    ("plan", {"transformer": "page.safetensors"}),
    ("plan", {"transformer": "t5.safetensors"}),
    ("plan", {"transformer": "lora.safetensors"}),
    ("plan", {"transformer": "cut.safetensors"}),
    ("lora", {"checkpoint": "tiny", "lora": "tiny.safetensors"}),
    ("lora", {"checkpoint": "tiny", "lora": "tiny.safetensors", "lora_expert": "high"}),
    ("lora", {"checkpoint": "tiny", "lora": "other.safetensors"}),
    ("lora", {"checkpoint": "tiny"}),
    ("doctor", {}),
    ("downloads", {}),
    ("downloads", {"file_1": "wan_2.1_vae.safetensors", "file_2": "gone.safetensors"}),
    ("verification", {}),
]


def test_nothing_that_the_panels_show_is_english(server_of_two, repository, models_dir, parts_kept):
    weights = checkpoints.transformer_weights()
    drawn = loras.draw(weights, modules=["blocks.0.self_attn.q", "blocks.1.ffn.0"])
    loras.write(models_dir / "loras" / "tiny.safetensors", drawn)
    pair = drawn.pairs["blocks.0.self_attn.q"]
    loras.write(models_dir / "loras" / "other.safetensors", loras.Drawn({"blocks.9.self_attn.q": pair}))
    folder = models_dir / "diffusion_models"
    (folder / "page.safetensors").write_text("<!doctype html>" + " " * 50)
    shutil.copy(checkpoints.text_encoder("fp8"), folder / "t5.safetensors")
    shutil.copy(models_dir / "loras" / "tiny.safetensors", folder / "lora.safetensors")
    whole = next((repository / "distill_models").glob("*.safetensors")).read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-9])
    english = {}
    for name, values in QUESTIONS:
        query = "&".join(f"{key}={value}" for key, value in values.items())
        status, answer = ask(server_of_two, "GET", f"{name}?{query}", None, "zh")
        english |= {text: found for text in texts_of(answer) if (found := english_in(text))}
        assert status == 200 or CHINESE_CHARACTER.search(answer["error"])
    assert english == {}


def test_nothing_that_a_run_shows_is_english(server_of_two, repository, run, host, parts_kept):
    server_of_two.client_id = CHINESE
    transformer, text_encoder, vae = run(
        "LightX2VLoadCheckpoint", checkpoint="tiny", precision="auto", engine="auto", attention="auto", compile="off"
    )
    (conditioning,) = run("LightX2VTextEncode", text_encoder=text_encoder, text="a red fox", device="cpu")
    (latent,) = run("LightX2VEmptyLatent", width=64, height=48, num_frames=5, batch_size=1)
    sampling = {"transformer": transformer, "seed": 1, "method": "lcm", "steps": 2, "shift": 3.0}
    (sampled,) = run("LightX2VSampler", conditioning=conditioning, latent=latent, **sampling)
    (image,) = run("LightX2VDecode", vae=vae, latent=sampled, tiling="on")
    shown = host.classes["LightX2VReport"].PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(image=image).ui
    rows = json.loads(shown["table"][0])
    texts = [*server_of_two.texts, *texts_of(rows), shown["markdown"][0].replace("---", "")]
    assert len(set(server_of_two.texts)) > 8
    failures = {
        "LightX2VSampler": {**sampling, "conditioning": [], "latent": latent},
        "LightX2VTextEncode": {"text_encoder": text_encoder, "text": "x", "device": "gpu"},
        "LightX2VEmptyLatent": {"width": 65, "height": 48, "num_frames": 5, "batch_size": 1},
        "LightX2VReport": {},
        "LightX2VGPUs": {"gpus": "x"},
        "LightX2VDecode": {"vae": vae, "latent": {"samples": torch.zeros(1, 4, 8, 8)}, "tiling": "auto"},
        "LightX2VLoadVAE": {"vae": "gone"},
        "LightX2VOffload": {
            "mode": "none", "vram_budget_gib": -1.0, "pinned_ram_limit_gib": 0.0, "vae_tiling": "auto",
        },
    }  # fmt: skip
    for node, inputs in failures.items():
        with pytest.raises((ValueError, RuntimeError)) as caught:
            run(node, **inputs)
        texts.append(str(caught.value))
        assert CHINESE_CHARACTER.search(texts[-1]), node
    assert {text: found for text in texts if (found := english_in(text))} == {}
    # The report as data is for tools.
    assert json.loads(shown["text"][0])["stages"][0]["stage"] == "load_text_encoder"
