"""The trained tiny checkpoint through the nodes: the clips show what their prompts say, and wrong settings show."""

import copy
import os
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightx2v_pack.demo.train import captions, export, lora
from lightx2v_pack.engine import engines, latent_space
from lightx2v_pack.engine.adapters.comfy import formats
from lightx2v_pack.engine.memory.tiles import Tile, split_axis
from lightx2v_pack.engine.stages import conditioning, decode
from lightx2v_pack.tools.clip_content import THING_COLOURS, Content, Thing, compare, measure_content, measure_psnr
from safetensors.torch import load_file, save_file
from support import lightx2v_cpu
from support.comfy_nodes import boot_host, runner

CHECKPOINT = Path(__file__).resolve().parents[2] / "demo" / "checkpoint"
pytestmark = pytest.mark.skipif(not CHECKPOINT.is_dir(), reason="demo/checkpoint is not here")

SIZE = {"width": 64, "height": 64, "num_frames": 17, "batch_size": 1}
LOADER = {"precision": "bf16", "engine": "portable", "attention": "auto", "compile": "off"}
SAMPLER = {"method": "lcm", "steps": 4, "shift": 5.0}
# Share of the attributes of all clips that have to be right.
ENOUGH = 0.95


def clip_of(background, motion, *things):
    pairs = [thing.split() for thing in things]
    return Content(
        background=background, things=tuple(Thing(colour=colour, shape=shape, motion=motion) for colour, shape in pairs)
    )


# Seed, prompt, what the clip has to show. No clip of the training had these combinations of shape, colour, background
# and motion; of many such prompts, these are right with every correct setting and suffer from wrong ones.
PROMPTS = [
    (29, "A yellow triangle moving right on a white background.", clip_of("white", "right", "yellow triangle")),
    (16, "On a blue background, a red square getting smaller.", clip_of("blue", "shrinking", "red square")),
    (20, "A white triangle floating upwards in front of a red background.", clip_of("red", "up", "white triangle")),
    (13, "A video of a green square contracting on a white background.", clip_of("white", "shrinking", "green square")),
    (
        15,
        "Blue background, a yellow circle and a green square, moving down",
        clip_of("blue", "down", "yellow circle", "green square"),
    ),
]


