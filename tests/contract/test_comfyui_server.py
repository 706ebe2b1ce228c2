"""The pack in a real ComfyUI on the CPU. Needs COMFYUI_DIR (and COMFYUI_PYTHON with requirements.txt installed)."""

import asyncio
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import aiohttp
import pytest
import torch
from lightx2v_pack.tools.make_tiny_checkpoint import TinySizes
from PIL import Image
from support import checkpoints, examples
from support.comfy_server import ROOT, ComfyServer, comfyui_dir, error_of, event_of, refusal_of, run_in_comfyui
from support.node_schemas import describe_node, read_golden
from support.prompts import loader, size, text_to_frames
from support.tensors import relative_error

HERE = Path(__file__).parent
# A transformer whose steps take long on a CPU, in many short blocks.
SLOW = TinySizes(num_layers=40, dim=512, ffn_dim=2048)
SLOW_FILE = "slow.safetensors"
PREVIEW_EVENTS, TEXT_EVENT = {1, 4}, 3


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    comfyui_dir()
    folder = tmp_path_factory.mktemp("comfyui")
    extra = folder / "second drive"
    (folder / "models").mkdir()
    examples.write_models(folder / "models")
    link(checkpoints.repository(), folder / "models" / "lightx2v" / "tiny")
    link(checkpoints.repository(), extra / "wan models" / "tiny on the second drive")
    link(checkpoints.comfy_text_encoder(), folder / "models" / "text_encoders" / "umt5_xxl_fp16.safetensors")
    link(checkpoints.single_file("bf16", sizes=SLOW), folder / "models" / "diffusion_models" / SLOW_FILE)
    write_broken_checkpoints(folder / "models" / "lightx2v")
    config = folder / "extra_model_paths.yaml"
    config.write_text(f"other:\n  base_path: {extra}\n  lightx2v: wan models\n", encoding="utf-8")
    arguments = ("--preview-method", "latent2rgb", "--extra-model-paths-config", str(config))
    with ComfyServer(folder, extra_nodes=(HERE / "probe_nodes",), arguments=arguments) as running:
        yield running


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source, target_is_directory=source.is_dir())


def write_broken_checkpoints(folder: Path) -> None:
    shutil.copytree(checkpoints.repository() / "distill_fp8", folder / "block missing", copy_function=os.symlink)
    (folder / "block missing" / "block_0.safetensors").unlink()
    whole = checkpoints.single_file("bf16").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "corrupt.safetensors").write_bytes(b"\0" * 64)


