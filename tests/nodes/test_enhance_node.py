"""LightX2V Enhance Prompt as ComfyUI calls it: what it shows, what it remembers, what it refuses."""

import functools
from types import SimpleNamespace

import pytest
import torch
from support import llm_server
from support.comfy_nodes import validate
from support.llm_server import ENHANCED, LlmServer

NODE = "LightX2VEnhancePrompt"
TEXT = "a red fox in the snow"
WIDGETS = {
    "text": TEXT,
    "task": "t2v",
    "language": "auto",
    "model": "tiny-instruct",
    "seed": 3,
    "timeout": 10,
    "instructions": "",
}


@pytest.fixture
def execute(host):
    """execute(links, **inputs) -> the node's output; `links` are inputs that the graph has as links."""
    from comfy_api.latest import io

    def run_node(links=(), **inputs):
        in_graph = {name: ["1", 0] if name in links else value for name, value in inputs.items()}
        dynprompt = SimpleNamespace(get_node=lambda node_id: {"class_type": NODE, "inputs": in_graph})
        hidden = {io.Hidden.unique_id: "7", io.Hidden.dynprompt: dynprompt}
        clone = host.classes[NODE].PREPARE_CLASS_CLONE({"hidden_inputs": hidden})
        return clone.EXECUTE_NORMALIZED(**inputs)

    return run_node


@pytest.fixture
def fingerprint(host):
    """fingerprint(links, **inputs), as ComfyUI asks for it: linked inputs are None."""

    def ask(links=(), **inputs):
        return host.classes[NODE].fingerprint_inputs(**{n: None if n in links else v for n, v in inputs.items()})

    return ask


def test_the_prompt_goes_out_and_is_shown(execute):
    with LlmServer() as server:
        output = execute(**WIDGETS, url=server.url)
    assert output.args == (ENHANCED,)
    assert output.ui == {"text": [ENHANCED], "warning": [""]}
    assert server.asked[0]["seed"] == 3 and server.asked[0]["model"] == "tiny-instruct"


def test_a_failure_gives_the_text_and_shows_why(execute):
    with LlmServer(llm_server.saying("")) as server:
        output = execute(**WIDGETS, url=server.url)
    assert output.args == (TEXT,) and output.ui["text"] == [TEXT]
    assert "answered with an empty text" in output.ui["warning"][0]


@pytest.mark.parametrize("links", [(), ("text",), ("text", "seed", "url")])
def test_a_failure_is_asked_again_and_an_answer_is_kept(execute, fingerprint, links):
    with LlmServer(llm_server.saying("")) as server:
        inputs = WIDGETS | {"url": server.url}
        before = fingerprint(links, **inputs)
        execute(links, **inputs)
        failed = fingerprint(links, **inputs)
        assert failed != before
        server.answer = llm_server.well
        execute(links, **inputs)
        assert fingerprint(links, **inputs) == failed == fingerprint(links, **inputs)


def test_a_failure_is_that_of_its_node_only(execute, fingerprint):
    with LlmServer(llm_server.saying("")) as server:
        other = WIDGETS | {"url": server.url, "text": "a blue boat"}
        before = fingerprint(**other)
        execute(**WIDGETS, url=server.url)
        assert fingerprint(**other) == before


def test_without_a_graph_it_runs_too(run):
    with LlmServer() as server:
        assert run(NODE, **WIDGETS, url=server.url) == (ENHANCED,)
    assert run(NODE, **WIDGETS, url=server.url) == (TEXT,)


def test_the_first_frame_is_sent_for_i2v(execute):
    image = torch.rand(2, 48, 64, 3)
    with LlmServer() as server:
        execute(**(WIDGETS | {"task": "i2v"}), url=server.url, image=image)
        execute(**WIDGETS, url=server.url, image=image)
    (shown, _), plain = server.asked[0]["messages"][1]["content"], server.asked[1]["messages"][1]["content"]
    assert shown["image_url"]["url"].startswith("data:image/jpeg;base64,") and plain == TEXT


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.rand(1, 48, 64, 3) * 255, "Bring the values of image to 0 to 1"),
        (torch.rand(48, 64, 3), "image is float32 of shape"),
        (torch.zeros(0, 48, 64, 3), "image is empty"),
    ],
)
def test_what_is_no_picture_is_refused_before_anybody_is_asked(execute, image, said):
    with LlmServer() as server:
        with pytest.raises(ValueError, match=said):
            execute(**(WIDGETS | {"task": "i2v"}), url=server.url, image=image)
        assert not server.asked


def test_cancel_stops_the_wait(execute, shown, monkeypatch):
    import comfy.model_management as mm

    checks = []
    original = mm.throw_exception_if_processing_interrupted

    def cancel_at_third():
        checks.append(None)
        if len(checks) == 3:
            mm.interrupt_current_processing()
        original()

    monkeypatch.setattr(mm, "throw_exception_if_processing_interrupted", cancel_at_third)
    with LlmServer(llm_server.never) as server:
        with pytest.raises(mm.InterruptProcessingException):
            execute(**(WIDGETS | {"timeout": 60}), url=server.url)
        assert server.broken.wait(10)


def test_the_wait_is_shown_second_by_second(execute, shown):
    with LlmServer(llm_server.after(1.2)) as server:
        execute(**WIDGETS, url=server.url)
    assert shown.texts[0] == ("7", "waiting for the language model, second 1/10")


@pytest.mark.parametrize("wrong", [{"task": "v2v"}, {"language": "fr"}])
def test_choices_are_checked(host, execute, wrong):
    check = functools.partial(validate, host.classes[NODE])
    assert "expected one of" in check(**({"task": "t2v", "language": "auto"} | wrong))
    assert check(task="t2v", language="zh") is True and check(task=None, language="fr") is True
    with pytest.raises(ValueError, match="expected one of"):
        execute(**(WIDGETS | wrong), url="")


def test_there_is_no_place_for_a_key(host):
    names = [each.id for each in host.classes[NODE].GET_SCHEMA().inputs]
    assert not [name for name in names if "key" in name or "token" in name]
