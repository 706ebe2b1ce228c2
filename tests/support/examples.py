"""The example workflows at tiny size: models they name, settings that shrink them, and a way to run them."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from lightx2v_pack.engine.checkpoints.published import PUBLISHED_LORAS
from lightx2v_pack.tools.headless import cli
from support import checkpoints, loras

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
TEXT_TO_VIDEO = FOLDER / "1 Wan text to video.json"
IMAGE_TO_VIDEO = FOLDER / "2 Wan image to video.json"
FIRST_LAST_FRAME = FOLDER / "3 Wan2.2 first and last frame.json"
WITH_NATIVE_NODES = FOLDER / "4 Wan with native nodes.json"
WITH_LORAS = FOLDER / "5 Wan with LoRAs.json"
CHECKPOINT_NAME = "Wan2.1-T2V-14B-StepDistill-CfgDistill-Lightx2v"


def set_options(*assignments):
    """Return command line words that set values."""
    return [word for assignment in assignments for word in ("--set", assignment)]


# 48x32 pixels, 5 frames.
_TINY_LATENT = set_options(
    "LightX2VEmptyLatent.width=48", "LightX2VEmptyLatent.height=32", "LightX2VEmptyLatent.num_frames=5"
)
TINY = {
    TEXT_TO_VIDEO: _TINY_LATENT,
    WITH_NATIVE_NODES: set_options(
        "EmptyHunyuanLatentVideo.width=48", "EmptyHunyuanLatentVideo.height=32", "EmptyHunyuanLatentVideo.length=5"
    ),
    WITH_LORAS: _TINY_LATENT,
}


def image_to_video_file() -> Path:
    """Return the transformer that the template of image to video names, alone in its folder."""
    folder = checkpoints.scratch() / "image-to-video"
    folder.mkdir(exist_ok=True)
    path = folder / "wan2.1_i2v_480p_int8_lightx2v_4step.safetensors"
    if not path.exists():
        shutil.copy(checkpoints.single_file("int8", sizes=checkpoints.I2V_SIZES), path)
    return path


def without_clip_vision(folder: Path) -> Path:
    """Return a copy of the template of image to video without CLIP Vision, whose network comes in one size only."""
    graph = json.loads(IMAGE_TO_VIDEO.read_text(encoding="utf-8"))
    (loader,) = [node["id"] for node in graph["nodes"] if node["type"] == "CLIPVisionLoader"]
    graph["nodes"] = [node for node in graph["nodes"] if node["id"] != loader]
    gone = {link[0] for link in graph["links"] if link[1] == loader}
    graph["links"] = [link for link in graph["links"] if link[0] not in gone]
    for entry in (entry for node in graph["nodes"] for entry in node["inputs"]):
        entry["link"] = None if entry["link"] in gone else entry["link"]
    path = folder / IMAGE_TO_VIDEO.name
    path.write_text(json.dumps(graph), encoding="utf-8")
    return path


def image_experts() -> list[Path]:
    """Return both experts that the template of first and last frame names."""
    folder = checkpoints.scratch() / "image-experts"
    name = "wan2.2_i2v_A14b_{}_noise_int8_lightx2v_4step.safetensors"
    paths = {noise: folder / name.format(noise) for noise in ("high", "low")}
    for noise, path in paths.items():
        if not path.exists():
            folder.mkdir(exist_ok=True)
            weights = checkpoints.expert_weights(noise, checkpoints.A14B_I2V_SIZES)
            checkpoints.tiny.write_single_file(path, weights, "int8")
    return list(paths.values())


def write_models(folder: Path) -> Path:
    """Write a models folder with every file that the example workflows name."""
    shutil.copytree(checkpoints.repository() / "distill_fp8", folder / "lightx2v" / CHECKPOINT_NAME / "distill_fp8")
    for kind, file in (
        ("diffusion_models", checkpoints.single_file("int8")),
        ("diffusion_models", image_to_video_file()),
        *(("diffusion_models", file) for file in image_experts()),
        ("text_encoders", checkpoints.comfy_text_encoder(scaled_fp8=True)),
        ("vae", checkpoints.vae()),
    ):
        (folder / kind).mkdir(exist_ok=True)
        shutil.copy(file, folder / kind)
    shutil.copy(checkpoints.comfy_transformer(), folder / "diffusion_models" / "wan2.1_t2v_14B_fp8_scaled.safetensors")
    (folder / "loras").mkdir()
    (lora,) = (part.patterns[0] for part in PUBLISHED_LORAS["wan2.1-t2v-lora"].parts)
    loras.write(folder / "loras" / lora, loras.draw(checkpoints.transformer_weights(), rank=4))
    return folder


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the command left."""

    code: int
    stdout: str
    stderr: str

    @property
    def results(self) -> list[Path]:
        return [Path(line) for line in self.stdout.splitlines()]


def run_command(capsys, *arguments) -> Run:
    """Call tools/run_workflow.py in this process."""
    capsys.readouterr()
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return Run(code=code, stdout=captured.out, stderr=captured.err)


def frames_of(video: Path) -> np.ndarray:
    """Return the frames of a video file, [F, H, W, 3] bytes."""
    with av.open(str(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