def graph(name="run", *, text="a red fox in the snow", seed=7, checkpoint="tiny", latent=None, **changes):
    """The whole path, with latents, frames and conditioning saved as <name>_*.pt and frames as PNG files."""
    png = {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": name}}
    nodes = text_to_frames(text=text, seed=seed, checkpoint=checkpoint, latent=latent) | {"png": png} | changes
    saved = {"latent": "sample", "image": "decode", "rows": "encode"}
    for what, node in saved.items():
        if node in nodes:
            inputs = {"value": [node, 0], "name": f"{name}_{what}"}
            nodes[f"save {what}"] = {"class_type": "ProbeSave", "inputs": inputs}
    return nodes


def saved(server, name):
    return torch.load(server.output / f"{name}.pt", weights_only=True)


def expect_error(server, prompt, sentence):
    """Queue a bad prompt: it is refused, or ends, with the sentence, and the next queue item runs."""
    # ComfyUI runs those outputs of a prompt that are fine: leave one.
    prompt = {name: node for name, node in prompt.items() if node["class_type"] != "ProbeSave"}
    status, answer = server.post("/prompt", {"prompt": prompt})
    if status == 400:
        said = refusal_of(answer)
    else:
        entry = server.wait(answer["prompt_id"])
        assert entry["status"]["status_str"] == "error"
        said = error_of(entry)
    assert sentence in said
    server.run({"size": size(), "save": {"class_type": "ProbeSave", "inputs": {"value": ["size", 0], "name": "next"}}})


def forget_everything(server):
    """Unload models and drop ComfyUI's cache of node outputs."""
    server.free(lambda: not server.get("/probe/handles"), unload_models=True, free_memory=True)


def test_all_nodes_have_the_stored_schemas(server):
    infos = server.get("/object_info")
    assert {name: describe_node(info) for name, info in infos.items() if name.startswith("LightX2V")} == read_golden()


def test_checkpoints_of_extra_model_paths_are_offered_and_run(server):
    info = server.get("/object_info/LightX2VLoadCheckpoint")["LightX2VLoadCheckpoint"]
    offered = info["input"]["required"]["checkpoint"][1]["options"]
    assert {"tiny", "tiny/distill_fp8", "tiny on the second drive"} <= set(offered)
    server.run(graph("second", checkpoint="tiny on the second drive"))
    server.run(graph("first"))
    assert torch.equal(saved(server, "first_latent"), saved(server, "second_latent"))


def test_help_and_translations_are_served(server):
    texts = server.get("/i18n")
    assert texts["zh"]["nodeDefs"]["LightX2VSampler"]["display_name"].startswith("LightX2V")
    for node_id in read_golden():
        with urllib.request.urlopen(f"{server.url}/extensions/ComfyUI-LightX2V/docs/{node_id}.md") as page:
            assert page.read().startswith(b"# LightX2V"), node_id


def test_one_seed_gives_identical_bytes_twice_and_headless(server, tmp_path):
    server.run(graph("once"))
    forget_everything(server)
    entry = server.run(graph("twice"))
    assert not event_of(entry, "execution_cached")["nodes"]
    for what in ("latent", "image", "rows"):
        assert torch.equal(saved(server, f"once_{what}"), saved(server, f"twice_{what}")), what
    frames = [server.output / image["filename"] for image in entry["outputs"]["png"]["images"]]
    headless = run_headless(graph("headless"), server.models, tmp_path)
    assert len(frames) == len(headless) == 5
    for ours, theirs in zip(headless, frames, strict=True):
        assert Image.open(ours).tobytes() == Image.open(theirs).tobytes()


def run_headless(prompt, models, folder):
    """Run the graph without a server and return the frames it saved."""
    prompt = {name: node for name, node in prompt.items() if not node["class_type"].startswith("Probe")}
    (folder / "prompt.json").write_text(json.dumps(prompt), encoding="utf-8")
    command = [sys.executable, ROOT / "tools" / "run_workflow.py", folder / "prompt.json"]
    command += ["--models-dir", models, "--output-dir", folder / "output"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return sorted((folder / "output").rglob("headless*.png"))


def test_our_samplers_and_latents_are_comfyuis(server):
    parity = run_in_comfyui(HERE / "in_comfy" / "sampler_parity.py", ROOT, checkpoints.single_file("bf16"))
    for method in ("lcm", "euler"):
        assert parity[f"{method}_std"] > 0.1
        # Same flows, sigmas and noise; the order of float32 operations differs by a few roundings.
        assert parity[method] < 1e-5
        assert parity[f"{method}_inputs"] < 1e-5
        assert parity[f"{method}_latent"] < 1e-6


def test_native_text_and_vae_nodes_agree_with_ours(server):
    native = {
        "clip": {"class_type": "CLIPLoader", "inputs": {"clip_name": "umt5_xxl_fp16.safetensors", "type": "wan"}},
        "their text": {
            "class_type": "CLIPTextEncode",
            "inputs": {"clip": ["clip", 0], "text": "a red fox in the snow"},
        },
        "their vae": {"class_type": "VAELoader", "inputs": {"vae_name": "wan_2.1_vae.safetensors"}},
        "their decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["their vae", 0]}},
        "their size": {
            "class_type": "EmptyHunyuanLatentVideo",
            "inputs": {"width": 64, "height": 48, "length": 5, "batch_size": 1},
        },
        "encoder": {
            "class_type": "LightX2VLoadTextEncoder",
            "inputs": {"text_encoder": "umt5_xxl_fp16.safetensors", "tokenizer": "auto"},
        },
        "vae": {"class_type": "LightX2VLoadVAE", "inputs": {"vae": "wan_2.1_vae.safetensors"}},
        "their decode with ours": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["vae", 0]}},
        "our decode with theirs": {
            "class_type": "LightX2VDecode",
            "inputs": {"vae": ["their vae", 0], "latent": ["sample", 0], "tiling": "auto"},
        },
        "their encode": {"class_type": "VAEEncode", "inputs": {"pixels": ["decode", 0], "vae": ["their vae", 0]}},
        "their encode with ours": {"class_type": "VAEEncode", "inputs": {"pixels": ["decode", 0], "vae": ["vae", 0]}},
        **{
            f"save {node}": {"class_type": "ProbeSave", "inputs": {"value": [node, 0], "name": node.replace(" ", "_")}}
            for node in ("their decode with ours", "our decode with theirs", "their encode", "their encode with ours")
        },
        "save their rows": {"class_type": "ProbeSave", "inputs": {"value": ["their text", 0], "name": "their_rows"}},
        "save their image": {
            "class_type": "ProbeSave",
            "inputs": {"value": ["their decode", 0], "name": "their_image"},
        },
    }
    prompt = graph("native", **native)
    prompt["encode"]["inputs"]["text_encoder"] = ["encoder", 0]
    prompt["sample"]["inputs"] |= {"conditioning": ["their text", 0], "latent": ["their size", 0]}
    prompt["decode"]["inputs"]["vae"] = ["vae", 0]
    server.run(prompt)
    rows, their_rows = saved(server, "native_rows"), saved(server, "their_rows")
    assert rows.shape == their_rows.shape and rows.dtype == their_rows.dtype
    assert torch.equal(rows.abs().sum(-1) > 0, their_rows.abs().sum(-1) > 0)
    # ComfyUI computes in float32, ours in bfloat16.
    assert relative_error(rows, their_rows) < 0.02
    # Both decode in float32: the LATENT is in the space ComfyUI expects.
    image, their_image = saved(server, "native_image"), saved(server, "their_image")
    assert image.shape == their_image.shape and float((image - their_image).abs().max()) < 2e-3
    # Either VAE in either node, and frames encoded again.
    assert torch.equal(saved(server, "their_decode_with_ours"), image)
    assert torch.equal(saved(server, "our_decode_with_theirs"), their_image)
    latents, their_latents = saved(server, "their_encode_with_ours"), saved(server, "their_encode")
    assert latents.shape == their_latents.shape == saved(server, "native_latent").shape
    assert float((latents - their_latents).abs().max()) < 1e-4


