"""Model folders and a runner for the workflow tests."""

import pytest
from support import examples


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory):
    """A models folder with every file that the example workflows name."""
    return examples.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def run(models_dir, tmp_path, capsys):
    """Call the command: run(workflow, *arguments) -> examples.Run; results go to tmp_path / "output"."""

    def call(workflow, *arguments, models=models_dir):
        folders = ("--models-dir", models, "--output-dir", tmp_path / "output")
        return examples.run_command(capsys, workflow, *folders, *arguments)

    return call
