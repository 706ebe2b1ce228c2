"""Files and folders as people have them: damaged, renamed, locked, foreign. The right reading, or a sentence."""

import json
import logging
import os
import pickle
import re
import shutil
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from lightx2v_pack.engine import pipeline
from lightx2v_pack.engine.checkpoints.companions import choose_tokenizer, resolve_text_encoder, resolve_vae
from lightx2v_pack.engine.checkpoints.files import resolve_checkpoint, resolve_transformer
from lightx2v_pack.engine.checkpoints.header import read_header
from lightx2v_pack.engine.checkpoints.names import path_promises_distilled
from lightx2v_pack.engine.checkpoints.source import TransformerCheckpoint
from lightx2v_pack.engine.checkpoints.vocabulary import count_pieces
from lightx2v_pack.engine.checkpoints.weights import open_weights
from lightx2v_pack.engine.errors import CheckpointError, NonFiniteLatentsError
from lightx2v_pack.engine.handles import TransformerHandle, VaeHandle
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.lora.reader import read_lora
from lightx2v_pack.engine.memory.tiles import Tile
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings
from lightx2v_pack.engine.umt5.tokenizer import open_tokenizer
from lightx2v_pack.tools import make_tiny_checkpoint as tiny
from safetensors.torch import load_file, save_file
from support import checkpoints, loras
from support.rights import forbidden, needs_rights, open_folder
from support.tensors import normal

