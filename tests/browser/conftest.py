"""A ComfyUI with this pack and few models, a hub with the rest, and a browser that works through session.mjs.

COMFYUI_DIR, COMFYUI_PYTHON   see tests/support/comfy_server.py
LIGHTX2V_NODE_MODULES         a folder with playwright-core: npm install --prefix DIR playwright-core
LIGHTX2V_CHROMIUM             the browser; chromium on the PATH if unset
LIGHTX2V_FRONTENDS            further frontends to test, separated as in PATH: folders with an index.html, such as
                              comfyui_frontend_package/static of an unpacked wheel
LIGHTX2V_SCREENSHOTS          where screenshots are kept; a temporary folder if unset
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from graphs import slow_graph
from lightx2v_pack.engine.checkpoints.kinds import MODEL_REPOSITORY
from lightx2v_pack.tools.make_tiny_checkpoint import TinySizes
from support import checkpoints, examples
from support.comfy_server import ComfyServer, comfyui_dir
from support.hub_server import HubServer
from support.llm_server import LlmServer

SESSION = Path(__file__).parent / "session.mjs"
# Steps of most of a second on one core.
SLOW = TinySizes(num_layers=40, dim=256, ffn_dim=1024)
SLOW_FILE = "slow_4step.safetensors"
# Offered as a VAE, and is a text encoder.
OTHER_KIND = "another_vae.safetensors"
_SESSION_SECONDS = 900


def frontends():
    """Return the folders of the frontends to test; None is the one that the ComfyUI brings."""
    return [None, *filter(None, os.environ.get("LIGHTX2V_FRONTENDS", "").split(os.pathsep))]


def write_models(folder: Path) -> Path:
    """Write what the example workflows name, but for the checkpoint folder, and a slow transformer."""
    examples.write_models(folder)
    shutil.rmtree(folder / "lightx2v")
    shutil.copy(checkpoints.single_file("bf16", sizes=SLOW), folder / "diffusion_models" / SLOW_FILE)
    shutil.copy(checkpoints.comfy_text_encoder(scaled_fp8=True), folder / "vae" / OTHER_KIND)
    # So that the editor does not ask for it; nothing here loads it.
    (folder / "clip_vision").mkdir()
    (folder / "clip_vision" / "clip_vision_h.safetensors").touch()
    return folder


def write_repository(folder: Path) -> Path:
    """Write the model repository as the hub has it."""
    shutil.copytree(checkpoints.repository(), folder)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return folder


def session_config(url: str, llm: str, shots: Path, *, is_vue: bool, node_modules: str, chromium: str) -> dict:
    """Return what session.mjs reads."""
    shots.mkdir(parents=True, exist_ok=True)
    workflows = sorted(path for path in examples.FOLDER.glob("*.json") if path.name != "index.json")
    return {
        "url": url,
        "shots": str(shots),
        "isVue": is_vue,
        "nodeModules": node_modules,
        "chromium": chromium,
        "templates": {path.stem: path.read_text(encoding="utf-8") for path in workflows},
        "firstTemplate": examples.TEXT_TO_VIDEO.stem,
        "loraTemplate": examples.WITH_LORAS.stem,
        "graph": slow_graph(SLOW_FILE),
        "llm": llm,
        "otherKind": OTHER_KIND,
    }


def _needed(what: str, found: str | None) -> str:
    if not found:
        pytest.skip(f"{what} (see tests/browser/conftest.py)")
    return found


@pytest.fixture(scope="session")
def tools():
    """Node's modules and the browser, or a skip."""
    comfyui_dir()
    _needed("node is not on the PATH", shutil.which("node"))
    modules = _needed(
        "LIGHTX2V_NODE_MODULES is not set: needs playwright-core", os.environ.get("LIGHTX2V_NODE_MODULES")
    )
    if not Path(modules, "playwright-core").is_dir():
        pytest.fail(f"LIGHTX2V_NODE_MODULES is {modules}; expected a folder with playwright-core")
    chromium = os.environ.get("LIGHTX2V_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    return {"node_modules": modules, "chromium": _needed("chromium is not on the PATH", chromium)}


@pytest.fixture(scope="session", params=frontends(), ids=lambda folder: "own" if folder is None else "further")
def server(request, tools, tmp_path_factory):
    """ComfyUI with one of the frontends."""
    folder = tmp_path_factory.mktemp("comfyui")
    (folder / "models").mkdir()
    write_models(folder / "models")
    repository = write_repository(tmp_path_factory.mktemp("hub") / "model")
    arguments = ("--preview-method", "latent2rgb")
    if request.param:
        arguments += ("--front-end-root", request.param)
    with HubServer({MODEL_REPOSITORY: repository}) as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        with ComfyServer(folder, arguments=arguments) as running:
            yield running


@pytest.fixture(scope="session", params=[False, True], ids=["litegraph", "vue"])
def steps(request, server, tools, tmp_path_factory):
    """What each step of session.mjs found, by name."""
    shutil.rmtree(server.models / "lightx2v", ignore_errors=True)
    server.post("/free", {"unload_models": True, "free_memory": True})
    kept = os.environ.get("LIGHTX2V_SCREENSHOTS")
    shots = Path(kept) if kept else tmp_path_factory.mktemp("screenshots")
    config = tmp_path_factory.mktemp("session") / "config.json"
    with LlmServer() as llm:
        content = session_config(server.url, llm.url, shots, is_vue=request.param, **tools)
        config.write_text(json.dumps(content), encoding="utf-8")
        done = subprocess.run(["node", SESSION, config], capture_output=True, text=True, timeout=_SESSION_SECONDS)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return {entry["step"]: entry for entry in map(json.loads, done.stdout.splitlines())}
