"""What the loaders' combos offer, and that nothing else resolves."""

import os
from pathlib import Path

import pytest

REPOSITORY = "Wan2.1-T2V-14B-StepDistill"
FILES = {
    "checkpoint": (
        f"lightx2v/{REPOSITORY}/distill_fp8/non_block.safetensors",
        f"lightx2v/{REPOSITORY}/distill_fp8/block_0.safetensors",
        f"lightx2v/{REPOSITORY}/distill_models/wan_4step.safetensors",
        f"lightx2v/{REPOSITORY}/models_t5_umt5-xxl-enc-fp8.pth",
        f"lightx2v/{REPOSITORY}/Wan2.1_VAE.pth",
        f"lightx2v/{REPOSITORY}/google/umt5-xxl/spiece.model",
        "lightx2v/single_4step.safetensors",
    ),
    "other": (
        "diffusion_models/wan_fp8.safetensors",
        "diffusion_models/sub/other.safetensors",
        "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        "text_encoders/google/umt5-xxl/tokenizer.json",
        "vae/wan_2.1_vae.safetensors",
    ),
}


@pytest.fixture
def paths(models_dir):
    from lightx2v_pack.engine.adapters.comfy import paths

    return paths


@pytest.fixture
def filled(models_dir):
    for name in (*FILES["checkpoint"], *FILES["other"]):
        (models_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (models_dir / name).write_bytes(b"")
    return models_dir


def test_checkpoints_are_folders_and_single_files(paths, filled):
    assert paths.CHECKPOINTS.options() == [
        REPOSITORY,
        f"{REPOSITORY}/distill_fp8",
        f"{REPOSITORY}/distill_models",
        f"{REPOSITORY}{os.sep}distill_models{os.sep}wan_4step.safetensors",
        "single_4step.safetensors",
    ]


def test_other_combos_list_their_folder_and_the_checkpoints(paths, filled):
    assert paths.TRANSFORMERS.options()[:2] == [f"sub{os.sep}other.safetensors", "wan_fp8.safetensors"]
    assert set(paths.CHECKPOINTS.options()) < set(paths.TRANSFORMERS.options())
    assert [Path(name).name for name in paths.TEXT_ENCODERS.options()] == [
        "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        "models_t5_umt5-xxl-enc-fp8.pth",
    ]
    assert [Path(name).name for name in paths.VAES.options()] == ["wan_2.1_vae.safetensors", "Wan2.1_VAE.pth"]
    assert paths.TOKENIZERS.options() == [f"{REPOSITORY}/google/umt5-xxl", "google/umt5-xxl"]


def test_of_the_tiny_vaes_only_those_for_wan_are_offered(paths, filled):
    others = ("taew2_2.pth", "taesd_decoder.pth", "mytaew2_1.pth", "taef1.pt")
    for name in ("taew2_1.safetensors", "sub/lighttaew2_1.pth", *others):
        file = filled / "vae_approx" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"")
    (filled / "lightx2v" / REPOSITORY / "lighttaew2_1.safetensors").write_bytes(b"")
    found = [Path(name).name for name in paths.VAES.options()]
    assert found[0] == "wan_2.1_vae.safetensors"
    tiny = ["lighttaew2_1.pth", "lighttaew2_1.safetensors", "taew2_1.safetensors"]
    assert sorted(found[1:]) == ["Wan2.1_VAE.pth", *tiny]
    assert paths.VAES.resolve("taew2_1.safetensors") == filled / "vae_approx" / "taew2_1.safetensors"
    assert not any("tae" in name for name in paths.TRANSFORMERS.options())
    with pytest.raises(ValueError, match="was not found"):
        paths.VAES.resolve("taesd_decoder.pth")


def test_every_option_resolves_to_what_is_there(paths, filled):
    for choice in (paths.CHECKPOINTS, paths.TRANSFORMERS, paths.TEXT_ENCODERS, paths.TOKENIZERS, paths.VAES):
        for name in choice.options():
            assert choice.resolve(name).exists(), (choice.what, name)
    assert paths.CHECKPOINTS.resolve(REPOSITORY) == filled / "lightx2v" / REPOSITORY


def test_roots_of_extra_model_paths_count_too(paths, filled, tmp_path):
    import folder_paths

    extra = tmp_path / "other drive" / "wan"
    (extra / "mine").mkdir(parents=True)
    (extra / "mine" / "block_0.safetensors").write_bytes(b"")
    folder_paths.add_model_folder_path("lightx2v", str(extra))
    folder_paths.add_model_folder_path("lightx2v", str(tmp_path / "is not there"))
    assert "mine" in paths.CHECKPOINTS.options()
    assert paths.CHECKPOINTS.resolve("mine") == extra / "mine"


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../../etc/passwd", f"{REPOSITORY}/../../../secret", "C:\\x", "..\\x", "a\0b", "\\\\host\\x"],
)
def test_paths_outside_the_model_folders_are_refused(paths, filled, name):
    (filled.parent / "secret").mkdir()
    for choice in (paths.CHECKPOINTS, paths.TRANSFORMERS, paths.TEXT_ENCODERS, paths.TOKENIZERS, paths.VAES):
        with pytest.raises(ValueError, match=r"is a path outside the model folders\. Choose one of: "):
            choice.resolve(name)


@pytest.mark.parametrize("name", ["gone.safetensors", "", ".", "lightx2v"])
def test_a_name_that_is_not_offered_is_refused_with_the_choices(paths, filled, name):
    with pytest.raises(ValueError, match=rf"was not found in the model folders\. Choose one of: {REPOSITORY}"):
        paths.CHECKPOINTS.resolve(name)


def test_empty_folders_offer_one_entry_that_says_what_to_do(paths):
    for choice in (paths.CHECKPOINTS, paths.TRANSFORMERS, paths.TEXT_ENCODERS, paths.VAES):
        (only,) = choice.options()
        assert only.startswith("none found: put ") and "models/" in only
        with pytest.raises(ValueError, match=r"^No .* was found\. To have one, put .*; then press R in the editor"):
            choice.resolve(only)


def test_new_files_appear_without_a_restart(paths, models_dir):
    assert len(paths.VAES.names()) == 0
    (models_dir / "vae" / "wan_2.1_vae.safetensors").write_bytes(b"")
    assert paths.VAES.names() == ["wan_2.1_vae.safetensors"]


def test_fingerprint_changes_with_size_and_time_and_names_no_path(paths, filled):
    file = filled / "vae" / "wan_2.1_vae.safetensors"
    folder = filled / "text_encoders" / "google" / "umt5-xxl"
    before = paths.fingerprint(file, folder, None)
    assert before == paths.fingerprint(file, folder, None)
    assert str(filled) not in before
    file.write_bytes(b"longer")
    longer = paths.fingerprint(file, folder)
    os.utime(file, ns=(1, 1))
    older = paths.fingerprint(file, folder)
    (folder / "tokenizer.json").write_bytes(b"{}")
    assert len({before, longer, older, paths.fingerprint(file, folder)}) == 4