KEY = "_quantization_metadata"
CPU = torch.device("cpu")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the tiny model repository that a test may change."""
    return shutil.copytree(checkpoints.repository(), tmp_path / "repository")


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """Return the parameters of a transformer as an engine gets them."""
    source = TransformerCheckpoint(resolve_transformer(path))
    return {spec.name: source.read(spec).clone() for spec in source.specs}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    assert all(torch.equal(found[name].float(), each.float()) for name, each in expected.items())


# What a file declares about its own numbers


def layers_of(tensors: dict[str, torch.Tensor]) -> list[str]:
    return [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]


def write_declared(file: Path, precision: str, said: dict, *, in_tensors: bool, only: int | None = None) -> Path:
    """Write an 8-bit transformer whose layers are declared, the first `only` or all of them."""
    tensors = load_file(checkpoints.single_file(precision))
    layers = layers_of(tensors)[:only]
    if in_tensors:
        raw = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
        save_file(tensors | {f"{layer}.comfy_quant": raw.clone() for layer in layers}, file)
    else:
        table = {"format_version": "1.0", "layers": dict.fromkeys(layers, said)}
        save_file(tensors, file, metadata={KEY: json.dumps(table)})
    return file


@pytest.mark.parametrize("in_tensors", [False, True])
@pytest.mark.parametrize(
    ("precision", "said"),
    [
        ("int8", {"format": "int8_tensorwise"}),
        ("int8", {"format": "int8_tensorwise", "convrot": False, "convrot_groupsize": 256}),
        ("fp8", {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}),
    ],
)
def test_what_is_declared_as_it_is_stored_loads(tmp_path, precision, said, in_tensors) -> None:
    file = write_declared(tmp_path / "model.safetensors", precision, said, in_tensors=in_tensors)
    assert_same(tensors_of(file), tensors_of(checkpoints.single_file(precision)))


@pytest.mark.parametrize("in_tensors", [False, True])
@pytest.mark.parametrize(
    ("precision", "said", "named"),
    [
        ("int8", {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256}, "convrot True.*rotated"),
        ("int8", {"format": "int8_rotated", "group": 64}, "int8_rotated with group 64"),
        ("int8", {"format": "mxfp8"}, "mxfp8; expected"),
        ("fp8", {"format": "float8_e8m0fnu"}, "float8_e8m0fnu; expected"),
        ("fp8", {"format": "int8_tensorwise"}, "int8_tensorwise, and stores them as fp8"),
        ("fp8", {"format": None}, "None; expected"),
    ],
)
@pytest.mark.parametrize("only", [1, None])
def test_what_is_declared_otherwise_is_refused_by_name(tmp_path, precision, said, named, in_tensors, only) -> None:
    file = write_declared(tmp_path / "model.safetensors", precision, said, in_tensors=in_tensors, only=only)
    with pytest.raises(CheckpointError, match=rf"declares {only or 20} of its layers.*{named}.*would give noise"):
        resolve_transformer(file)


@pytest.mark.parametrize("text", ["[", "[]", '{"layers": []}', '{"layers": {"a": 1}}', "{}", "[" * 100_000])
def test_a_declaration_that_cannot_be_read(tmp_path, text) -> None:
    file = tmp_path / "model.safetensors"
    save_file(load_file(checkpoints.single_file("int8")), file, metadata={KEY: text})
    with pytest.raises(CheckpointError, match="declares its quantization in a form that cannot be read"):
        resolve_transformer(file)


def test_more_is_declared_than_there_are_tensors(tmp_path) -> None:
    layers = {f"x{number}": {"format": f"q{number}"} for number in range(20_000)}
    file = tmp_path / "model.safetensors"
    save_file(load_file(checkpoints.single_file("fp8")), file, metadata={KEY: json.dumps({"layers": layers})})
    with pytest.raises(CheckpointError, match="names 20000 tensors, where a real model has fewer"):
        resolve_transformer(file)


def test_of_many_declarations_the_commonest_is_said(tmp_path) -> None:
    kinds = {"x": {"format": "q1"}, "y": {"format": "q2"}, "z": {"format": "q2"}, "v": {"format": "float8_e4m3fn"}}
    layers = {"layers": kinds | {f"v{number}": {"format": "float8_e4m3fn"} for number in range(9)}}
    file = tmp_path / "model.safetensors"
    save_file(load_file(checkpoints.single_file("fp8")), file, metadata={KEY: json.dumps(layers)})
    with pytest.raises(CheckpointError, match=r"declares 2 of its layers, e.g. y, as q2"):
        resolve_transformer(file)


def test_text_encoders_declare_too(tmp_path) -> None:
    tensors = load_file(checkpoints.comfy_text_encoder(True))
    tensors = {name.replace("scale_weight", "weight_scale"): tensor for name, tensor in tensors.items()}
    said = {"layers": {name: {"format": "float8_e4m3fn"} for name in layers_of(tensors)}}
    save_file(tensors, tmp_path / "plain.safetensors", metadata={KEY: json.dumps(said)})
    assert resolve_text_encoder(tmp_path / "plain.safetensors", None).format.precision == "fp8"
    said["layers"] = {name: {"format": "float8_e4m3fn", "rotated": 1} for name in layers_of(tensors)}
    save_file(tensors, tmp_path / "rotated.safetensors", metadata={KEY: json.dumps(said)})
    with pytest.raises(CheckpointError, match="rotated 1"):
        resolve_text_encoder(tmp_path / "rotated.safetensors", None)


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_scales_of_one_number_a_row_in_either_shape(tmp_path, precision) -> None:
    stored = load_file(checkpoints.single_file(precision))
    flat = {name: each.flatten() if name.endswith("_scale") else each for name, each in stored.items()}
    save_file(flat, tmp_path / "model.safetensors")
    assert_same(tensors_of(tmp_path / "model.safetensors"), tensors_of(checkpoints.single_file(precision)))


# Whose tokenizer it is

ROWS = tiny.TinySizes(vocab_size=900)


def resized(source: Path, target: Path, num_pieces: int) -> Path:
    """Write a tokenizer of more or fewer pieces than another one."""
    target.mkdir(parents=True, exist_ok=True)
    table = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = table["model"]["vocab"]
    pieces += [[f"extra{number}", -30.0] for number in range(num_pieces - len(pieces))]
    del pieces[num_pieces:]
    (target / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")
    return target


@pytest.fixture
def encoder(tmp_path) -> Path:
    """A text encoder of 900 rows in a folder of its own."""
    (tmp_path / "text_encoders").mkdir()
    file = tmp_path / "text_encoders" / "umt5_xxl.safetensors"
    return tiny.write_text_encoder(file, checkpoints.text_encoder_weights(ROWS), "bf16")


OWN = checkpoints.repository() / "distill_fp8" / "google" / "umt5-xxl"


@pytest.mark.parametrize("others", [100, 387, 901, 2000])
def test_the_tokenizer_is_the_one_of_as_many_pieces(encoder, others, caplog) -> None:
    right = resized(OWN, encoder.parent / "google" / "umt5-xxl", 880)
    resized(OWN, encoder.parent, others)
    with caplog.at_level(logging.INFO):
        handle = pipeline.load_text_encoder(encoder)
    assert handle.files.tokenizer == right and f"the tokenizer is {right}" in caplog.text
    with pytest.raises(CheckpointError, match=rf"Choose the google/umt5-xxl tokenizer.*900 rows.*has {others} pieces"):
        pipeline.load_text_encoder(encoder, tokenizer=encoder.parent)


@pytest.mark.parametrize("others", [100, 387, 901])
def test_another_models_tokenizer_alone_is_refused(encoder, others) -> None:
    resized(OWN, encoder.parent / "google" / "umt5-xxl", others)
    with pytest.raises(CheckpointError, match=f"has {others} pieces"):
        pipeline.load_text_encoder(encoder)


@pytest.mark.parametrize("num_pieces", [388, 880, 900])
def test_pieces_are_counted_alike_in_both_files(encoder, num_pieces) -> None:
    right = resized(OWN, encoder.parent / "google", num_pieces)
    assert choose_tokenizer(encoder, [right]) == right
    (encoder.parent / "spiece.model").write_bytes(checkpoints.spiece_model())
    count = len(json.loads((OWN / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])
    few = tiny.TinySizes(vocab_size=count - 1)
    file = tiny.write_text_encoder(encoder.parent / "t5.safetensors", checkpoints.text_encoder_weights(few), "bf16")
    with pytest.raises(CheckpointError, match=f"has {count} pieces"):
        choose_tokenizer(file, [encoder.parent / "spiece.model"])


@pytest.mark.parametrize("name", ["tokenizer.json", "spiece.model"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"<!doctype html>", "is a web page; expected the google/umt5-xxl"),
        (b"version https://git-lfs.github.com/spec/v1", "git-lfs pointer"),
        (b"[" * 100_000, "cannot be read"),
        (b"\xff" * 100, "cannot be read"),
    ],
)
def test_a_tokenizer_that_is_none(encoder, name, content, message) -> None:
    (encoder.parent / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        choose_tokenizer(encoder, [encoder.parent])
    with pytest.raises(CheckpointError, match=message):
        open_tokenizer(encoder.parent)


def test_what_is_wrong_with_the_only_tokenizer_is_what_is_said(encoder) -> None:
    (encoder.parent / "spiece.model").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"the tokenizer .*spiece.model cannot be read \(no list of pieces\)"):
        choose_tokenizer(encoder, [encoder.parent])


def test_a_tokenizer_of_gigabytes_is_not_read(encoder) -> None:
    for name in ("tokenizer.json", "spiece.model"):
        with (encoder.parent / name).open("wb") as file:
            file.truncate(4 * 2**30)
        with pytest.raises(CheckpointError, match=rf"{name} is 4294967296 bytes long"):
            open_tokenizer(encoder.parent / name)


def with_normalizer(folder: Path, *rules: dict) -> Path:
    table = json.loads((OWN / "tokenizer.json").read_text(encoding="utf-8"))
    table["normalizer"] = {"type": "Sequence", "normalizers": list(rules)}
    (folder / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")
    return folder


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*$", "(a+a+)+c"])
def test_a_pattern_without_end_is_an_error_and_ends_no_thread(tmp_path, pattern) -> None:
    """The library panics with a BaseException, which ComfyUI's worker does not catch."""
    encode = open_tokenizer(
        with_normalizer(tmp_path, {"type": "Replace", "pattern": {"Regex": pattern}, "content": ""})
    )
    assert encode("a b")
    with pytest.raises(CheckpointError, match="cannot be read"):
        encode("a" * 40 + "b!")


