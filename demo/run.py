"""What `make demo` runs: six prompts on the trained tiny checkpoint, without GPU, server or download.

For each prompt it prints what was asked and what the pixels of its video show, and says where the videos, a contact
sheet of all six, and the runs' figures are.
"""

from __future__ import annotations

import json
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import av
import torch

ROOT = Path(__file__).resolve().parent.parent
runpy.run_path(str(ROOT / "tools" / "register_pack.py"))

from lightx2v_pack.demo.train.sheet import draw_sheet  # noqa: E402
from lightx2v_pack.tools.clip_content import Content, Thing, compare, measure_content  # noqa: E402

CHECKPOINT = Path("demo/checkpoint")
WORKFLOW = Path("example_workflows/1 Wan text to video.json")
OUT = Path("out/demo")
MODELS = OUT / "models"
# The size that the checkpoint was trained at; everything else is as the workflow says.
SETTINGS = (
    "LightX2VLoadCheckpoint.checkpoint=tiny",
    "LightX2VEmptyLatent.width=64",
    "LightX2VEmptyLatent.height=64",
    "LightX2VEmptyLatent.num_frames=17",
)
# Times a frame is enlarged on the sheet.
SHEET_SCALE = 2


def clip_of(background: str, motion: str, *things: str) -> Content:
    """Say what a clip shall show; things are "colour shape"."""
    pairs = [thing.split() for thing in things]
    return Content(
        background=background, things=tuple(Thing(colour=colour, shape=shape, motion=motion) for colour, shape in pairs)
    )


# Each shows a combination of shape, colour, background and motion that no clip of the training had.
PROMPTS = {
    "A red circle rising on a black background.": clip_of("black", "up", "red circle"),
    "A yellow square falling in front of a green background.": clip_of("green", "down", "yellow square"),
    "A white triangle moving right on a red background.": clip_of("red", "right", "white triangle"),
    "On a purple background, a green square getting bigger.": clip_of("purple", "growing", "green square"),
    "A video of a white circle getting smaller on a red background.": clip_of("red", "shrinking", "white circle"),
    "A red triangle and a blue circle sliding to the left on a white background.": clip_of(
        "white", "left", "red triangle", "blue circle"
    ),
}


def main() -> int:
    """Draw, measure and show; returns 1 when a clip does not show what was asked for."""
    os.chdir(ROOT)
    shutil.rmtree(OUT, ignore_errors=True)
    try:
        shutil.copytree(CHECKPOINT, MODELS / "lightx2v" / "tiny")
    except OSError as error:
        sys.exit(f"Run it in a copy of the repository that can be written: {ROOT / OUT}: {error}.")
    start = time.monotonic()
    results = draw_clips(OUT / "prompts.txt")
    seconds = time.monotonic() - start
    clips = [read_video(Path(result["outputs"][0])) for result in results]
    measured = [measure_content(clip) for clip in clips]
    is_right = [print_result(*each) for each in zip(PROMPTS, PROMPTS.values(), measured, strict=True)]
    sheet = OUT / "sheet.png"
    enlarged = [clip.repeat_interleave(SHEET_SCALE, dim=1).repeat_interleave(SHEET_SCALE, dim=2) for clip in clips]
    draw_sheet(enlarged, list(PROMPTS)).save(sheet)
    print(f"\n{sum(is_right)} of {len(is_right)} clips show what was asked for; {seconds:.0f} s for all.\n")
    print(f"contact sheet:  {sheet.resolve()}")
    print(f"videos:         {Path(results[0]['outputs'][0]).parent}")
    return 0 if all(is_right) else 1


def draw_clips(prompts: Path) -> list[dict]:
    """Make a video for each prompt with tools/run_prompts.py; returns its results."""
    prompts.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    folders = ["--models-dir", str(MODELS), "--output-dir", str(OUT)]
    words = ["tools/run_prompts.py", str(prompts), "--workflow", str(WORKFLOW), *folders, *settings]
    print(f"$ python {shlex.join(words)}", flush=True)
    done = subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(done.returncode)
    with prompts.with_suffix(".results.jsonl").open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def read_video(path: Path) -> torch.Tensor:
    """Return the frames of a video file, [F, H, W, 3] in [0, 1]."""
    with av.open(str(path)) as container:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return torch.stack(frames).float() / 255


def print_result(prompt: str, wanted: Content, measured: Content) -> bool:
    """Print what was asked and what was measured; returns whether they agree."""
    wrong = [name for name, right in compare(measured, wanted).items() if not right]
    things = ", ".join(f"{thing.colour} {thing.shape} ({thing.motion})" for thing in measured.things) or "nothing"
    print(f"\nasked:     {prompt}")
    print(f"measured:  {things} on {measured.background}: {'wrong ' + ', '.join(wrong) if wrong else 'right'}")
    return not wrong


if __name__ == "__main__":
    sys.exit(main())
