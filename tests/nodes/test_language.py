"""Each editor gets its own language: what routes answer, what is refused, what fails and how far a run is."""

import asyncio
import logging
import re
from types import SimpleNamespace

import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

CHINESE, ENGLISH = "a-chinese-editor", "an-english-editor"
CHARACTER = re.compile("[\u4e00-\u9fff]")


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
    ],
)
def test_a_route_answers_in_the_language_that_is_asked_for(server_of_two, accepted, is_chinese):
    status, answer = ask(server_of_two, "POST", "download", {"variant": "x"}, accepted)
    assert status == 400 and "'x'" in answer["error"] and "int8" in answer["error"]
    assert bool(CHARACTER.search(answer["error"])) == is_chinese
    assert ("expected one of" in answer["error"]) != is_chinese


@pytest.mark.parametrize("body", [{}, {"client": "a"}, {"language": "zh"}, {"client": "a", "language": "fr"}])
def test_a_language_is_not_noted_without_a_client_or_for_one_that_is_not_spoken(server_of_two, body):
    assert ask(server_of_two, "POST", "language", body)[0] == 400


def test_a_prompt_is_checked_in_the_language_of_its_editor(server_of_two, host, models_dir):
    node = host.classes["LightX2VLoadCheckpoint"]

    def check():
        return node.validate_inputs(checkpoint="gone")

    english = "No checkpoint was found. To have one, "
    assert server_of_two.post(ENGLISH, check).startswith(english)
    assert "models/lightx2v" in (said := server_of_two.post(CHINESE, check)) and CHARACTER.match(said)
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
    assert CHARACTER.search(said) and "object" in said and "Connect" not in said
    # The log, which others read, stays English.
    assert [record.getMessage()[:40] for record in caplog.records] == ["LightX2V: The vae input holds no VAE (fo"]
    assert caplog.records[0].levelno == logging.ERROR
    assert fail(None) == fail("unknown") == fail(ENGLISH)


def test_what_comfyuis_own_nodes_meet_is_said_to_the_editor_too(server_of_two):
    from lightx2v_pack.engine.adapters.comfy import progress, refusals
    from lightx2v_pack.engine.sentences.comfyui import Inputs

    server_of_two.client_id = CHINESE
    with pytest.raises(ValueError, match=CHARACTER.pattern), progress.reporting("3"):
        raise ValueError(Inputs.EMPTY_CONDITIONING())
    assert CHARACTER.match(str(refusals.cannot_be_merged()))
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