@pytest.mark.parametrize(
    "rules",
    [
        [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 34,
        [{"type": "Prepend", "prepend": "x" * 1000}],
        [{"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 99}]}],
    ],
)
def test_rules_that_make_a_text_longer_and_longer(tmp_path, rules) -> None:
    with pytest.raises(CheckpointError, match="many times as long"):
        open_tokenizer(with_normalizer(tmp_path, *rules))


# What is in a file beside what is read


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (
            {"blocks.0.self_attn.q.lora_down.weight": (4, 256), "blocks.0.self_attn.q.lora_up.weight": (256, 4)},
            "2 .*LoRA",
        ),
        ({"cam_encoder.weight": (256, 24)}, "1 tensors that belong to no such model, e.g. cam_encoder.weight"),
        ({"blocks.20000000.modulation": (1, 6, 256), "unknown": (1,)}, "2 tensors that belong"),
    ],
)
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_tensors_that_nothing_reads_are_counted(tmp_path, extra, named, precision, caplog) -> None:
    file = tmp_path / "distilled.safetensors"
    more = {name: torch.ones(shape) for name, shape in extra.items()}
    save_file(load_file(checkpoints.single_file(precision)) | more, file)
    pipeline.load_transformer(file, settings=EngineSettings(), offload=OffloadSettings())
    assert len(caplog.messages) == 1
    assert file.name in caplog.text and "are not used" in caplog.text and re.search(named, caplog.text)
    assert_same(tensors_of(file), tensors_of(checkpoints.single_file(precision)))


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_nothing_is_said_of_files_as_they_are_published(precision, caplog) -> None:
    for path in (checkpoints.single_file(precision), checkpoints.distilled(precision), checkpoints.comfy_transformer()):
        found = resolve_transformer(path)
        assert found.notes == () and found.promises_distilled


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("models/lightx2v/Wan2.1-T2V-14B-StepDistill-CfgDistill-Lightx2v/distill_fp8/non_block.safetensors", True),
        ("models/diffusion_models/wan2.1_t2v_14b_lightx2v_4step.safetensors", True),
        ("models/diffusion_models/Wan2.1-T2V-14B-4steps.safetensors", True),
        ("models/diffusion_models/wan2.2_t2v_high_noise_14B_lightning.safetensors", True),
        ("models/lightx2v/wan2.1_t2v_14B_bf16.safetensors", False),
        ("models/diffusion_models/wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors", False),
        ("models/diffusion_models/Wan2_1-T2V-14B_fp8_e4m3fn.safetensors", False),
        ("models/diffusion_models/wan21_30step.safetensors", True),
        ("models/diffusion_models/wan_4stepper_no.safetensors", False),
    ],
)
def test_names_that_promise_four_steps(path, expected) -> None:
    assert path_promises_distilled(Path(path)) == expected


@pytest.mark.parametrize("prefixes", [("", "model.diffusion_model."), ("diffusion_model.", "model.diffusion_model.")])
@pytest.mark.parametrize("is_one_file", [True, False])
def test_two_models_in_one_place_are_refused_by_name(tmp_path, prefixes, is_one_file) -> None:
    tensors = load_file(checkpoints.single_file("bf16"))
    parts = [{prefix + name: each.clone() for name, each in tensors.items()} for prefix in prefixes]
    if is_one_file:
        save_file(parts[0] | parts[1], tmp_path / "both.safetensors")
    else:
        for name, part in zip("ab", parts, strict=True):
            save_file(part, tmp_path / f"{name}.safetensors")
    place = tmp_path / "both.safetensors" if is_one_file else tmp_path
    with pytest.raises(CheckpointError, match=r"2 models, under|more than one transformer"):
        resolve_transformer(place)


