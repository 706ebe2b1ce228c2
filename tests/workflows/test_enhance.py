"""A workflow with LightX2V Enhance Prompt, run from the command line without ComfyUI."""

import json
from pathlib import Path

from support import llm_server
from support.examples import TEXT_TO_VIDEO, TINY
from support.llm_server import ENHANCED, LlmServer

GOLDEN = Path(__file__).parent / "golden" / f"{TEXT_TO_VIDEO.stem}.api.json"


def write_workflow(file, url, **values):
    """Write the first template with an enhancer before its text encoder."""
    prompt = json.loads(GOLDEN.read_text(encoding="utf-8"))
    inputs = {
        "text": "a red fox",
        "task": "t2v",
        "language": "en",
        "url": url,
        "model": "tiny",
        "seed": 5,
        "timeout": 10,
    }
    prompt["enhance"] = {"class_type": "LightX2VEnhancePrompt", "inputs": inputs | values}
    (encode,) = [node for node in prompt.values() if node["class_type"] == "LightX2VTextEncode"]
    encode["inputs"]["text"] = ["enhance", 0]
    file.write_text(json.dumps(prompt), encoding="utf-8")
    return file


def test_a_few_words_become_a_video(run, tmp_path):
    with LlmServer() as server:
        done = run(write_workflow(tmp_path / "enhance.json", server.url), *TINY[TEXT_TO_VIDEO])
    assert done.code == 0, done.stderr
    assert len(done.results) == 1 and done.results[0].is_file()
    assert ENHANCED in done.stderr and server.asked[0]["messages"][1]["content"] == "a red fox"


def test_a_server_that_fails_is_said_and_the_video_is_made(run, tmp_path):
    with LlmServer(llm_server.never) as server:
        done = run(write_workflow(tmp_path / "enhance.json", server.url, timeout=1), *TINY[TEXT_TO_VIDEO])
    assert done.code == 0, done.stderr
    assert done.results[0].is_file()
    assert "your own text is used" in done.stderr and "had not answered after 1 s" in done.stderr