@pytest.mark.parametrize("workflow", examples.TINY, ids=lambda path: path.stem)
def test_example_workflows_run(server, workflow, capsys, tmp_path):
    places = ("--server", server.url, "--output-dir", tmp_path)
    done = examples.run_command(capsys, workflow, *examples.TINY[workflow], *places)
    assert done.code == 0, done.stderr
    videos = [path for path in done.results if path.suffix == ".mp4"]
    assert len(videos) == 1 and examples.frames_of(videos[0]).shape == (5, 32, 48, 3)


def test_report_node_passes_on_and_shows_the_report(server):
    report = {"class_type": "LightX2VReport", "inputs": {"image": ["decode", 0], "latent": ["sample", 0]}}
    entry = server.run(graph("report", seed=8, report=report))
    (text,) = entry["outputs"]["report"]["text"]
    stages = {stage["stage"] for stage in json.loads(text)["stages"]}
    assert {"encode", "sample", "decode"} <= stages


async def follow(server, prompt, react):
    """Queue a prompt and give every websocket message to `react` until the prompt ends; returns its id."""
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{server.url}/ws?clientId=test") as socket:
        async with session.post(f"{server.url}/prompt", json={"prompt": prompt, "client_id": "test"}) as answer:
            assert answer.status == 200, await answer.text()
            prompt_id = (await answer.json())["prompt_id"]
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                await react(session, struct.unpack(">I", message.data[:4])[0], message.data[4:])
                continue
            event = json.loads(message.data)
            await react(session, event["type"], event["data"])
            ends = ("execution_success", "execution_error", "execution_interrupted")
            if event["type"] in ends and event["data"]["prompt_id"] == prompt_id:
                return prompt_id


def test_every_step_sends_progress_text_and_a_preview(server):
    seen = {"progress": [], "text": [], "previews": 0}

    async def react(session, kind, data):
        if kind == "progress" and data["node"] == "sample":
            seen["progress"].append((data["value"], data["max"]))
        elif kind == TEXT_EVENT:
            length = struct.unpack(">I", data[:4])[0]
            seen["text"].append((data[4 : 4 + length].decode(), data[4 + length :].decode()))
        elif kind in PREVIEW_EVENTS:
            seen["previews"] += 1

    asyncio.run(follow(server, graph("progress", seed=9), react))
    steps = dict.fromkeys(entry for entry in seen["progress"] if entry[1] == 4)
    assert [(step, 4) for step in range(1, 5)] == list(steps)[-4:]
    assert [("sample", f"step {step}/4") for step in range(1, 5)] == [
        each for each in seen["text"] if "step" in each[1] and "block" not in each[1]
    ]
    assert ("sample", "step 1/4, block 2/2") in seen["text"]
    # Each node's text vanishes when it is done.
    last = dict(seen["text"])
    assert "sample" in last and set(last.values()) == {""}
    assert seen["previews"] == 4