@pytest.mark.parametrize("prefix", ["module.", "net.", "student.model.", "model.diffusion_model."])
def test_whatever_stands_before_all_names_is_left_off(tmp_path, prefix) -> None:
    for precision in ("bf16", "int8"):
        file = tmp_path / f"{precision}-distill.safetensors"
        stored = load_file(checkpoints.single_file(precision))
        save_file({prefix + name: tensor for name, tensor in stored.items()}, file)
        assert_same(tensors_of(file), tensors_of(checkpoints.single_file(precision)))
    vae, text = tmp_path / "vae.safetensors", tmp_path / "t5.safetensors"
    save_file({prefix + name: each for name, each in load_file(checkpoints.vae()).items()}, vae)
    assert resolve_vae(vae).format.prefix == prefix
    save_file({prefix + name: each for name, each in load_file(checkpoints.text_encoder("bf16")).items()}, text)
    assert resolve_text_encoder(text, OWN).format.prefix == prefix


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        (("high.", "low."), r"high\., low\."),
        (("model.", "model_ema."), r"model\., model_ema\."),
        (("", "ema."), r"no prefix, ema\."),
        (("model.diffusion_model.", "generator_ema."), r"model\.diffusion_model\., generator_ema\."),
    ],
)
def test_two_models_in_one_file_are_named(parts, named, tmp_path) -> None:
    path = tmp_path / "both.safetensors"
    for file, resolve in (
        (checkpoints.single_file("bf16"), resolve_transformer),
        (checkpoints.vae(), resolve_vae),
        (checkpoints.text_encoder("bf16"), lambda path: resolve_text_encoder(path, OWN)),
    ):
        stored = load_file(file)
        save_file({f"{part}{name}": each.clone() for part in parts for name, each in stored.items()}, path)
        with pytest.raises(CheckpointError, match=r"holds 2 models, under (\S+|no prefix), \S+; expected one") as found:
            resolve(path)
        if resolve is resolve_transformer:
            assert re.search(rf"under {named};", str(found.value))


def test_a_file_of_a_whole_model_has_all_its_parts(tmp_path) -> None:
    file = tmp_path / "wan_distill_all_in_one.safetensors"
    parts = {
        "model.diffusion_model.": load_file(checkpoints.single_file("fp8")),
        "vae.": load_file(checkpoints.vae()),
        "text_encoders.umt5xxl.transformer.": load_file(checkpoints.comfy_text_encoder()),
    }
    whole = {prefix + name: each for prefix, tensors in parts.items() for name, each in tensors.items()}
    spiece = whole.pop("text_encoders.umt5xxl.transformer.spiece_model")
    save_file(whole | {"text_encoders.spiece_model": spiece}, file)
    loaded = pipeline.load_checkpoint(file, settings=EngineSettings(), offload=OffloadSettings())
    assert loaded.transformer.files.files == (file,) and loaded.transformer.files.notes == ()
    assert loaded.vae.files.path == file and loaded.text_encoder.files.path == file
    rows = pipeline.encode_text(loaded.text_encoder, "a red fox", hooks=Hooks())
    alone = pipeline.load_text_encoder(checkpoints.comfy_text_encoder())
    assert torch.equal(rows, pipeline.encode_text(alone, "a red fox", hooks=Hooks()))
    assert resolve_checkpoint(file).missing == ()


def test_names_in_capitals(tmp_path) -> None:
    for source, name in (
        (checkpoints.single_file("bf16"), "DISTILL.SAFETENSORS"),
        (checkpoints.text_encoder("bf16", ".pth"), "UMT5.PTH"),
        (checkpoints.vae(".pth"), "WAN2.1_VAE.PTH"),
    ):
        shutil.copy(source, tmp_path / name)
    assert resolve_transformer(tmp_path / "DISTILL.SAFETENSORS").format.precision == "bf16"
    assert resolve_text_encoder(tmp_path / "UMT5.PTH", OWN).format.num_layers == 2
    assert resolve_vae(tmp_path / "WAN2.1_VAE.PTH").base_dim == 8
    found = resolve_checkpoint(tmp_path)
    assert found.transformer and found.text_encoder and found.vae


# Parts of a model, mixed folders


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model-00001-of-00002.safetensors", "part 1 of 2 of a model"),
        ("block_3.safetensors", "one of the files that a model in blocks"),
        ("non_block.safetensors", "one of the files that a model in blocks"),
    ],
)
def test_a_part_of_a_model_alone_names_its_folder(tmp_path, name, part) -> None:
    shutil.copy(checkpoints.single_file("bf16"), tmp_path / name)
    for resolve in (resolve_transformer, resolve_vae, lambda file: resolve_text_encoder(file, None)):
        with pytest.raises(CheckpointError, match=f"is {part}.*Choose its folder, {tmp_path.name}"):
            resolve(tmp_path / name)


def test_what_a_folder_of_blocks_holds_beside_them_is_named(repository, caplog) -> None:
    folder = repository / "distill_fp8"
    shutil.copy(checkpoints.single_file("bf16"), folder / "distill_model.safetensors")
    found = resolve_transformer(folder)
    assert found.format.precision == "fp8"
    assert len(found.notes) == 1 and "distill_model.safetensors are not used" in found.notes[0]
    shutil.copy(folder / "block_1.safetensors", folder / "Block_01.safetensors")
    with pytest.raises(CheckpointError, match="two files for one block"):
        resolve_transformer(folder)


def test_a_block_of_another_precision_or_model_is_refused(repository, tmp_path) -> None:
    folder = repository / "distill_fp8"
    shutil.copy(repository / "distill_int8" / "block_1.safetensors", folder)
    with pytest.raises(CheckpointError, match="F8_E4M3 and I8"):
        resolve_transformer(folder)
    block = load_file(checkpoints.distilled("fp8") / "block_0.safetensors")
    save_file(block, folder / "block_1.safetensors")
    with pytest.raises(CheckpointError, match=r"block_1.safetensors again.*both hold blocks.0"):
        resolve_transformer(folder)


