"""Our latent space and decoder against a real ComfyUI's, on the same file, through its own loader.

Needs COMFYUI_DIR (a ComfyUI checkout); COMFYUI_PYTHON is the interpreter that can import it. ComfyUI parses
the command line and picks devices at import, so it runs in a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightx2v_pack.engine.checkpoints.companions import resolve_vae
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.latent_space import denormalize, normalize
from lightx2v_pack.engine.stages.decode import decode_video
from lightx2v_pack.engine.wan.vae import WanVideoDecoder
from lightx2v_pack.tools import make_tiny_checkpoint as tiny
from support.checkpoints import vae
from support.comfy_server import ROOT, run_in_comfyui
from support.tensors import normal

COMFYUI_DIR = os.environ.get("COMFYUI_DIR")
pytestmark = pytest.mark.skipif(not COMFYUI_DIR, reason="COMFYUI_DIR does not point at a ComfyUI checkout")

# ComfyUI 0.3.64 builds the Wan2.1 VAE at this width whatever the file says.
COMFY_DIM = 96
IN_COMFYUI = """
import sys
vae_file, samples_file, answer_file = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import torch
import comfy.latent_formats, comfy.sd, comfy.utils
samples = torch.load(samples_file)
space = comfy.latent_formats.Wan21()
vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(vae_file))
torch.save({
    "process_in": space.process_in(samples),
    "process_out": space.process_out(samples),
    "dtype": str(vae.vae_dtype),
    "frames": vae.decode(samples),
}, answer_file)
"""


@pytest.fixture(scope="module")
def vae_file():
    """The form of Comfy-Org's wan_2.1_vae.safetensors: bfloat16, 254 MB."""
    return vae(".safetensors", torch.bfloat16, tiny.TinySizes(vae_dim=COMFY_DIM))


@pytest.fixture(scope="module")
def samples():
    """LATENT samples: two clips, un-normalized."""
    return denormalize(normal(2, 16, 2, 2, 4, seed=3))


@pytest.fixture(scope="module")
def comfyui(vae_file, samples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comfyui")
    torch.save(samples, folder / "samples.pt")
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    arguments = [vae_file, folder / "samples.pt", folder / "answer.pt"]
    finished = subprocess.run(
        [python, "-c", IN_COMFYUI, *map(str, arguments)],
        cwd=Path(COMFYUI_DIR),
        env=os.environ | {"PYTHONPATH": COMFYUI_DIR},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return torch.load(folder / "answer.pt")


def test_latent_space_is_comfyuis(comfyui, samples):
    assert torch.equal(normalize(samples), comfyui["process_in"])
    assert torch.equal(denormalize(samples), comfyui["process_out"])


def test_frames_are_those_of_vae_decode(comfyui, samples, vae_file):
    """ComfyUI's VAEDecode on a LATENT, and ours on the same LATENT: float32 on both sides."""
    assert comfyui["dtype"] == "torch.float32"
    decoder = WanVideoDecoder(resolve_vae(vae_file), torch.device("cpu"))
    decoder.load(Hooks())
    frames = torch.stack([decode_video(decoder, clip, tile=None, hooks=Hooks()) for clip in samples])
    assert frames.shape == comfyui["frames"].shape == (2, 5, 16, 32, 3)
    assert frames.std() > 0.1
    torch.testing.assert_close(frames, comfyui["frames"], rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def nodes():
    """What ComfyUI's VAE nodes make of our VAE and of its own, see in_comfy/vae_nodes.py; both in float32."""
    file = vae(".safetensors", torch.float32, tiny.TinySizes(vae_dim=24))
    found = run_in_comfyui(Path(__file__).parent / "in_comfy" / "vae_nodes.py", ROOT, file)
    assert found["dtype"] == "torch.float32"
    return found


@pytest.mark.parametrize(
    "node",
    ["VAEDecode is our own", "VAEDecodeTiled is our own", "VAEEncode is our own", "VAEEncodeTiled is our own"],
)
def test_native_nodes_run_what_the_pack_runs(nodes, node):
    assert nodes[node] == 0


@pytest.mark.parametrize(
    "node",
    [
        "VAEDecode",
        "VAEEncode with alpha",
        "encode and decode again",
        "WanImageToVideo",
        "WanFirstLastFrameToVideo",
        "WanVaceToVideo",
    ],
)
def test_native_nodes_give_with_our_vae_what_they_give_with_theirs(nodes, node):
    assert nodes[node] < 1e-5


def test_every_size_and_length_is_encoded_as_natively(nodes):
    """Numbers of frames that are not 4n+1, and sizes that are no multiples of 8, among them."""
    assert len(nodes["VAEEncode"]) == 6 and max(nodes["VAEEncode"]) < 1e-5


def test_tiled_nodes_give_the_native_shapes_and_are_nearer_to_the_whole(nodes):
    for node in ("VAEDecodeTiled", "VAEEncodeTiled"):
        ours, theirs = nodes[f"{node} shapes"]
        assert ours == theirs
    ours, theirs = nodes["VAEEncodeTiled errors"]
    assert ours < 0.1 < theirs


def test_inpainting_works(nodes):
    """ComfyUI's own VAE fails there: its ratio is no number."""
    assert nodes["inpaint"] == {"samples": [1, 16, 2, 4, 6], "mask": [1, 1, 32, 48]}
    assert nodes["VAEEncodeForInpaint"] == 0


def test_our_decode_node_decodes_with_a_native_vae_as_that_does(nodes):
    assert nodes["LightX2V Decode"] == nodes["LightX2V Decode tiled"] == 0


def test_all_that_a_native_vae_has_is_there(nodes):
    assert nodes["missing attributes"] == []
    assert nodes["ratios"] == [[8, 8, 4], [8, 8, 4]]


def test_what_cannot_be_is_a_sentence(nodes):
    assert nodes["4-D latents"].startswith("ValueError: latent samples have shape [1, 16, 4, 4]; expected [batch, 16")
    assert "copy its file: " in nodes["VAESave"]
    assert "of 4 channels of image latents" in nodes["image VAE"]


def test_the_memory_manager_holds_it_and_free_unloads_it(nodes):
    assert nodes["loaded, registered, after /free, again"] == [True, True, False, True]
