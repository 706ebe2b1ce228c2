"""The pack's HTTP routes on a real ComfyUI. Needs COMFYUI_DIR (and COMFYUI_PYTHON)."""

import json
import re
import shutil
import time
import urllib.error
import urllib.request

import pytest
from support import checkpoints
from support.comfy_server import ComfyServer, comfyui_dir, error_of, refusal_of
from support.node_schemas import read_golden
from support.prompts import loader, size


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    comfyui_dir()
    folder = tmp_path_factory.mktemp("comfyui")
    shutil.copytree(checkpoints.repository(), folder / "models" / "lightx2v" / "tiny")
    (folder / "models" / "diffusion_models").mkdir()
    shutil.copy(checkpoints.single_file("int8"), folder / "models" / "diffusion_models")
    with ComfyServer(folder) as running:
        yield running


def ask(server, path, body=None, **headers):
    """Return (status, JSON) of a request; with a body it is a POST."""
    request = urllib.request.Request(f"{server.url}/lightx2v/{path}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_plan_of_a_checkpoint(server):
    status, plan = ask(server, "plan?checkpoint=tiny&precision=int8&width=128&height=64&frames=9&batch=2&steps=4")
    assert status == 200 and plan["ok"] and plan["detected"].startswith("int8 file, bf16 compute, 2 blocks")
    assert (plan["engine"], plan["tokens"], plan["missing"]) == ("portable", 96, [])


def test_the_plan_of_a_single_file(server):
    name = checkpoints.single_file("int8").name
    status, plan = ask(server, f"plan?transformer={name}&offload=block&vram_budget_gib=8.5&vae_tiling=on")
    assert status == 200 and plan["detected"].startswith("int8") and plan["is_tiled"] and plan["offload"] == "block"


def test_a_known_question_is_answered_in_milliseconds(server):
    times = []
    for width in range(16, 16 * 21, 16):
        start = time.perf_counter()
        ask(server, f"plan?checkpoint=tiny&width={width}")
        times.append(time.perf_counter() - start)
    print(f"median {sorted(times)[10] * 1000:.1f} ms, slowest {max(times) * 1000:.1f} ms")
    assert sorted(times)[10] < 0.1


@pytest.mark.parametrize("name", ["never%20downloaded", "none%20found:%20put%20the%20checkpoint%20there"])
def test_a_model_that_is_not_there_is_an_answer(server, name):
    status, plan = ask(server, f"plan?checkpoint={name}")
    assert status == 200 and not plan["ok"] and plan["is_absent"] and "was not found" in plan["sentence"]


def test_choices_that_exclude_each_other_are_an_answer(server):
    status, plan = ask(server, "plan?checkpoint=tiny&engine=lightx2v&compile=on")
    assert status == 200 and not plan["ok"] and not plan["is_absent"]
    assert plan["sentence"].startswith("Set compile to 'auto', or engine to 'auto'")


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("plan", "plan needs one of checkpoint and transformer; found neither."),
        ("plan?checkpoint=tiny&transformer=x", "found checkpoint and transformer"),
        ("plan?checkpoint=tiny&width=wide", "width is 'wide'; expected a number."),
        ("plan?checkpoint=tiny&width=99999", "width is 99999; expected 1 to 8192."),
        ("plan?checkpoint=tiny&vram_budget_gib=nan", "expected 0 to 1024"),
        ("plan?checkpoint=tiny&precision=fp4", "precision is 'fp4'; expected one of: auto, fp8, int8, bf16."),
        ("plan?checkpoint=tiny&cfg=7", "plan has no parameter 'cfg'"),
        ("plan?checkpoint=" + "x" * 1100, "at most 1000 characters"),
        ("plan?checkpoint=../../etc/passwd", "expected a name that the node offers"),
        ("plan?checkpoint=tiny/../../../etc", "expected a name that the node offers"),
        ("plan?checkpoint=/etc/passwd", "expected a name that the node offers"),
        ("plan?checkpoint=C:/Windows", "expected a name that the node offers"),
        ("plan?checkpoint=..%5C..%5Csecret", "expected a name that the node offers"),
        ("plan?checkpoint=tiny%00", "expected a name that the node offers"),
        ("doctor?path=/etc", "doctor has no parameter 'path'; expected any of: none."),
    ],
)
def test_a_bad_request_gets_a_sentence(server, query, sentence):
    status, answer = ask(server, query)
    assert status == 400 and sentence in answer["error"]
    assert "/models/" not in answer["error"]