@pytest.mark.parametrize(
    ("source", "copy"),
    [("block_0", "block_1"), ("block_1", "block_2"), ("block_0", "non_block"), ("non_block", "block_0")],
)
def test_a_file_that_is_a_copy_of_another_blocks_is_the_one_that_is_named(repository, source, copy) -> None:
    folder = repository / "distill_fp8"
    shutil.copy(folder / f"{source}.safetensors", folder / f"{copy}.safetensors")
    with pytest.raises(CheckpointError, match=rf"{copy}.safetensors again.* is a copy of {source}.safetensors or"):
        resolve_transformer(folder)
    (folder / f"{copy}.safetensors").unlink()
    original = checkpoints.distilled("fp8") / f"{copy}.safetensors"
    if original.exists():
        shutil.copy(original, folder)
    assert resolve_transformer(folder).format.precision == "fp8"


def test_a_shard_that_is_a_copy_is_to_be_downloaded_again(tmp_path) -> None:
    tensors = load_file(checkpoints.single_file("fp8"))
    for number in (1, 2):
        save_file(tensors, tmp_path / f"model-0000{number}-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"Download model-00001-of-00002.safetensors and model-00002\S+ of"):
        resolve_transformer(tmp_path)


@pytest.mark.parametrize("name", ["m-1-of-50000.safetensors", "m-1-of-5000000.safetensors"])
def test_a_number_in_a_name_takes_no_memory(tmp_path, name) -> None:
    shutil.copy(checkpoints.single_file("bf16"), tmp_path / name)
    before = time.monotonic()
    try:
        resolve_checkpoint(tmp_path)
    except CheckpointError as error:
        assert "49999 of 50000 files are missing" in str(error)
    assert time.monotonic() - before < 2


@pytest.mark.parametrize("index", [20_000_000, 300_000_000, 10**100])
def test_a_number_in_a_tensors_name_takes_no_memory(tmp_path, index) -> None:
    file = tmp_path / "model.safetensors"
    save_file({f"blocks.{index}.modulation": torch.ones(1, 6, 1)}, file)
    before = time.monotonic()
    with pytest.raises(CheckpointError, match="block 0 is missing"):
        resolve_transformer(file)
    assert time.monotonic() - before < 1


# Headers


def write_header(file: Path, header: object, num_bytes: int = 0) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(num_bytes))
    return file


def entry(**changed: object) -> dict:
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changed}


BAD_HEADERS = {
    "infinite": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1e999]}}',
    "deep": b"[" * 100_000,
    "deep shape": b'{"a":{"dtype":"F32","shape":' + b"[" * 50_000,
    "long numbers": {"a": {"dtype": "X", "shape": [10**4200] * 50, "data_offsets": [0, 4]}},
    "many dimensions": entry(shape=[1] * 9),
    "beyond 64 bits": entry(shape=[2**63]),
    "negative": entry(shape=[-1]),
    "not a number": entry(shape=["1"]),
    "true": entry(shape=[True]),
    "fraction": entry(data_offsets=[0, 4.0]),
    "three offsets": entry(data_offsets=[0, 4, 8]),
    "backwards": entry(data_offsets=[4, 0]),
    "no shape": {"a": {"dtype": "F32"}},
    "no table": {"a": 1},
    "a list": [],
    "dtype": entry(dtype=["F32"]),
    "dtype of a page": entry(dtype="F" * 100_000),
    "shape as a table": entry(shape={}),
    "a name of a page": {"n" * 100_000: entry()["a"]},
    "a name with a line": {"a\nb": entry()["a"]},
    "a lone surrogate": b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    "overlap": entry() | {"b": entry(data_offsets=[2, 6])["a"]},
    "a hole": entry() | {"b": entry(data_offsets=[8, 12])["a"]},
    "twice": entry() | {"b": entry()["a"]},
    "starts late": entry(data_offsets=[4, 8]),
}


@pytest.mark.parametrize("ending", [".pth", ".bin", ".pt", ".PTH"])
@pytest.mark.parametrize("kind", ["fp8", "vae", "lora"])
def test_a_safetensors_file_of_another_name_is_to_be_renamed(tmp_path, kind, ending) -> None:
    source = checkpoints.vae() if kind == "vae" else checkpoints.single_file("fp8")
    if kind == "lora":
        source = loras.write(tmp_path / "x.safetensors", loras.draw(checkpoints.transformer_weights()))
    file = Path(shutil.copy(source, tmp_path / f"model{ending}"))
    readers = (resolve_transformer, resolve_vae, lambda path: resolve_text_encoder(path, None))
    for read in (*readers, lambda path: read_lora(path, MODEL)):
        with pytest.raises(
            CheckpointError, match=rf"^Give it a name that ends in .safetensors. {file} is a safetensors"
        ):
            read(file)


@pytest.mark.parametrize("ending", [".gguf", ".ckpt", ".sft", ""])
def test_a_transformer_of_another_name_is_to_be_renamed(tmp_path, ending) -> None:
    file = Path(shutil.copy(checkpoints.single_file("int8"), tmp_path / f"model{ending}"))
    with pytest.raises(CheckpointError, match=rf"^Give it a name that ends in .safetensors. {file} is a safetensors"):
        resolve_transformer(file)


@pytest.mark.parametrize(
    "content", [b"\x80\x02}q\x00.", b"\x80\x04N.", b"nonsense " * 30], ids=["dict", "none", "text"]
)
def test_an_old_pickle_is_told_in_our_words(tmp_path, content) -> None:
    file = tmp_path / "vae.pth"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{file}") as found:
        resolve_vae(file)
    assert "mmap" not in str(found.value) and "_use_new_zipfile" not in str(found.value)


