"""The demo where it cannot run."""

from pathlib import Path

import pytest
from lightx2v_pack.demo import run


@pytest.mark.parametrize("place", ["file", "file/below", "file/below/more"])
def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch, place):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.chdir(Path.cwd())
    monkeypatch.setattr(run, "OUT", tmp_path / place)
    monkeypatch.setattr(run, "MODELS", tmp_path / place / "models")
    with pytest.raises(SystemExit) as caught:
        run.main()
    assert str(caught.value).startswith("Run it in a copy of the repository that can be written: ")
    assert str(tmp_path / place) in str(caught.value)
