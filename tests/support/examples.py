"""The example workflows at tiny size: models they name, settings that shrink them, and a way to run them."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from lightx2v_pack.tools.headless import cli
from support import checkpoints

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
TEXT_TO_VIDEO = FOLDER / "1 Wan text to video.json"
WITH_NATIVE_NODES = FOLDER / "5 Wan with native nodes.json"
CHECKPOINT_NAME = "Wan2.1-T2V-14B-StepDistill-CfgDistill-Lightx2v"


def set_options(*assignments):
    """Return command line words that set values."""
    return [word for assignment in assignments for word in ("--set", assignment)]


# 48x32 pixels, 5 frames.
TINY = {
    TEXT_TO_VIDEO: set_options(
        "LightX2VEmptyLatent.width=48", "LightX2VEmptyLatent.height=32", "LightX2VEmptyLatent.num_frames=5"
    ),
    WITH_NATIVE_NODES: set_options(
        "EmptyHunyuanLatentVideo.width=48", "EmptyHunyuanLatentVideo.height=32", "EmptyHunyuanLatentVideo.length=5"
    ),
}


def write_models(folder: Path) -> Path:
    """Write a models folder with every file that the example workflows name."""
    shutil.copytree(checkpoints.repository() / "distill_fp8", folder / "lightx2v" / CHECKPOINT_NAME / "distill_fp8")
    for kind, file in (
        ("diffusion_models", checkpoints.single_file("fp8")),
        ("text_encoders", checkpoints.comfy_text_encoder(scaled_fp8=True)),
        ("vae", checkpoints.vae()),
    ):
        (folder / kind).mkdir(exist_ok=True)
        shutil.copy(file, folder / kind)
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
