"""What the loaders' combos offer, and that nothing else resolves."""

import inspect
import os
import sys
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
    # A repository is no transformer; its folders are.
    assert set(paths.CHECKPOINTS.options()) - {REPOSITORY} < set(paths.TRANSFORMERS.options())
    assert REPOSITORY not in paths.TRANSFORMERS.options()
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
        with pytest.raises(
            ValueError, match=r"^Choose another .* than .*, which is a path outside the model folders\."
        ):
            choice.resolve(name)


@pytest.mark.parametrize("name", ["gone.safetensors", "", ".", "lightx2v"])
def test_a_name_that_is_not_offered_is_refused_with_the_choices(paths, filled, name):
    with pytest.raises(
        ValueError, match=r"^Choose another checkpoint than .*, which was not found in the model folders\. "
    ):
        paths.CHECKPOINTS.resolve(name)


def test_empty_folders_offer_one_entry_that_says_what_to_do(paths):
    for choice in (paths.CHECKPOINTS, paths.TRANSFORMERS, paths.TEXT_ENCODERS, paths.VAES):
        (only,) = choice.options()
        assert only.startswith("none found: put ") and "models/" in only
        with pytest.raises(ValueError, match=r"^No .* was found\. To have one, .*put .*; then press R in the editor"):
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


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        ("TEXT_ENCODERS", "text_encoders/._umt5_xxl.safetensors"),
        ("TEXT_ENCODERS", "lightx2v/sub/._models_t5_umt5-xxl-enc-bf16.pth"),
        ("VAES", "vae/.wan_2.1_vae.safetensors"),
        ("VAES", "vae_approx/._taew2_1.pth"),
        ("TRANSFORMERS", "diffusion_models/.Trashes/wan.safetensors"),
        ("TRANSFORMERS", "lightx2v/._wan_4step.safetensors"),
        ("CHECKPOINTS", "lightx2v/.cache/block_0.safetensors"),
        ("LORAS", "loras/._fox.safetensors"),
        ("TOKENIZERS", "text_encoders/.cache/google/spiece.model"),
        ("TOKENIZERS", "lightx2v/google/.umt5/tokenizer.json"),
    ],
)
def test_names_that_begin_with_a_dot_are_no_models(paths, models_dir, choice, name):
    put(models_dir, name)
    assert getattr(paths, choice).names() == []
    put(models_dir, name.replace("/._", "/").replace("/.", "/"))
    (offered,) = getattr(paths, choice).names()
    assert (models_dir / name.partition("/")[0] / offered).exists()


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        ("TRANSFORMERS", "diffusion_models/WAN.SAFETENSORS"),
        ("TRANSFORMERS", "lightx2v/sub/Wan.SafeTensors"),
        ("CHECKPOINTS", "lightx2v/WAN.SAFETENSORS"),
        ("VAES", "vae_approx/TAEW2_1.PTH"),
        ("VAES", "lightx2v/WAN2.1_VAE.PTH"),
        ("TEXT_ENCODERS", "lightx2v/MODELS_T5.PTH"),
    ],
)
def test_upper_case_extensions_are_the_same(paths, models_dir, choice, name):
    put(models_dir, name)
    (offered,) = [found for found in getattr(paths, choice).names() if found.lower().endswith((".safetensors", ".pth"))]
    assert getattr(paths, choice).resolve(offered) == models_dir / name


@pytest.mark.parametrize(
    ("choice", "there", "name"),
    [
        ("TRANSFORMERS", "diffusion_models/wan/file.safetensors", "wan\\file.safetensors"),
        ("VAES", "vae/a/b/wan_vae.pth", "a\\b/wan_vae.pth"),
        ("LORAS", "loras/wan/fox.safetensors", "wan\\fox.safetensors"),
        ("CHECKPOINTS", "lightx2v/mine/distill_fp8/block_0.safetensors", "mine\\distill_fp8"),
        ("TOKENIZERS", "text_encoders/google/umt5-xxl/spiece.model", "google\\umt5-xxl"),
        # As a list on Windows has it, by the name that Linux saved.
        ("TEXT_ENCODERS", "text_encoders/wan\\umt5.pth", "wan/umt5.pth"),
    ],
)
def test_names_of_another_system_are_found(paths, models_dir, choice, there, name):
    put(models_dir, there)
    path = getattr(paths, choice).resolve(name)
    assert path == models_dir / there or path in (models_dir / there).parents
    assert path.name == name.replace("\\", "/").rpartition("/")[2] or "\\" in there


def test_the_exact_name_is_taken_before_one_of_another_system(paths, models_dir):
    put(models_dir, "vae/a/x.pth", "vae/a\\x.pth")
    assert paths.VAES.resolve("a\\x.pth") == models_dir / "vae" / "a\\x.pth"
    assert paths.VAES.resolve("a/x.pth") == models_dir / "vae" / "a" / "x.pth"


def test_a_real_folder_is_visited_once(paths, models_dir):
    folder = models_dir / "diffusion_models"
    for _ in range(20):
        (folder / "x").mkdir(parents=True)
        (folder / "y").symlink_to("x")
        folder = folder / "x"
    put(folder, "wan.safetensors")
    (folder / "back").symlink_to(models_dir / "diffusion_models")
    (folder / "up").symlink_to("..")
    name = "/".join(["x"] * 20) + "/wan.safetensors"
    assert paths.TRANSFORMERS.names() == [name]
    # A workflow that has another way to the same file still finds it.
    assert paths.TRANSFORMERS.resolve("y/" + name[2:]) == models_dir / "diffusion_models" / name
    with pytest.raises(ValueError, match="was not found"):
        paths.TRANSFORMERS.resolve("z/" + name[2:])