LORA = CHECKPOINT.parent / "lora" / "black_things.safetensors"
WITH_BLACK = (*THING_COLOURS, lora.COLOUR)
# The same of the LoRA: no clip of its training had these combinations with a black thing.
BLACK = [
    (10, "On a yellow background, a black triangle sinking downwards.", clip_of("yellow", "down", "black triangle")),
    (13, "On a yellow background, a black circle floating upwards.", clip_of("yellow", "up", "black circle")),
    (
        15,
        "a video of a black circle and a green square moving up on a yellow background.",
        clip_of("yellow", "up", "black circle", "green square"),
    ),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(node_id, **inputs) -> the node's outputs, executed as ComfyUI does; the checkpoint is "tiny"."""
    folder = tmp_path_factory.mktemp("comfy")
    tiny = shutil.copytree(CHECKPOINT, folder / "models" / "lightx2v" / "tiny", copy_function=os.link)
    export.write_precision(tiny, "int8")
    (folder / "models" / "loras").mkdir()
    os.link(LORA, folder / "models" / "loras" / LORA.name)
    shutil.copytree(CHECKPOINT, folder / "models" / "lightx2v" / "unscaled")
    drop_scales(folder / "models" / "lightx2v" / "unscaled" / "distill_fp8")
    return runner(boot_host(folder))


def drop_scales(folder):
    """Set every scale of an FP8 checkpoint to 1, as if its weights were taken without them."""
    for file in folder.glob("block_*.safetensors"):
        tensors = load_file(file)
        for name in tensors:
            if name.endswith("weight_scale"):
                tensors[name] = torch.ones_like(tensors[name])
        save_file(tensors, file)


class Graph:
    """Text to video with one checkpoint, as the example workflows are wired."""

    def __init__(self, run, checkpoint="tiny", **loader):
        self._run = run
        loaded = run("LightX2VLoadCheckpoint", checkpoint=checkpoint, **(LOADER | loader))
        self._transformer, self._text_encoder, self._vae = loaded

    def draw(self, text, seed, *, tiling="off", change_latent=None, **sampler):
        """Return the frames [17, 64, 64, 3] of a prompt."""
        (conditioning,) = self._run("LightX2VTextEncode", text_encoder=self._text_encoder, text=text, device="cpu")
        (empty,) = self._run("LightX2VEmptyLatent", **SIZE)
        (latent,) = self._run(
            "LightX2VSampler",
            transformer=self._transformer,
            conditioning=conditioning,
            latent=empty,
            seed=seed,
            **(SAMPLER | sampler),
        )
        if change_latent:
            latent = {**latent, "samples": change_latent(latent["samples"])}
        return self._run("LightX2VDecode", vae=self._vae, latent=latent, tiling=tiling)[0]

    def with_lora(self, file):
        """Return the same with a LoRA on its transformer."""
        graph = copy.copy(self)
        (graph._transformer,) = self._run("LightX2VLora", transformer=self._transformer, lora=file, strength=1.0)
        return graph

    def score(self, prompts=PROMPTS, colours=THING_COLOURS, **settings):
        """Return the share of attributes of all prompts' clips that are as asked for."""
        right = []
        for seed, text, wanted in prompts:
            right += compare(measure_content(self.draw(text, seed, **settings), colours), wanted).values()
        return sum(right) / len(right)


def test_prompts_are_held_out():
    assert all(captions.is_held_out(wanted) for _, _, wanted in PROMPTS)


def test_prompts_of_the_demo_are_held_out():
    prompts = runpy.run_path(str(CHECKPOINT.parent / "run.py"))["PROMPTS"]
    assert len(prompts) == 6
    assert all(captions.is_held_out(wanted) for wanted in prompts.values())


@pytest.mark.parametrize(
    ("precision", "method", "tiling"),
    [
        ("fp8", "lcm", "off"),
        pytest.param("bf16", "euler", "on", marks=pytest.mark.slow),
        pytest.param("bf16", "lcm", "off", marks=pytest.mark.slow),
        pytest.param("fp8", "euler", "on", marks=pytest.mark.slow),
    ],
)
def test_clips_show_what_was_asked_for(run, monkeypatch, precision, method, tiling):
    if tiling == "on":  # four tiles: at its usual size one tile holds all of so small a clip
        small = Tile(size=5, overlap=1)
        monkeypatch.setattr(decode, "split_axis", lambda length, tile: split_axis(length, small))
    assert Graph(run, precision=precision).score(method=method, tiling=tiling) >= ENOUGH


@pytest.mark.parametrize(("precision", "method"), [("bf16", "lcm"), ("fp8", "euler")])
def test_clips_of_lightx2v_show_what_was_asked_for(run, monkeypatch, precision, method):
    lightx2v_cpu.import_lightx2v()
    monkeypatch.setattr(engines, "choose_engine", lambda wanted, device: wanted)  # it refuses LightX2V without a GPU
    assert Graph(run, precision=precision, engine="lightx2v").score(PROMPTS[3:], method=method) >= ENOUGH


@pytest.mark.slow
class TestWrongSettingsShow:
    """Each of these was right above; one mistake, and the clips do not show what was asked for any more."""

    def test_one_step(self, run):
        assert Graph(run).score(PROMPTS[:4], steps=1) < ENOUGH

    def test_shifted_schedule(self, run):
        assert Graph(run).score(PROMPTS[:4], shift=100.0) < ENOUGH

    def test_swapped_latent_normalization(self, run):
        def swap(samples):
            return latent_space.normalize(latent_space.normalize(samples))

        assert Graph(run).score(PROMPTS[:2], change_latent=swap) < ENOUGH

    def test_dropped_scales(self, run):
        """Scales of one are not even tried."""
        with pytest.raises(Exception, match="makes the weights of its layer 1"):
            Graph(run, "unscaled", precision="fp8").score(PROMPTS[:2])

    def test_unpadded_text(self, run, monkeypatch):
        def cut(rows, text_dim, records):
            """Give the transformer the rows of the caption, without the zeros after it."""
            entries = conditioning.of_rows(rows, text_dim, records)
            return [replace(entry, text=entry.text[: entry.num_text]) for entry in entries]

        monkeypatch.setattr(formats, "of_rows", cut)
        assert Graph(run).score(PROMPTS[:2]) < ENOUGH


class TestLora:
    """The demo's LoRA makes things black where the prompt says so, in every precision, and leaves everything else."""

    def test_prompts_are_held_out(self):
        for _, _, wanted in BLACK:
            (thing,) = (thing for thing in wanted.things if thing.colour == lora.COLOUR)
            assert (thing.shape, wanted.background, thing.motion) in lora.HELD_OUT

    @pytest.mark.parametrize(
        "precision", ["fp8", *(pytest.param(each, marks=pytest.mark.slow) for each in ("int8", "bf16"))]
    )
    def test_things_are_black_where_the_prompt_says_so_and_nothing_else_changes(self, run, precision):
        plain = Graph(run, precision=precision)
        graph = plain.with_lora(LORA.name)
        assert graph.score(BLACK, WITH_BLACK) == 1
        seed, text, wanted = PROMPTS[0]
        before, after = plain.draw(text, seed), graph.draw(text, seed)
        assert not torch.equal(before, after)
        assert all(compare(measure_content(after, WITH_BLACK), wanted).values())
        assert measure_psnr(after, before) > 25

    def test_without_it_nothing_is_black(self, run):
        assert Graph(run, precision="fp8").score(BLACK[:1], WITH_BLACK) < ENOUGH


def test_lightx2v_reads_the_vae_as_a_lightvae():
    """Its loader for VAEs of a quarter of the width; the engine's adapter takes the width from the file instead."""
    lightx2v_cpu.import_lightx2v()
    from lightx2v.models.video_encoders.hf.wan.vae import WanVAE

    file = CHECKPOINT / "distill_models" / "Wan2.1_VAE.pth"
    vae = WanVAE(vae_path=str(file), dtype=torch.float32, device="cpu", use_lightvae=True)
    images = vae.decode(torch.zeros(16, 2, 4, 4))
    assert images.shape == (1, 3, 5, 32, 32) and images.isfinite().all()