@pytest.mark.parametrize("num_bytes", [316, 572, 828])
def test_a_header_whose_length_is_the_first_letter_of_a_web_page(tmp_path, num_bytes) -> None:
    raw = json.dumps(entry()).encode().ljust(num_bytes)
    assert len(raw) == num_bytes
    assert read_header(write_header(tmp_path / "model.safetensors", raw, 4))["a"].shape == (1,)


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_headers_that_no_file_has(tmp_path, case) -> None:
    file = write_header(tmp_path / "model.safetensors", BAD_HEADERS[case], 12)
    before = time.monotonic()
    for read in (read_header, resolve_transformer, resolve_vae, lambda path: resolve_text_encoder(path, None)):
        with pytest.raises(CheckpointError, match=r"header of .*model.safetensors is corrupt") as refusal:
            read(file)
        assert len(str(refusal.value)) < 1000 and str(refusal.value).isprintable()
    assert time.monotonic() - before < 2


@pytest.mark.parametrize(
    "names",
    [
        [f"t{number}" for number in range(120_000)],
        [f"blocks.{number}.modulation" for number in range(90_000)],
        [f"blocks.0.self_attn.q{number}.lora_down.weight" for number in range(60_000)],
        [f"decoder.conv{number}.weight" for number in range(30_001)],
    ],
    ids=["names", "blocks", "LoRA", "VAE"],
)
def test_more_tensors_than_a_model_has_are_refused_at_once(tmp_path, names) -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    file = write_header(tmp_path / "model.safetensors", dict.fromkeys(names, empty))
    readers = (resolve_transformer, resolve_checkpoint, resolve_vae, lambda path: resolve_text_encoder(path, None))
    for read in (*readers, lambda path: read_lora(path, MODEL)):
        with pytest.raises(CheckpointError, match=f"^Download .*{file} is not read: its header names {len(names)} "):
            read(file)


@pytest.mark.parametrize("size", [10_000_001, 100_000_000, 2**40])
def test_headers_of_a_size_that_no_file_has(tmp_path, size) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", size) + b"{")
        opened.truncate(size + 8)
    with pytest.raises(CheckpointError, match=f"its header is of {size} bytes"):
        read_header(file)


@pytest.mark.parametrize(
    "name", ["blocks.0.self_attn.q.weight", "blocks.0.modulation", "patch_embedding.weight", "head.modulation"]
)
@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_a_tensor_without_dimensions(tmp_path, name, precision) -> None:
    tensors = load_file(checkpoints.single_file(precision))
    tensors[name] = torch.tensor(1).to(tensors[name].dtype)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"does not fit together|scale"):
        resolve_transformer(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["token_embedding.weight", "blocks.0.attn.q.weight", "norm.weight"])
def test_a_tensor_without_dimensions_in_a_text_encoder(tmp_path, name) -> None:
    tensors = load_file(checkpoints.text_encoder("bf16")) | {name: torch.tensor(1.0)}
    save_file(tensors, tmp_path / "umt5.safetensors")
    with pytest.raises(CheckpointError, match="does not fit together"):
        resolve_text_encoder(tmp_path / "umt5.safetensors", None)


@pytest.mark.parametrize("name", ["conv2.weight", "decoder.conv1.weight", "decoder.head.0.gamma"])
def test_a_tensor_without_dimensions_in_a_vae(tmp_path, name) -> None:
    save_file(load_file(checkpoints.vae()) | {name: torch.tensor(1.0)}, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match="does not fit together"):
        resolve_vae(tmp_path / "vae.safetensors")


INDICES = {
    "a number": '{"weight_map": {"a": 5}}',
    "null": '{"weight_map": {"a": null, "b": "m.safetensors"}}',
    "a path": '{"weight_map": {"a": "../m.safetensors"}}',
    "deep": '{"weight_map":' + "[" * 100_000,
    "empty": '{"weight_map": {}}',
    "a list": "[]",
    "nothing": "",
}


@pytest.mark.parametrize("case", INDICES)
def test_indices_that_are_none(tmp_path, case) -> None:
    shutil.copy(checkpoints.single_file("bf16"), tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors.index.json").write_text(INDICES[case])
    with pytest.raises(CheckpointError, match=r"index.json again: it is not an index of safetensors shards"):
        resolve_transformer(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="no pipes in folders there")
def test_what_is_no_file(tmp_path) -> None:
    shutil.copy(checkpoints.single_file("bf16"), tmp_path / "m.safetensors")
    index = tmp_path / "m.safetensors.index.json"
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)):
        make(index)
        with pytest.raises(CheckpointError, match=r"missing or not a file; expected an index"):
            resolve_transformer(tmp_path)
        os.rmdir(index) if index.is_dir() else index.unlink()
    for name in ("pipe.safetensors", "pipe.pth", "google"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "folder.pth").mkdir()
    for path in (tmp_path / "pipe.safetensors", Path("/dev/zero"), tmp_path / "pipe.pth", tmp_path / "folder.pth"):
        with pytest.raises(CheckpointError, match="not a file"):
            open_weights([path])
        with pytest.raises(CheckpointError):
            resolve_checkpoint(path)
    with pytest.raises(CheckpointError, match="No tokenizer"):
        open_tokenizer(tmp_path / "google")


# .pth files