def test_a_sampler_of_comfyui_tells_the_blocks_of_its_steps_too(server):
    texts = []

    async def react(session, kind, data):
        if kind == TEXT_EVENT:
            length = struct.unpack(">I", data[:4])[0]
            texts.append((data[4 : 4 + length].decode(), data[4 + length :].decode()))

    settings = {"seed": 3, "steps": 4, "cfg": 1, "sampler_name": "lcm", "scheduler": "simple", "denoise": 1}
    prompt = graph("native", seed=3)
    given = prompt["sample"]["inputs"]
    links = {"model": given["transformer"], "latent_image": given["latent"]}
    links |= dict.fromkeys(("positive", "negative"), given["conditioning"])
    prompt["sample"] = {"class_type": "KSampler", "inputs": settings | links}
    asyncio.run(follow(server, prompt, react))
    steps = [text for node, text in texts if node == "sample" and "step" in text]
    assert {"step 1/4", "step 1/4, block 2/2", "step 4/4, block 2/2"} <= set(steps)
    assert dict(texts)["sample"] == ""


def slow_graph(seed):
    transformer = {
        "class_type": "LightX2VLoadTransformer",
        "inputs": {"transformer": SLOW_FILE, "engine": "auto", "attention": "auto", "compile": "off"},
    }
    prompt = graph("slow", seed=seed, latent=size(192, 192, 9), transformer=transformer)
    prompt["sample"]["inputs"]["transformer"] = ["transformer", 0]
    return prompt


def test_cancel_stops_within_one_block_and_the_next_item_runs(server):
    times = {}

    async def react(session, kind, data):
        if kind == "progress" and data["node"] == "sample" and data["max"] == 4:
            times[data["value"]] = time.monotonic()
            if data["value"] == 2 and "cancelled" not in times:
                step = times[2] - times[1]
                await asyncio.sleep(step * 0.2)
                times["cancelled"] = time.monotonic()
                await session.post(f"{server.url}/interrupt", json={})
        elif kind == "execution_interrupted":
            times["stopped"] = time.monotonic()

    asyncio.run(follow(server, slow_graph(1), react))
    step, delay = times[2] - times[1], times["stopped"] - times["cancelled"]
    print(f"step {step:.2f} s, block {step / SLOW.num_layers:.3f} s, stopped {delay:.3f} s after Cancel")
    assert step > 1, "the steps are too short to tell; make the clip longer"
    # The rest of the running block, the way back to the client, and a busy machine.
    assert delay < 2 * step / SLOW.num_layers + 0.5
    assert delay < 0.5 * step
    server.run(graph("after", seed=10))
    server.run(graph("before_cancel", seed=10))
    assert torch.equal(saved(server, "after_latent"), saved(server, "before_cancel_latent"))


def test_unload_models_drops_our_weights_and_they_come_back(server):
    server.run(graph("kept", seed=12))
    held = [each for each in server.get("/probe/handles") if each["is_loaded"]]
    assert {each["type"] for each in held} == {"TransformerHandle", "VaeHandle"}
    assert all(each["is_registered"] for each in held)
    server.free(lambda: not any(each["is_loaded"] for each in server.get("/probe/handles")), unload_models=True)
    handles = server.get("/probe/handles")
    assert len(handles) == 3 and not any(each["is_loaded"] or each["is_registered"] for each in handles)
    server.run(graph("back", seed=13))
    server.run(graph("kept_again", seed=12))
    assert torch.equal(saved(server, "kept_latent"), saved(server, "kept_again_latent"))


def test_the_memory_manager_makes_room_with_our_handles():
    """On a pretended GPU of 16 GB, with ComfyUI's own bookkeeping."""
    assert run_in_comfyui(HERE / "in_comfy" / "eviction.py", ROOT) == {
        "both fit": ["transformer", "vae"],
        "again": ["transformer", "vae"],
        "room for activations": ["vae"],
        "room for weights": ["other transformer"],
        "room on request": [],
        "room for another pack": [],
        "unload models": [],
        "entries after the last reference": 0,
    }