def test_the_doctor_lists_this_machine_and_its_checkpoints(server):
    status, items = ask(server, "doctor")
    found = {item["name"]: item["state"] for item in items}
    assert status == 200 and found["tiny/distill_fp8"] == "ok"
    assert {"Card", "torch", "LightX2V", "RAM", "Disk"} <= found.keys()


def test_downloads_are_listed_and_a_bad_one_is_refused(server):
    status, downloads = ask(server, "downloads")
    assert status == 200 and {"fp8", "int8", "bf16"} <= {variant["name"] for variant in downloads["variants"]}
    assert downloads["progress"]["name"] == ""
    kind = {"Content-Type": "application/json"}
    for body, headers, sentence in (
        (b'{"variant": "fp4"}', kind, "variant is 'fp4'; expected one of"),
        (b"{}", kind, "download needs variant"),
        (b"[1]", kind, "not a JSON object"),
        (b'{"variant": 7}', kind, "not a text"),
        (b"{", kind, ""),
        # What a form on a page of another site could send.
        (b"variant=fp8", {"Content-Type": "application/x-www-form-urlencoded"}, "has no JSON body"),
        (b'{"variant": "fp8"}', {"Content-Type": "text/plain"}, "has no JSON body"),
    ):
        status, answer = ask(server, "download", body, **headers)
        assert status == 400 and sentence in answer["error"]
    assert ask(server, "downloads")[1]["progress"]["name"] == ""


def test_only_json_makes_it_measure_again(server):
    assert ask(server, "measure_again", b"{}", **{"Content-Type": "application/json"}) == (200, {})
    status, answer = ask(server, "measure_again", b"", **{"Content-Type": "text/plain"})
    assert status == 400 and "has no JSON body" in answer["error"]


def test_a_page_of_another_site_gets_nothing(server):
    request = urllib.request.Request(f"{server.url}/lightx2v/doctor", headers={"Origin": "http://evil.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code == 403


def test_nodes_stay_when_a_model_folder_is_deleted(server):
    extra = server.models / "lightx2v" / "soon gone"
    shutil.copytree(checkpoints.repository() / "distill_fp8", extra)
    assert ask(server, "plan?checkpoint=soon%20gone")[1]["ok"]
    server.get("/object_info")
    shutil.rmtree(extra)
    assert read_golden().keys() <= server.get("/object_info").keys()
    assert ask(server, "plan?checkpoint=soon%20gone")[1]["is_absent"]


def test_two_editors_at_one_server_get_each_its_own_language(server):
    """Of the route they ask, of a prompt that is refused, and of one that fails in our node or in ComfyUI's own."""
    chinese = re.compile("[\u4e00-\u9fff]")
    for client, language in (("one", "zh"), ("other", "en")):
        assert server.post("/lightx2v/language", {"client": client, "language": language}) == (200, {})
    assert chinese.search(ask(server, "plan?width=0", **{"Accept-Language": "zh-CN,zh;q=0.9"})[1]["error"])
    merge = {"model1": ["load", 0], "model2": ["load", 0], "ratio": 0.5}
    save = {"model": ["merge", 0], "filename_prefix": "merged"}
    failing = {
        "refused": {
            "size": size(width=65),
            "report": {"class_type": "LightX2VReport", "inputs": {"latent": ["size", 0]}},
        },
        "our node's": {"report": {"class_type": "LightX2VReport", "inputs": {}}},
        "ComfyUI's": {
            "load": loader(),
            "merge": {"class_type": "ModelMergeSimple", "inputs": merge},
            "save": {"class_type": "ModelSave", "inputs": save},
        },
    }
    english = {
        "refused": "width is 65; expected a multiple of 16",
        "our node's": "LightX2V Report has no input",
        "ComfyUI's": "Merge models that are loaded with 'Load Diffusion Model'",
    }
    for what, prompt in failing.items():
        said = {}
        for client in ("one", "other", None):
            status, answer = server.post("/prompt", {"prompt": prompt, "client_id": client})
            assert (status == 400) == (what == "refused"), answer
            said[client] = refusal_of(answer) if status == 400 else error_of(server.wait(answer["prompt_id"]))
        assert chinese.search(said["one"]) and not chinese.search(said["other"]), said
        assert said["other"] == said[None] and english[what] in said[None] and english[what] not in said["one"]
    assert english["our node's"] in server.log_text()