def write_zip(file: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return file


def nested_tuples(depth: int) -> bytes:
    value: object = ()
    for _ in range(depth):
        value = (value, value)
    return pickle.dumps({value: 1}, protocol=2) if depth < 20 else _shared(depth)


def _shared(depth: int) -> bytes:
    """Return the same without making it: every level holds the one before twice."""
    return b"\x80\x02}" + b")" + b"".join(b"q%c2\x86" % level for level in range(depth)) + b"K\x01s."


def many_keys(width: int, depth: int, num_keys: int = 1) -> bytes:
    """Return a dict of tuples that hold the one before so often, met again for every key; no key is deep."""
    levels = b"".join(b"(" + width * (b"h%c" % level) + b"tq%c" % (level + 1) for level in range(depth))
    return b"\x80\x02Nq\0" + levels + b"}" + num_keys * (b"h%cNs" % depth) + b"."


PTH_KINDS = {
    "wide tuples of wide tuples": (lambda file: write_zip(file, many_keys(250, 6)), "again and again"),
    "the same tuples for every name": (lambda file: write_zip(file, many_keys(2, 14, 100_000)), "again and again"),
    "a number as a name": (lambda file: torch.save({1: torch.ones(1)}, file), "nested data"),
    "bytes as a name": (lambda file: torch.save({b"a": torch.ones(1)}, file), "nested data"),
    "None as a name": (lambda file: torch.save({None: torch.ones(1)}, file), "nested data"),
    "a tuple as a name": (lambda file: torch.save({("a",): torch.ones(1)}, file), "nested data"),
    "one number for many": (lambda file: torch.save({"a": torch.ones(1).expand(2**40)}, file), "another form"),
    "sparse": (lambda file: torch.save({"a": torch.ones(4).to_sparse()}, file), "another form|cannot be read"),
    "compressed": (
        lambda file: write_zip(file, bytes(10**6), zipfile.ZIP_DEFLATED),
        "compressed archive",
    ),
    "a table of megabytes": (lambda file: write_zip(file, bytes(3 * 2**20)), "its table of tensors is of"),
    "tuples of tuples": (lambda file: write_zip(file, _shared(40)), "values in values"),
    "tuples of tuples, made": (lambda file: write_zip(file, nested_tuples(17)), "values in values"),
    "noise": (lambda file: write_zip(file, bytes(range(256))), "cannot be read as a PyTorch file|not loaded"),
    "a web page": (lambda file: file.write_bytes(b"<!DOCTYPE html>"), "is a web page; expected a PyTorch file"),
    "git-lfs": (lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git-lfs pointer"),
    "GGUF": (lambda file: file.write_bytes(b"GGUF\3\0\0\0"), "is a GGUF file"),
}


@pytest.mark.parametrize("case", PTH_KINDS)
def test_pth_files_of_other_kinds(tmp_path, case) -> None:
    write, message = PTH_KINDS[case]
    file = tmp_path / "Wan2.1_VAE.pth"
    write(file)
    before = time.monotonic()
    for read in (resolve_vae, lambda path: resolve_text_encoder(path, None), lambda path: open_weights([path])):
        with pytest.raises(CheckpointError, match=message) as refusal:
            read(file)
        assert str(file) in str(refusal.value)
    assert time.monotonic() - before < 2


@pytest.mark.parametrize("length", [1, 100, 4_000, 20_000, 66_000, 100_000])
def test_a_pth_file_cut_anywhere(tmp_path, length) -> None:
    file = tmp_path / "Wan2.1_VAE.pth"
    file.write_bytes(checkpoints.vae(".pth").read_bytes()[:length])
    with pytest.raises(CheckpointError, match="cannot be read as a PyTorch file") as refusal:
        resolve_vae(file)
    assert str(file) in str(refusal.value)


# What the system refuses


@needs_rights
@pytest.mark.parametrize(
    "name",
    ["", "block_0.safetensors", "non_block.safetensors", "models_t5_umt5-xxl-enc-fp8.pth", "Wan2.1_VAE.pth"],
)
def test_what_may_not_be_read_is_named(name) -> None:
    with open_folder() as home:
        folder = shutil.copytree(checkpoints.repository() / "distill_fp8", home / "distill_fp8")
        with (
            forbidden(folder / name),
            pytest.raises(CheckpointError, match=r"permission denied. Give the user") as found,
        ):
            pipeline.load_checkpoint(folder, settings=EngineSettings(), offload=OffloadSettings())
        assert str(folder / name) in str(found.value)


@needs_rights
@pytest.mark.parametrize("name", ["distill_int8", "distill_models", "original"])
def test_a_folder_that_nobody_asked_for_stops_nothing(name, caplog) -> None:
    with open_folder() as home:
        folder = shutil.copytree(checkpoints.repository(), home / "repository")
        (folder / name).mkdir(exist_ok=True)
        with forbidden(folder / name):
            found = resolve_checkpoint(folder)
            assert found.transformer and found.transformer.format.precision == "fp8" and found.missing == ()
            assert str(folder / name) in caplog.text
            if name == "distill_int8":
                with pytest.raises(CheckpointError, match=r"distill_int8 cannot be read: permission denied"):
                    resolve_checkpoint(folder, "int8")


@needs_rights
def test_a_tokenizer_that_may_not_be_read() -> None:
    with open_folder() as home:
        folder = resized(OWN, home / "tokenizer", 880)
        with forbidden(folder / "tokenizer.json"):
            for read in (open_tokenizer, count_pieces):
                with pytest.raises(CheckpointError, match=r"tokenizer.json cannot be read: permission denied"):
                    read(folder)


@pytest.mark.parametrize("change", ["cut", "zeros", "gone", "longer"])
def test_a_file_that_changed_since_it_was_looked_at_is_not_computed_with(repository, change) -> None:
    file = repository / "distill_fp8" / "block_0.safetensors"
    transformer = TransformerHandle(resolve_transformer(file.parent), EngineSettings(compile="off"), OffloadSettings())
    vae = VaeHandle(resolve_vae(repository / "distill_fp8" / "Wan2.1_VAE.pth"), "auto", OffloadSettings())
    text = pipeline.load_text_encoder(repository / "distill_fp8" / "models_t5_umt5-xxl-enc-fp8.pth")
    for handle, path in ((transformer, file), (vae, vae.files.path), (text, text.files.path)):
        handle.files.check_unchanged()
        size = path.stat().st_size
        if change == "gone":
            path.unlink()
        else:
            content = path.read_bytes()
            content = {"cut": content[:4096], "zeros": bytes(size), "longer": content + b"x"}[change]
            path.write_bytes(content)
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
        message = "is missing" if change == "gone" else f"has changed since its loader looked at it .from {size} to"
        with pytest.raises(CheckpointError, match=message):
            handle.files.check_unchanged()
    with pytest.raises(CheckpointError, match=r"Wan2.1_VAE.pth"):
        vae.load_decoder(CPU, Hooks())
    with pytest.raises(CheckpointError, match=r"models_t5"):
        pipeline.encode_text(text, "a fox", hooks=Hooks())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [(), (0, 3, 1, 2, 2)])
def test_latents_that_are_no_numbers_are_not_decoded_without_a_word(value, place) -> None:
    handle = pipeline.load_vae(checkpoints.vae(), offload=OffloadSettings())
    latents = torch.zeros(1, 16, 2, 6, 8)
    latents[place] = value
    with pytest.raises(NonFiniteLatentsError, match=r"Sample again.*\d % of the latents to decode are NaN"):
        pipeline.decode(handle, latents, hooks=Hooks())
    assert not handle.owner.is_loaded


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("tensor", "tile"),
    [
        ("decoder.upsamples.0.residual.2.weight", None),
        ("decoder.upsamples.0.residual.6.weight", Tile(size=8, overlap=2)),
        ("encoder.middle.0.residual.2.weight", None),
        ("encoder.head.2.weight", Tile(size=8, overlap=2)),
    ],
)
def test_a_vae_whose_damage_no_look_at_its_file_finds_gives_no_black_video(value, tensor, tile, tmp_path) -> None:
    """Of large tensors a look takes samples of 32 bytes, with as much between them and more."""
    tensors = load_file(checkpoints.vae(sizes=tiny.TinySizes(vae_dim=24)))
    assert tensors[tensor].nbytes >= 2**13
    tensors[tensor].view(-1)[9] = value
    save_file(tensors, tmp_path / "my_vae.safetensors")
    handle = pipeline.load_vae(tmp_path / "my_vae.safetensors", offload=OffloadSettings())
    message = r"^Check the VAE in full .*--check my_vae.safetensors\) and download it again: .*NaN or infinite"
    with pytest.raises(NonFiniteLatentsError, match=message):
        if tensor.startswith("decoder."):
            pipeline.decode(handle, normal(1, 16, 1, 6, 12), tile=tile, hooks=Hooks())
        else:
            pipeline.encode_video(handle, torch.rand(1, 48, 96, 3), tile=tile, hooks=Hooks())


