"""Model folders and a runner for the workflow tests."""

import sys

import pytest
from lightx2v_pack.tools.headless.boot import boot
from lightx2v_pack.tools.headless.progress import Progress
from ship import CLIP_VISION
from support import examples


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory):
    """A models folder with every file that the example workflows name."""
    return examples.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def infos(models_dir, tmp_path_factory):
    """What each node says of itself, as GET /object_info of a ComfyUI without a server."""
    infos = boot(models_dir, tmp_path_factory.mktemp("output"), Progress(sys.stderr, quiet=True)).infos
    return CLIP_VISION | infos


@pytest.fixture
def run(models_dir, tmp_path, capsys):
    """Call the command: run(workflow, *arguments) -> examples.Run; results go to tmp_path / "output"."""

    def call(workflow, *arguments, models=models_dir):
        folders = ("--models-dir", models, "--output-dir", tmp_path / "output")
        return examples.run_command(capsys, workflow, *folders, *arguments)

    return call
