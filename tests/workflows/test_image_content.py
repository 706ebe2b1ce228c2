"""The trained image-to-video experts through the nodes: films begin with their picture, go on as the prompt says, and
mistakes show."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from lightx2v_pack.demo.train import evaluate
from lightx2v_pack.engine import latent_space
from lightx2v_pack.tools.clip_content import measure_psnr
from support.comfy_nodes import boot_host, runner

DEMO = Path(__file__).resolve().parents[2] / "demo"
EXPERTS = DEMO / "image_to_video"
pytestmark = pytest.mark.skipif(not EXPERTS.is_dir(), reason="demo/image_to_video is not here")

SIZE = {"size": "width x height", "width": 64, "height": 64, "num_frames": 17, "batch_size": 1}
LOADER = {"precision": "auto", "engine": "auto", "attention": "auto", "compile": "off"}
SAMPLER = {"method": "lcm", "steps": 4, "shift": 5.0}
# Share of the attributes of all films that have to be right.
ENOUGH = 0.95
# A case of which the last frame is given too.
LAST_TOO = 5


@pytest.fixture(scope="module")
def cases():
    """Eight held-out films: prompts, and the drawn clips whose first frames, and of four the last, are given."""
    return evaluate.list_image_cases(8, torch.device("cpu"), size=64, num_frames=17)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(node_id, **inputs) -> the node's outputs; the experts are "images", with the demo's text encoder and VAE."""
    folder = tmp_path_factory.mktemp("comfy")
    models = folder / "models"
    shutil.copytree(EXPERTS, models / "lightx2v" / "images", copy_function=os.link)
    for entry in (DEMO / "checkpoint" / "distill_models").iterdir():
        copy = shutil.copytree if entry.is_dir() else os.link
        if entry.suffix != ".safetensors":
            copy(entry, models / "lightx2v" / "images" / entry.name)
    return runner(boot_host(folder))


class Graph:
    """Image to video, as the example workflow is wired."""

    def __init__(self, run):
        self._run = run
        self.transformer, self._text_encoder, self._vae = run("LightX2VLoadCheckpoint", checkpoint="images", **LOADER)

    def draw(self, cases, index, *, change=None, transformer=None, **sampler):
        """Return the frames [17, 64, 64, 3] of a case; `change` makes other latents and another mask of those given."""
        clip = cases.drawn[index]
        (text,) = self._run(
            "LightX2VTextEncode", text_encoder=self._text_encoder, text=cases.prompts[index], device="cpu"
        )
        pictures = {"start_image": clip[:1]} | ({"end_image": clip[-1:]} if cases.has_last[index] else {})
        positive, _, latent = self._run("LightX2VImageToVideo", positive=text, vae=self._vae, **SIZE, **pictures)
        if change:
            extras = positive[0][1]
            latents, mask = change(extras["concat_latent_image"], extras["concat_mask"])
            positive = [[positive[0][0], {**extras, "concat_latent_image": latents, "concat_mask": mask}]]
        (samples,) = self._run(
            "LightX2VSampler",
            transformer=transformer or self.transformer,
            conditioning=positive,
            latent=latent,
            seed=index,
            **(SAMPLER | sampler),
        )
        return self._run("LightX2VDecode", vae=self._vae, latent=samples, tiling="off")[0]


@pytest.fixture(scope="module")
def graph(run):
    return Graph(run)


def part_of(cases, *indices):
    chosen = list(indices)
    return evaluate.ImageCases(
        contents=tuple(cases.contents[index] for index in chosen),
        prompts=tuple(cases.prompts[index] for index in chosen),
        video=cases.video[chosen],
        has_last=cases.has_last[chosen],
    )


@pytest.fixture(scope="module")
def films(graph, cases):
    return [graph.draw(cases, index) for index in range(len(cases.prompts))]


def test_a_film_begins_with_its_picture_and_shows_what_was_asked_for(cases, films):
    score = cases.score(films)
    assert min(score.attributes.values()) >= ENOUGH
    assert score.image["first_good"] == 1 and score.image["smooth"] == 1
    assert score.image["last_db"] >= evaluate.GOOD_PSNR


def test_euler_does_too(graph, cases):
    score = part_of(cases, LAST_TOO).score([graph.draw(cases, LAST_TOO, method="euler")])
    assert score.complete == 1 and score.image["first_good"] == 1 and score.image["smooth"] == 1


@pytest.fixture(scope="module")
def loss(graph, cases, films):
    """loss(**settings) -> dB that the first frame loses by a mistake."""
    clip, film = cases.drawn[LAST_TOO], films[LAST_TOO]
    right = measure_psnr(film[0], clip[0])
    return lambda **settings: right - measure_psnr(graph.draw(cases, LAST_TOO, **settings)[0], clip[0])


@pytest.mark.slow
class TestMistakesShow:
    """Each of these was right above; one mistake, and the film is less like its picture, or not at all."""

    def test_mask_inverted(self, loss):
        assert loss(change=lambda latents, mask: (latents, 1 - mask)) > 10

    def test_image_dropped(self, loss):
        def drop(latents, mask):
            return latent_space.denormalize(torch.zeros_like(latents)), torch.ones_like(mask)

        assert loss(change=drop) > 10

    def test_another_latent_convention(self, loss):
        assert loss(change=lambda latents, mask: (latent_space.normalize(latents), mask)) > 3

    def test_experts_swapped(self, run, loss):
        """Both know all colours and motions; what each lacks is the sharpness at the other's noise levels."""
        loader = {key: value for key, value in LOADER.items() if key != "precision"}
        swapped = run(
            "LightX2VLoadTransformer",
            transformer="images/distill_fp8/high_noise_model",
            second_expert="images/distill_fp8/low_noise_model",
            expert="low",
            **loader,
        )[0]
        assert loss(transformer=swapped) > 0.5