def test_the_shortest_way_to_a_folder_names_it(paths, models_dir):
    put(models_dir, "vae/a/deep/wan_vae.pth")
    (models_dir / "vae" / "z").symlink_to("a/deep")
    assert paths.VAES.names() == ["z/wan_vae.pth"]
    assert paths.VAES.resolve("a/deep/wan_vae.pth") == models_dir / "vae" / "z" / "wan_vae.pth"


def test_very_deep_folders_do_not_end_the_lists(paths, models_dir):
    """Deeper than Python calls itself, here with a low limit: a walk of more folders takes seconds."""
    put(models_dir, "vae/wan_vae.pth")
    os.makedirs(os.path.join(models_dir, "vae", *["d"] * 120))
    os.makedirs(os.path.join(models_dir, "text_encoders", *["d"] * 120))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 100)
    try:
        found = paths.VAES.names(), paths.TOKENIZERS.names()
    finally:
        sys.setrecursionlimit(limit)
    assert found == (["wan_vae.pth"], [])


@pytest.mark.parametrize("target", ["itself", "file/x", "long", "forbidden"])
@pytest.mark.parametrize("choice", ["TEXT_ENCODERS", "VAES", "LORAS"])
def test_what_may_not_be_looked_at_is_left_out_with_a_warning(paths, models_dir, monkeypatch, caplog, choice, target):
    root, name = {
        "TEXT_ENCODERS": ("text_encoders", "umt5.pth"),
        "VAES": ("vae", "wan_vae.pth"),
        "LORAS": ("loras", "x.safetensors"),
    }[choice]
    put(models_dir / root, name)
    other = models_dir / root / "other"
    if target == "forbidden":
        other.mkdir()
        scan = os.scandir

        def forbid(path):
            if os.fspath(path) == str(other):
                raise PermissionError(13, "Permission denied", str(path))
            return scan(path)

        monkeypatch.setattr(os, "scandir", forbid)
    else:
        other.symlink_to({"itself": "other", "file/x": models_dir / root / name / "x", "long": "x" * 300}[target])
    assert getattr(paths, choice).names() == [name]
    assert [str(other) in record.getMessage() for record in caplog.records].count(True) >= 1
    # Once, not at every look.
    caplog.clear()
    assert getattr(paths, choice).names() == [name]
    assert not caplog.records


@pytest.mark.parametrize("name", ["wan.safetensors", "sub/wan.safetensors", "sub\\wan.safetensors"])
def test_a_link_to_nothing_is_not_offered_and_named(paths, models_dir, name):
    put(models_dir, "diffusion_models/other.safetensors")
    link = models_dir / "diffusion_models" / name.replace("\\", "/")
    link.parent.mkdir(exist_ok=True)
    link.symlink_to("/mnt/unplugged/wan.safetensors")
    assert paths.TRANSFORMERS.names() == ["other.safetensors"]
    with pytest.raises(ValueError) as caught:
        paths.TRANSFORMERS.resolve(name)
    assert str(caught.value) == (
        "Make wan.safetensors lead to a file again, or choose another: other.safetensors. "
        f"{link} is a link to /mnt/unplugged/wan.safetensors, which cannot be reached."
    )


def test_only_the_nearest_names_are_listed(paths, models_dir):
    put(models_dir, *(f"loras/style_{index:03}.safetensors" for index in range(200)), "loras/Red-Fox_v2.safetensors")
    with pytest.raises(ValueError) as caught:
        paths.LORAS.resolve("red_fox_v1.safetensors")
    assert str(caught.value).startswith(
        "Choose another LoRA than 'red_fox_v1.safetensors', which was not found in the model folders. "
        "There are: Red-Fox_v2.safetensors, "
    )
    assert "(201 in all)" in str(caught.value) and len(str(caught.value)) < 240


def test_a_fingerprint_of_what_cannot_be_looked_at(paths, models_dir):
    folder = models_dir / "text_encoders"
    put(folder, "a.pth")
    before = paths.fingerprint(folder)
    (folder / "gone.pth").symlink_to("nothing")
    (folder / "loop.pth").symlink_to("loop.pth")
    assert paths.fingerprint(folder) != before
    assert paths.fingerprint(folder / "gone.pth") == paths.fingerprint(folder / "gone.pth")


def test_a_transformer_loader_offers_folders_that_hold_one_and_names_them_for_one_that_does_not(paths, models_dir):
    """A repository has a folder a precision; its own name is one for the loader of checkpoints."""
    folder = models_dir / "lightx2v"
    put(folder, "wan/distill_fp8/block_0.safetensors", "wan/distill_int8/block_0.safetensors")
    put(folder, "pair/distill_fp8/high_noise_model/block_0.safetensors")
    put(folder, "pair/distill_fp8/low_noise_model/block_0.safetensors")
    experts = [f"pair/distill_fp8/{noise}_noise_model" for noise in ("high", "low")]
    folders = ["pair/distill_fp8", *experts, "wan/distill_fp8", "wan/distill_int8"]
    assert paths.TRANSFORMERS.names() == folders
    assert paths.CHECKPOINTS.names() == sorted([*folders, "pair", "wan"])
    # From a workflow that was saved before.
    with pytest.raises(ValueError, match=r"^Choose wan/distill_fp8 or wan/distill_int8 instead of 'wan'"):
        paths.TRANSFORMERS.resolve("wan")