# LoRA files

DRAWN = loras.draw(checkpoints.transformer_weights(), modules=["blocks.0.ffn.0", "blocks.1.self_attn.q"])
MODEL = read_header(checkpoints.single_file("bf16"))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(a+)+$", "a pattern"),
        ("blocks.(", "cannot be read"),
        (".*.*.*.*x", "a pattern"),
        ("b" * 9 + "{1}+*+", "a pattern"),
        ([f"b{number}" for number in range(200)], "200 patterns, more than"),
        ([f"b{number}.*" for number in range(9)], "9 patterns, more than"),
    ],
)
def test_patterns_of_peft_that_take_for_ever(tmp_path, pattern, message) -> None:
    file = loras.write(tmp_path / "lora.safetensors", DRAWN, "peft")
    patterns = dict.fromkeys(pattern if isinstance(pattern, list) else [pattern], 8)
    loras.write_peft_config(tmp_path, lora_alpha=4, alpha_pattern=patterns)
    report = read_lora(file, MODEL).report
    assert message in str(report) and "cannot be read" in str(report) and report.is_doubtful


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "", '{"lora_alpha": 1e999, "alpha_pattern": 5}', "\xff"])
def test_settings_of_peft_that_are_none(tmp_path, text) -> None:
    file = loras.write(tmp_path / "lora.safetensors", DRAWN, "peft")
    (tmp_path / "adapter_config.json").write_text(text, encoding="latin-1")
    found = read_lora(file, MODEL)
    assert "are not used: they cannot be read" in str(found.report) and found.report.factors == (1.0,)


@pytest.mark.parametrize(
    ("metadata", "note"),
    [
        ({"modelspec.title": "Wan 4-step distill"}, ""),
        ({"ss_output_name": "my_high_noise_lora"}, "high-noise expert of Wan2.2"),
        ({"ss_base_model_version": "wan2.2 low noise"}, "low-noise expert"),
    ],
)
def test_a_renamed_lora_is_what_its_metadata_say(tmp_path, metadata, note) -> None:
    found = read_lora(loras.write(tmp_path / "lora.safetensors", DRAWN, metadata=metadata), MODEL)
    assert any(note in each for each in found.report.notes) == bool(note) and found.may_distill == (not note)
    assert read_lora(loras.write(tmp_path / "lora.safetensors", DRAWN), MODEL).report.notes == ()
