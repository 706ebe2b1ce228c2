"""Which files form a checkpoint, on real folders of the tiny checkpoint."""

import json
import os
import shutil
from pathlib import Path

import pytest
from lightx2v_pack.engine.checkpoints.files import (
    find_tokenizers,
    list_checkpoint_folders,
    resolve_checkpoint,
    resolve_transformer,
)
from lightx2v_pack.engine.errors import CheckpointError
from lightx2v_pack.engine.panel import doctor
from safetensors.torch import load_file, save_file
from support import checkpoints

FOLDERS = ("distill_fp8", "distill_int8", "distill_models")
MODEL_REPOSITORY = "lightx2v/Wan2.1-T2V-14B-StepDistill-CfgDistill-Lightx2v"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the tiny model repository that a test may change."""
    return shutil.copytree(checkpoints.repository(), tmp_path / "repository")


@pytest.mark.parametrize(
    ("path", "precision", "scheme", "folder"),
    [
        ("", "auto", "fp8", "distill_fp8"),
        ("", "int8", "int8", "distill_int8"),
        ("", "bf16", "bf16", "distill_models"),
        ("distill_fp8", "auto", "fp8", "distill_fp8"),
        ("distill_int8", "int8", "int8", "distill_int8"),
        ("distill_models", "auto", "bf16", "distill_models"),
        ("distill_models/distill_model.safetensors", "auto", "bf16", "distill_models"),
    ],
)
def test_repository_folder_or_file(path: str, precision: str, scheme: str, folder: str) -> None:
    root = checkpoints.repository()
    found = resolve_checkpoint(root / path, precision)
    assert found.path == root / path
    assert found.transformer is not None
    assert found.transformer.format.precision == scheme
    assert found.transformer.layout == ("single" if scheme == "bf16" else "blocks")
    assert found.text_encoder == root / folder / f"models_t5_umt5-xxl-enc-{scheme}.pth"
    assert found.vae == root / folder / "Wan2.1_VAE.pth"
    assert found.tokenizer == root / folder / "google" / "umt5-xxl"
    assert found.missing == ()
    assert len(found.notes) == 4
    assert f"{scheme}, 2 blocks" in found.notes[0]
    assert ("precision auto" in found.notes[0]) == (precision == "auto")


def test_block_files_are_in_order(repository: Path) -> None:
    folder = repository / "distill_fp8"
    for index in range(2, 11):
        block = {
            name.replace("blocks.1.", f"blocks.{index}."): tensor
            for name, tensor in load_file(folder / "block_1.safetensors").items()
        }
        save_file(block, folder / f"block_{index}.safetensors")
    found = resolve_transformer(folder)
    assert [file.name for file in found.files] == [
        "non_block.safetensors",
        *(f"block_{index}.safetensors" for index in range(11)),
    ]
    assert found.format.architecture.num_layers == 11
    tensors = [tensor for file in found.files for tensor in load_file(file).values()]
    assert found.num_bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_auto_takes_the_next_precision_and_says_why(repository: Path) -> None:
    (repository / "distill_fp8" / "block_0.safetensors").unlink()
    found = resolve_checkpoint(repository)
    assert found.transformer is not None
    assert found.transformer.format.precision == "int8"
    (said,) = found.passed_over
    assert said.startswith("distill_fp8 is there and cannot be used, so distill_int8 (int8) is used. ")
    assert "block 0 is missing" in said
    with pytest.raises(CheckpointError, match="block 0 is missing"):
        resolve_checkpoint(repository, "fp8")


def test_named_precision_that_is_not_there(repository: Path) -> None:
    shutil.rmtree(repository / "distill_int8")
    with pytest.raises(CheckpointError, match=r"no int8 transformer: found distill_fp8/, distill_models/; expected"):
        resolve_checkpoint(repository, "int8")
    with pytest.raises(CheckpointError, match="holds fp8 weights; expected int8, as chosen"):
        resolve_checkpoint(repository / "distill_fp8", "int8")
    with pytest.raises(CheckpointError, match="holds bf16 weights; expected fp8"):
        resolve_checkpoint(checkpoints.single_file("bf16"), "fp8")
    with pytest.raises(ValueError, match="precision is 'fp4'"):
        resolve_checkpoint(repository, "fp4")


def test_companions_come_from_the_root_or_a_sibling(repository: Path) -> None:
    fp8, int8 = repository / "distill_fp8", repository / "distill_int8"
    (fp8 / "Wan2.1_VAE.pth").rename(repository / "wan_2.1_vae.safetensors")
    shutil.rmtree(fp8 / "google")
    (fp8 / "models_t5_umt5-xxl-enc-fp8.pth").unlink()
    for path in (repository, fp8):
        found = resolve_checkpoint(path, "fp8")
        assert found.vae == repository / "wan_2.1_vae.safetensors"
        assert found.tokenizer == int8 / "google" / "umt5-xxl"
        assert found.text_encoder == int8 / "models_t5_umt5-xxl-enc-int8.pth"
        assert any("No fp8 text encoder is there" in note for note in found.notes)
        assert found.missing == ()


def test_missing_companions_are_named_with_their_place(tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints.repository() / "distill_int8", tmp_path / "distill_int8")
    for name in ("models_t5_umt5-xxl-enc-int8.pth", "Wan2.1_VAE.pth"):
        (folder / name).unlink()
    shutil.rmtree(folder / "google")
    found = resolve_checkpoint(folder)
    assert (found.text_encoder, found.vae, found.tokenizer) == (None, None, None)
    expected = ("models_t5_umt5-xxl-enc-int8.pth", "Wan2.1_VAE.pth", "google/umt5-xxl/")
    for name, sentence in zip(expected, found.missing, strict=True):
        assert f"expected {name} in {folder}" in sentence
        assert f"in distill_int8/ of the model repository {MODEL_REPOSITORY}" in sentence
        assert ("at the root or in" in sentence) == (name == "google/umt5-xxl/")


def test_folder_without_transformer_keeps_its_other_parts(repository: Path) -> None:
    for file in (repository / "distill_models").glob("*.safetensors"):
        file.unlink()
    found = resolve_checkpoint(repository / "distill_models")
    assert found.transformer is None
    assert found.vae == repository / "distill_models" / "Wan2.1_VAE.pth"
    assert found.missing[0].startswith("The transformer is missing: expected block_<i>.safetensors")


def test_single_file_takes_what_lies_beside_it(tmp_path: Path) -> None:
    lone = checkpoints.comfy_transformer()
    assert len(resolve_checkpoint(lone).missing) == 3
    file = Path(shutil.copy(lone, tmp_path))
    shutil.copy(checkpoints.comfy_text_encoder(), tmp_path)
    shutil.copy(checkpoints.vae(), tmp_path / "Wan2_1_VAE_bf16.safetensors")
    shutil.copy(checkpoints.vae(), tmp_path / "taew2_1.safetensors")
    for path in (file, tmp_path):
        found = resolve_checkpoint(path)
        assert found.transformer is not None
        assert found.transformer.files == (file,)
        assert found.text_encoder == tmp_path / "umt5_xxl_fp16.safetensors"
        assert found.vae == tmp_path / "Wan2_1_VAE_bf16.safetensors"
        assert found.tokenizer is None
        assert f"The tokenizer is {found.text_encoder}." in found.notes
        assert found.missing == ()


def test_text_encoder_of_the_same_precision_is_preferred(tmp_path: Path) -> None:
    for file in (
        checkpoints.single_file("fp8"),
        checkpoints.comfy_text_encoder(),
        checkpoints.comfy_text_encoder(True),
    ):
        shutil.copy(file, tmp_path)
    assert resolve_checkpoint(tmp_path).text_encoder == tmp_path / "umt5_xxl_fp8_e4m3fn_scaled.safetensors"


def write_shards(folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    tensors = load_file(checkpoints.single_file("bf16"))
    names = sorted(tensors)
    shards = [f"diffusion_pytorch_model-0000{index}-of-00003.safetensors" for index in (1, 2, 3)]
    for index, shard in enumerate(shards):
        save_file({name: tensors[name] for name in names[index::3]}, folder / shard)
    return shards


@pytest.mark.parametrize("has_index", [True, False])
def test_shards(tmp_path: Path, has_index: bool) -> None:
    shards = write_shards(tmp_path)
    if has_index:
        index = {"weight_map": {f"tensor {i}": shard for i, shard in enumerate(shards)}}
        (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    found = resolve_transformer(tmp_path)
    assert (found.layout, [file.name for file in found.files]) == ("sharded", shards)
    assert found.format.architecture.num_layers == 2
    (tmp_path / shards[1]).unlink()
    with pytest.raises(CheckpointError, match=f"^Download .*: 1 of 3 files are missing \\({shards[1]}\\)"):
        resolve_transformer(tmp_path)


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("model.safetensors.index.json", 2),
        ("diffusion_pytorch_model.safetensors.index.json", 14),
        ("WAN.SAFETENSORS.INDEX.JSON", 1),
    ],
)
def test_an_index_without_its_shards_is_listed_and_names_them(tmp_path: Path, name: str, total: int) -> None:
    folder = tmp_path / "lightx2v" / "mine"
    folder.mkdir(parents=True)
    shards = [f"model-{index:05}-of-{total:05}.safetensors" for index in range(1, total + 1)]
    (folder / name).write_text(json.dumps({"weight_map": {f"tensor {i}": shard for i, shard in enumerate(shards)}}))
    assert list_checkpoint_folders(tmp_path / "lightx2v") == ["mine"]
    for resolve in (resolve_transformer, resolve_checkpoint):
        with pytest.raises(CheckpointError, match=f"^Download .*{total} of {total} files .*{shards[0]}"):
            resolve(folder)
    items = {item.name: item for item in doctor.examine({"mine": folder}, tmp_path)}
    assert items["mine"].state == "warn" and shards[0] in items["mine"].remedy


@pytest.mark.parametrize("name", ["umt5.safetensors.index.json", "index.json", "model.safetensors.index.txt"])
def test_other_indices_are_no_transformer(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("{}")
    assert list_checkpoint_folders(tmp_path) == []


def test_damaged_shard_index(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not an index of safetensors shards"):
        resolve_transformer(tmp_path)


def test_two_models_in_one_folder(tmp_path: Path) -> None:
    for precision in ("fp8", "int8"):
        shutil.copy(checkpoints.single_file(precision), tmp_path)
    with pytest.raises(CheckpointError, match=r"Choose one of the files in .*more than one transformer"):
        resolve_transformer(tmp_path)


def test_missing_blocks_are_named(repository: Path) -> None:
    folder = repository / "distill_fp8"
    (folder / "block_1.safetensors").unlink()
    block = {
        name.replace("blocks.0.", "blocks.5."): tensor
        for name, tensor in load_file(folder / "block_0.safetensors").items()
    }
    save_file(block, folder / "block_5.safetensors")
    with pytest.raises(CheckpointError, match=r"blocks 1-4 are missing \(expected block_1.safetensors, .*block_4"):
        resolve_transformer(folder)


def test_missing_non_block_file(repository: Path) -> None:
    (repository / "distill_fp8" / "non_block.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"non_block.safetensors is missing .*distill_fp8/ of {MODEL_REPOSITORY}"):
        resolve_transformer(repository / "distill_fp8")


def test_only_the_non_block_file(repository: Path) -> None:
    (repository / "distill_fp8" / "block_0.safetensors").unlink()
    (repository / "distill_fp8" / "block_1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"block 0 is missing \(expected block_0.safetensors\)"):
        resolve_transformer(repository / "distill_fp8")


def test_incomplete_block(repository: Path) -> None:
    file = repository / "distill_int8" / "block_1.safetensors"
    tensors = load_file(file)
    del tensors["blocks.1.norm3.bias"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"a tensor is missing \(blocks.1.norm3.bias\)"):
        resolve_transformer(file.parent)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-100], "^Download the file again.*truncated: found .* bytes, expected "),
        (lambda data: data[:1000], "cut off in its header"),
        (lambda data: data + b"x", "longer than its header says"),
        (lambda data: data[:8] + b"{" * 50 + data[58:], "header of .* is corrupt"),
        (
            lambda data: data.replace(b'"shape":[512]', b'"shape":[500]', 1),
            "header of .* corrupt .*1000 bytes, not 1024",
        ),
        (lambda data: b"GGUF" + data[4:], "ComfyUI-GGUF.*is a GGUF file; expected safetensors"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        (lambda data: b"<!DOCTYPE html><html></html>", "is a web page"),
        (lambda data: b"PK\x03\x04" + data[4:], "PyTorch .pth"),
        (lambda data: b"", "not a safetensors file"),
    ],
)
def test_damaged_file(tmp_path: Path, damage, message: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(damage(checkpoints.single_file("bf16").read_bytes()))
    with pytest.raises(CheckpointError, match=message) as refusal:
        resolve_checkpoint(file)
    assert str(file) in str(refusal.value)


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="missing or not a file"):
        resolve_transformer(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no transformer to load: it is empty; expected block_<i>.safetensors"),
        (["notes.txt"], "found notes.txt"),
        (["wan2.1-t2v-14b-Q4_K_M.gguf"], "ComfyUI-GGUF.*is a GGUF file"),
        (["model_index.json"], "Use a Wan model with Wan's native names.*diffusers' layout"),
        (["distill_model.pt"], "safetensors only.*PyTorch .pt file"),
    ],
)
def test_folders_without_a_transformer(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    for resolve in (resolve_checkpoint, resolve_transformer):
        with pytest.raises(CheckpointError, match=message):
            resolve(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"_class_name": "WanPipeline"},
            "Use the same model with Wan's native names.*the index of WanPipeline, Wan in",
        ),
        ({"_class_name": "StableDiffusionXLPipeline"}, "Load it with ComfyUI's own nodes.*index of StableDiffusionXLP"),
        ({"_class_name": "CogVideoXPipeline"}, "of CogVideoXPipeline, a model of another family"),
        ({"_class_name": ["Wan"]}, "Use a Wan model with Wan's native names"),
        ([], "Use a Wan model with Wan's native names"),
    ],
)
def test_a_folder_of_diffusers_is_named_by_its_pipeline(tmp_path: Path, content, message: str) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(content))
    (tmp_path / "transformer").mkdir()
    for resolve in (resolve_checkpoint, resolve_transformer):
        with pytest.raises(CheckpointError, match=message):
            resolve(tmp_path)


@pytest.mark.parametrize("suffix", [".gguf", ".pt", ".pth"])
def test_files_that_are_not_safetensors(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"model{suffix}"
    file.write_bytes(b"anything")
    with pytest.raises(CheckpointError, match=f"{suffix[1:].upper() if suffix == '.gguf' else suffix} file; expected"):
        resolve_transformer(file)


def test_find_tokenizers(repository: Path, tmp_path: Path) -> None:
    fp8 = repository / "distill_fp8"
    all_of_them = [repository / folder / "google" / "umt5-xxl" for folder in FOLDERS]
    for near in (fp8 / "models_t5_umt5-xxl-enc-fp8.pth", fp8):
        assert find_tokenizers(near) == all_of_them
    assert find_tokenizers(fp8 / "google" / "umt5-xxl")[0] == all_of_them[0]
    shutil.rmtree(fp8 / "google")
    assert find_tokenizers(fp8 / "any.pth") == all_of_them[1:]
    for folder in FOLDERS[1:]:
        shutil.rmtree(repository / folder / "google")
    assert find_tokenizers(fp8) == []
    (tmp_path / "google" / "umt5-xxl").mkdir(parents=True)
    assert find_tokenizers(fp8) == []
    (tmp_path / "google" / "umt5-xxl" / "spiece.model").touch()
    assert find_tokenizers(fp8) == [tmp_path / "google" / "umt5-xxl"]
    # The model's own folder goes before what lies beside the file, which may be another T5's.
    (fp8 / "tokenizer.json").touch()
    assert find_tokenizers(fp8) == [tmp_path / "google" / "umt5-xxl", fp8]


needs_links = pytest.mark.skipif(os.name == "nt", reason="creating links needs a privilege on Windows")


@needs_links
def test_list_checkpoint_folders(tmp_path: Path) -> None:
    def touch(name: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    for name in (
        "repo/distill_fp8/block_0.safetensors",
        "repo/distill_models/distill_model.safetensors",
        "repo/google/umt5-xxl/tokenizer.json",
        "repo/original/models_t5_umt5-xxl-enc-bf16.pth",
        "b/nested/split/non_block.safetensors",
        "text_encoders/umt5_xxl_fp16.safetensors",
        "vae/wan_2.1_vae.safetensors",
        "loras/some_rank64.safetensors",
        ".cache/model.safetensors",
        "gguf/model.gguf",
        "at_the_root.safetensors",
    ):
        touch(name)
    expected = ["b/nested/split", "repo", "repo/distill_fp8", "repo/distill_models"]
    assert list_checkpoint_folders(tmp_path) == expected

    (tmp_path / "repo" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "link").symlink_to(tmp_path / "repo" / "distill_fp8", target_is_directory=True)
    (tmp_path / "broken").symlink_to(tmp_path / "gone")
    assert list_checkpoint_folders(tmp_path) == expected
    assert list_checkpoint_folders(tmp_path / "nothing") == []


def test_a_folder_behind_links_is_listed_once(tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere" / "distill_int8"
    outside.mkdir(parents=True)
    (outside / "block_0.safetensors").touch()
    root = tmp_path / "models"
    root.mkdir()
    for number in range(20):
        (root / f"way_{number:02}").symlink_to(outside, target_is_directory=True)
    (root / "also").symlink_to("way_00", target_is_directory=True)
    assert list_checkpoint_folders(root) == ["also"]


def test_many_ways_take_no_longer(tmp_path: Path) -> None:
    """Twenty levels with a second link each are a million ways, and twenty folders."""
    folder = tmp_path
    for _ in range(20):
        (folder / "next").mkdir()
        (folder / "again").symlink_to("next", target_is_directory=True)
        folder = folder / "next"
    (folder / "non_block.safetensors").touch()
    assert list_checkpoint_folders(tmp_path) == ["/".join(["next"] * 20)]


@pytest.mark.parametrize("target", ["itself", "file/x", "long"])
def test_links_to_nothing_are_left_out(tmp_path: Path, target) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "block_0.safetensors").touch()
    other = tmp_path / "other"
    other.symlink_to({"itself": "other", "file/x": "good/block_0.safetensors/x", "long": "x" * 300}[target])
    assert list_checkpoint_folders(tmp_path) == ["good"]


def test_a_folder_that_may_not_be_entered_is_left_out_with_a_warning(tmp_path: Path, monkeypatch, caplog) -> None:
    for name in ("good", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "block_0.safetensors").touch()
    scan = os.scandir

    def forbid(path):
        if os.path.basename(os.fspath(path)) == "other":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", forbid)
    assert list_checkpoint_folders(tmp_path) == ["good"]
    assert "other is not searched for checkpoints" in caplog.text


@needs_links
def test_linked_repository_resolves(tmp_path: Path) -> None:
    link = tmp_path / "linked"
    link.symlink_to(checkpoints.repository(), target_is_directory=True)
    assert resolve_checkpoint(link).missing == ()