def test_the_transformer_stays_loaded_beside_a_decode_that_was_planned_so():
    """On cards of 5 to 25 GiB: a plan that keeps the weights is of no use if ComfyUI is then asked for too much."""
    found = run_in_comfyui(HERE / "in_comfy" / "decode_room.py", ROOT, checkpoints.vae())
    assert sum(stay for _, stay, _ in found.values()) > 70
    assert {card: each for card, each in found.items() if each[1] and not each[2]} == {}


def test_another_workflow_or_free_memory_drops_the_handles(server):
    server.run(graph("gone", seed=14))
    assert server.get("/probe/handles")
    forget_everything(server)
    assert server.get("/probe/handles") == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"latent": size(width=65)}, "width is 65; expected a multiple of 16"),
        ({"latent": size(height=40)}, "height is 40; expected a multiple of 16"),
        ({"latent": size(num_frames=6)}, "num_frames is 6; expected 4n+1"),
        ({"checkpoint": "../../../etc"}, "is a path outside the model folders."),
        ({"checkpoint": "/etc/passwd"}, "is a path outside the model folders"),
        ({"checkpoint": "never downloaded"}, "was not found in the model folders."),
        ({"checkpoint": "block missing"}, "block_0"),
        ({"checkpoint": "truncated.safetensors"}, "is truncated"),
        ({"checkpoint": "corrupt.safetensors"}, "is not a safetensors file"),
        ({"load": loader(precision="fp4")}, "precision is 'fp4'; expected one of"),
        ({"load": loader(engine="lightx2v")}, "engine is 'lightx2v', but"),
        (
            {"latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}},
            "image latents have 4 dimensions, video 5",
        ),
        (
            {"encode": {"class_type": "ProbeConditioning", "inputs": {"rows": 77, "width": 768}}},
            "Width 768 is that of SD 1.5",
        ),
    ],
)
def test_bad_input_gets_a_sentence_and_the_next_item_runs(server, changes, sentence):
    expect_error(server, graph("bad", seed=15, **changes), sentence)


@pytest.mark.parametrize("kind", ["LightX2VEmptyLatent", "WanImageToVideo"])
def test_a_size_that_does_not_fit_is_refused_before_the_text_is_encoded(server, kind):
    """Nor is the latent made, for which WanImageToVideo takes the text: the graph has its size."""
    latent = size(4096, 4096, 1601)
    if kind == "WanImageToVideo":
        clip = {"width": 4096, "height": 4096, "length": 1601, "batch_size": 1, "vae": ["load", 2]}
        latent = {"class_type": kind, "inputs": clip | {"positive": ["encode", 0], "negative": ["encode", 0]}}
    prompt = graph("huge", text=f"a blue boat for {kind}", seed=17, latent=latent)
    if kind == "WanImageToVideo":
        prompt["sample"]["inputs"]["latent"] = ["size", 2]
    # What saves the rows would encode the text for itself.
    prompt = {name: node for name, node in prompt.items() if node["class_type"] != "ProbeSave"}
    failed = event_of(server.wait(server.queue(prompt)), "execution_error")
    assert failed["node_id"] == "sample" and "NothingFitsError" in failed["exception_type"]
    assert set(failed["executed"]) <= {"load"}


@pytest.mark.parametrize(
    ("node", "value", "sentence"),
    [("size", {"height": 50}, "height is 50"), ("load", {"checkpoint": "gone"}, "'gone', which was not found")],
)
def test_a_refusal_is_said_once_and_names_the_right_input(server, node, value, sentence):
    prompt = text_to_frames() | {"show": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}}}
    prompt[node]["inputs"] |= value
    status, answer = server.post("/prompt", {"prompt": prompt})
    assert status == 400 and list(answer["node_errors"]) == [node]
    (error,) = answer["node_errors"][node]["errors"]
    assert sentence in error["details"]


def test_widgets_out_of_range_are_refused(server):
    prompt = graph("range", seed=16)
    for values, sentence in (
        ({"steps": 99}, "steps"),
        ({"steps": 4, "method": "ddim"}, "method is 'ddim'; expected one of: lcm, euler"),
    ):
        prompt["sample"]["inputs"] |= values
        _, answer = server.post("/prompt", {"prompt": prompt})
        assert list(answer["node_errors"]) == ["sample"] and sentence in refusal_of(answer)


def test_the_pack_loads_without_complaint(server):
    startup, found, _ = server.log_text().partition("Starting server")
    mentions = [line for line in startup.splitlines() if "ComfyUI-LightX2V" in line]
    assert found and mentions
    assert not [line for line in mentions if "IMPORT FAILED" in line or "Cannot import" in line]
