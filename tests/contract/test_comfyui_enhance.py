"""LightX2V Enhance Prompt in a real ComfyUI, from the text to frames. Needs COMFYUI_DIR (and COMFYUI_PYTHON)."""

import shutil
import time

import pytest
from support import checkpoints, llm_server
from support.comfy_server import ComfyServer, comfyui_dir, event_of
from support.llm_server import ENHANCED, LlmServer

TEXT = "a red fox in the snow"
KEY = "sk-of-the-environment"


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    comfyui_dir()
    folder = tmp_path_factory.mktemp("comfyui")
    shutil.copytree(checkpoints.repository(), folder / "models" / "lightx2v" / "tiny")
    with ComfyServer(folder, environment={"LIGHTX2V_LLM_API_KEY": KEY}) as running:
        yield running


def enhancer(url, text=TEXT, **values):
    inputs = {"text": text, "task": "t2v", "language": "auto", "url": url, "model": "tiny-instruct", "seed": 1}
    return {"class_type": "LightX2VEnhancePrompt", "inputs": inputs | {"timeout": 20} | values}


def graph(enhance, seed=7):
    """The whole path, the prompt of which an enhancer makes."""
    loader = {"checkpoint": "tiny", "precision": "auto", "engine": "auto", "attention": "auto", "compile": "off"}
    sampler = {"transformer": ["load", 0], "conditioning": ["encode", 0], "latent": ["size", 0]}
    inputs = {
        "load": ("LightX2VLoadCheckpoint", loader),
        "encode": ("LightX2VTextEncode", {"text_encoder": ["load", 1], "text": ["enhance", 0], "device": "cpu"}),
        "size": ("LightX2VEmptyLatent", {"width": 64, "height": 48, "num_frames": 5, "batch_size": 1}),
        "sample": ("LightX2VSampler", {**sampler, "seed": seed, "method": "lcm", "steps": 4, "shift": 5.0}),
        "decode": ("LightX2VDecode", {"vae": ["load", 2], "latent": ["sample", 0], "tiling": "off"}),
        "png": ("SaveImage", {"images": ["decode", 0], "filename_prefix": "enhanced"}),
    }
    nodes = {name: {"class_type": kind, "inputs": values} for name, (kind, values) in inputs.items()}
    return {"enhance": enhance, **nodes}


def shown(entry):
    """Return (text, warning) on the node."""
    ui = entry["outputs"]["enhance"]
    return ui["text"][0], ui["warning"][0]


def is_cached(entry, node="enhance"):
    return node in event_of(entry, "execution_cached")["nodes"]


def test_from_a_few_words_to_frames(comfy):
    with LlmServer(is_ollama=True) as server:
        entry = comfy.run(graph(enhancer(server.url)))
    assert shown(entry) == (ENHANCED, "")
    assert len(entry["outputs"]["png"]["images"]) == 5
    assert server.paths == ["GET /api/version", "POST /v1/chat/completions", "POST /api/generate"]
    assert {headers["Authorization"] for *_, headers in server.requests} == {f"Bearer {KEY}"}
    assert KEY not in comfy.log_text() and KEY not in str(entry)


def test_an_answer_is_cached_and_a_new_seed_asks_again(comfy):
    with LlmServer() as server:
        comfy.run(graph(enhancer(server.url, "a cached fox")))
        entry = comfy.run(graph(enhancer(server.url, "a cached fox"), seed=8))
        assert is_cached(entry) and is_cached(entry, "encode") and len(server.asked) == 1
        comfy.run(graph(enhancer(server.url, "a cached fox", seed=2)))
        assert [request["seed"] for request in server.asked] == [1, 2]


def test_a_failure_is_not_cached(comfy):
    with LlmServer(llm_server.with_body({"error": "loading"}, 503)) as server:
        prompt = graph(enhancer(server.url, "a failed fox"))
        text, warning = shown(comfy.run(prompt))
        assert text == "a failed fox" and "status 503: loading" in warning
        assert warning in comfy.log_text()
        server.answer = llm_server.well
        assert shown(comfy.run(prompt)) == (ENHANCED, "")
        assert is_cached(comfy.run(prompt)) and len(server.asked) == 2


def test_a_linked_text_that_failed_is_asked_again_too(comfy):
    with LlmServer(llm_server.saying("")) as server:
        prompt = graph(enhancer(server.url, ["words", 0]))
        prompt["words"] = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "a linked fox"}}
        assert shown(comfy.run(prompt))[0] == "a linked fox"
        server.answer = llm_server.well
        assert shown(comfy.run(prompt)) == (ENHANCED, "")
        assert is_cached(comfy.run(prompt))


def test_without_a_server_the_users_text_makes_the_video(comfy):
    with LlmServer() as gone:
        pass
    entry = comfy.run(graph(enhancer(gone.url, "a lonely fox")))
    text, warning = shown(entry)
    assert text == "a lonely fox" and "cannot be reached" in warning
    assert len(entry["outputs"]["png"]["images"]) == 5


def test_the_queue_waits_no_longer_than_the_time_out(comfy):
    with LlmServer(llm_server.dripping(b"HTTP/1.1 200 OK\r\n\r\n", b" ")) as server:
        prompt = graph(enhancer(server.url, "a patient fox", timeout=2))
        comfy.run({name: prompt[name] for name in prompt if name != "enhance"} | {"enhance": enhancer("", "warm up")})
        start = time.monotonic()
        entry = comfy.run(prompt)
        took = time.monotonic() - start
    events = {name: data["timestamp"] for name, data in entry["status"]["messages"]}
    print(f"{took:.1f} s, of which the run {(events['execution_success'] - events['execution_start']) / 1000:.1f} s")
    assert shown(entry)[0] == "a patient fox" and "had not answered after 2 s" in shown(entry)[1]
    assert took < 2 + 20


def test_cancel_gets_through_while_the_server_is_waited_for(comfy):
    with LlmServer(llm_server.never) as server:
        prompt_id = comfy.queue(graph(enhancer(server.url, "an impatient fox", timeout=600)))
        deadline = time.monotonic() + 20
        while not server.asked and time.monotonic() < deadline:
            time.sleep(0.05)
        start = time.monotonic()
        comfy.post("/interrupt", {})
        entry = comfy.wait(prompt_id)
        assert time.monotonic() - start < 20
        assert event_of(entry, "execution_interrupted")
        assert server.broken.wait(10)
        server.answer = llm_server.well
        assert shown(comfy.run(graph(enhancer(server.url, "an impatient fox", timeout=600)))) == (ENHANCED, "")


def test_without_a_url_the_instructions_go_out(comfy):
    """With an empty URL nobody is asked, and the instructions go out."""
    text, warning = shown(comfy.run(graph(enhancer("", "a composed fox"))))
    assert text.endswith("Prompt:\na composed fox") and len(text) > 3000 and warning == ""


def test_a_public_address_is_not_asked(comfy):
    text, warning = shown(comfy.run(graph(enhancer("http://198.51.100.7:8080", "a private fox"))))
    assert text == "a private fox" and "LIGHTX2V_LLM_HOSTS" in warning
