"""What is in the files: holes of zeros and values that are no numbers are named with their file, on every way in."""

import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightx2v_pack.engine import pipeline
from lightx2v_pack.engine.checkpoints.content import ContentCheck, doubts_about, find_fault, find_fault_in_full
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.checkpoints.source import TransformerCheckpoint
from lightx2v_pack.engine.checkpoints.tae import TaeFormat
from lightx2v_pack.engine.errors import CheckpointError
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.offload.reader import Progress, load_to_ram
from lightx2v_pack.engine.offload.units import make_units
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings, SamplingSettings
from lightx2v_pack.engine.wan.layout import FLOAT32, PHASES
from safetensors.torch import load_file, save_file
from support import checkpoints
from support.engine import conditioning_of

CPU = torch.device("cpu")
MIB = 2**20
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the tiny model repository that a test may change."""
    return shutil.copytree(checkpoints.repository(), tmp_path / "repository")


def cut_off(file: Path, share: float) -> None:
    """Make the end of a file zeros, as it is after an interrupted download that had reserved the place."""
    content = file.read_bytes()
    kept = int(len(content) * share)
    file.write_bytes(content[:kept] + bytes(len(content) - kept))


def change(file: Path, name: str, value: float) -> None:
    """Set one number of a tensor, or all of it where the value is 0."""
    tensors = load_file(file)
    tensor = tensors[name].clone().float()
    tensor.view(-1)[... if value == 0 else tensor.numel() // 2] = value
    save_file(tensors | {name: tensor.to(tensors[name].dtype)}, file)


def change_each(folder: Path, ending: str, make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Make another tensor of each whose name ends so, in every file of a folder."""
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        save_file({n: make(t).contiguous() if n.endswith(ending) else t for n, t in tensors.items()}, file)


def change_scales(make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return lambda folder: change_each(folder, ".weight_scale", make)


def relabel(folder: Path) -> None:
    """Name 8-bit or 16-bit weights in the header as the other format of their width."""
    eight = {torch.float8_e4m3fn: torch.int8, torch.int8: torch.float8_e4m3fn}
    other = {torch.bfloat16: torch.float16} if folder.name == "distill_models" else eight
    change_each(folder, "", lambda tensor: tensor.view(other.get(tensor.dtype, tensor.dtype)))


def read_on_cpu(folder: Path) -> None:
    handle = pipeline.load_transformer(
        folder, settings=EngineSettings(compile="off"), offload=OffloadSettings(mode="none")
    )
    settings = SamplingSettings(seed=1, method="euler", steps=4, shift=5.0)
    pipeline.sample(handle, [conditioning_of(torch.ones(4, 64))], torch.zeros(1, 16, 1, 4, 4), settings, hooks=Hooks())


def read_to_ram(folder: Path) -> None:
    checkpoint = TransformerCheckpoint(resolve_transformer(folder), float32=FLOAT32)
    units = make_units(checkpoint.specs, 2, PHASES, by_phase=False)
    load_to_ram(units, checkpoint, CPU, 0, Progress(Hooks(), len(units)))
    for spec in checkpoint.others:
        checkpoint.read(spec)


WAYS = {"mapped": read_on_cpu, "read": read_to_ram}
DAMAGE = {
    "half a file": ("fp8", "block_1.safetensors", lambda file: cut_off(file, 0.5), "is all zeros"),
    "the end of a file": ("int8", "block_0.safetensors", lambda file: cut_off(file, 0.8), "is all zeros"),
    "no block at all": ("fp8", "non_block.safetensors", lambda file: cut_off(file, 0.3), "1572864 bytes of zeros"),
    "a scale": (
        "fp8",
        "block_0.safetensors",
        lambda file: change(file, "blocks.0.ffn.0.weight_scale", float("nan")),
        "blocks.0.ffn.0.weight_scale holds values that are NaN or infinite",
    ),
    "a norm": (
        "int8",
        "block_1.safetensors",
        lambda file: change(file, "blocks.1.self_attn.norm_q.weight", float("inf")),
        "blocks.1.self_attn.norm_q.weight holds values that are NaN or infinite",
    ),
    "a bias": (
        "int8",
        "block_1.safetensors",
        lambda file: change(file, "blocks.1.cross_attn.v.bias", float("nan")),
        "blocks.1.cross_attn.v.bias holds",
    ),
    "a weight": (
        "fp8",
        "block_1.safetensors",
        lambda file: change(file, "blocks.1.ffn.2.weight", float("nan")),
        "blocks.1.ffn.2.weight holds values that are NaN",
    ),
    "an embedding": (
        "fp8",
        "non_block.safetensors",
        lambda file: change(file, "time_embedding.0.weight", float("nan")),
        "time_embedding.0.weight holds values that are NaN",
    ),
    "a layer": (
        "int8",
        "block_1.safetensors",
        lambda file: change(file, "blocks.1.cross_attn.o.weight", 0),
        "blocks.1.cross_attn.o.weight is all zeros",
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_transformer_is_named_when_it_is_read(repository, case, way) -> None:
    precision, name, damage, message = DAMAGE[case]
    file = repository / f"distill_{precision}" / name
    damage(file)
    with pytest.raises(CheckpointError, match=message) as found:
        WAYS[way](file.parent)
    assert f"{file} is damaged: " in str(found.value)
    assert str(found.value).startswith("Run `python tools/download.py get NAME --replace`")


# Finite numbers that no model has: what is done to a folder, or to one tensor of a file, and what is said.
WRONG = {
    "scales of one": (("fp8", "int8"), change_scales(torch.ones_like), "makes the weights of its layer [0-9.]+ on"),
    "reciprocal scales": (("fp8", "int8"), change_scales(torch.reciprocal), "makes the weights of its layer"),
    "scales times 1e-9": (("fp8", "int8"), change_scales(lambda each: each * 1e-9), "makes the weights of its layer"),
    "negative scales": (("fp8", "int8"), change_scales(torch.neg), r"holds scales down to -0\.\d+"),
    "one scale below zero": (
        ("fp8", "int8"),
        lambda folder: change(folder / "block_1.safetensors", "blocks.1.self_attn.o.weight_scale", -1e-4),
        r"blocks\.1\.self_attn\.o\.weight_scale holds scales down to -0\.0001",
    ),
    "scales that are zero": (("int8",), change_scales(torch.zeros_like), "weight_scale is all zeros"),
    "one layer's scales": (
        ("fp8", "int8"),
        lambda folder: change_each(folder, "1.cross_attn.o.weight_scale", torch.ones_like),
        r"blocks\.1\.cross_attn\.o\.(weight|weight_scale) makes the weights",
    ),
    "labels": (("fp8", "int8"), relabel, "is said to be (FP8 E4M3|INT8), and what it holds is (INT8|FP8 E4M3)"),
    "labels of 16 bits": (("bf16",), relabel, "is said to be FP16, and what it holds is BF16"),
    "every modulation": (
        ("fp8", "bf16"),
        lambda folder: [change_each(folder, f"blocks.{i}.modulation", torch.zeros_like) for i in range(2)],
        r"blocks\.\d\.modulation is all zeros, and so is that of every other block",
    ),
    "a norm": (
        ("fp8", "bf16"),
        lambda folder: change_each(folder, "1.self_attn.norm_k.weight", lambda each: each * 1e30),
        r"norm_k\.weight holds numbers up to [\d.]+e\+(29|30|31)",
    ),
    "a norm of nothing": (
        ("int8", "bf16"),
        lambda folder: change_each(folder, "0.cross_attn.norm_q.weight", lambda each: each * 1e-30),
        r"norm_q\.weight holds no number above",
    ),
    "a bias": (
        ("int8", "bf16"),
        lambda folder: change_each(folder, "0.ffn.2.bias", lambda each: each + 1e6),
        r"ffn\.2\.bias holds numbers up to (1e\+06|9.99e\+05), where those of a model are below 65504",
    ),
    "the head": (
        ("fp8", "bf16"),
        lambda folder: change_each(folder, "head.modulation", lambda each: each - 3e38),
        r"head\.modulation holds numbers up to 3e\+38",
    ),
    "an embedding": (
        ("fp8", "bf16"),
        lambda folder: change_each(folder, "time_projection.1.weight", lambda each: each * 20_000),
        r"time_projection\.1\.weight makes the weights of its layer",
    ),
    "weights": (
        ("bf16",),
        lambda folder: change_each(folder, "1.ffn.0.weight", lambda each: each * 1000),
        r"blocks\.1\.ffn\.0\.weight makes the weights of its layer",
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", [(name, precision) for name in WRONG for precision in WRONG[name][0]], ids="-".join)
def test_finite_numbers_that_no_model_has_are_named(repository, case, way) -> None:
    name, precision = case
    _, damage, message = WRONG[name]
    path = repository / checkpoints.distilled(precision).relative_to(checkpoints.repository())
    folder = path if path.is_dir() else path.parent
    for other in folder.glob("*.safetensors") if path.is_file() else ():
        if other != path:
            other.unlink()
    damage(folder)
    with pytest.raises(CheckpointError, match=rf"{folder}/[\w.]+ is damaged: .*({message})"):
        WAYS[way](path)


ODD = {
    "a norm": ("fp8", "1.norm3.weight", lambda each: each * 0 + 3000, r"norm3\.weight holds numbers up to 3.*e\+03"),
    "a modulation": ("int8", "blocks.1.modulation", torch.zeros_like, r"blocks\.1\.modulation is all zeros"),
    "large scales": ("fp8", "weight_scale", lambda each: each * 20, r"where those of known models are 0\.005 to 0\.15"),
    "small scales": ("int8", "weight_scale", lambda each: each * 1e-5, "makes the weights of its layer"),
    "one sign": ("int8", ".q.weight", torch.abs, r"q\.weight holds numbers of one sign or of one size"),
    "bytes by chance": (
        "int8",
        "ffn.0.weight",
        lambda each: torch.randint(-128, 128, each.shape, dtype=torch.int8, generator=torch.Generator().manual_seed(1)),
        r"ffn\.0\.weight holds numbers as bytes by chance are",
    ),
    "a constant": ("bf16", "0.ffn.0.weight", lambda each: each * 0 + 0.5, r"ffn\.0\.weight holds numbers of one sign"),
}


def warnings_in(caplog) -> list[str]:
    """Return what was logged as a warning; a test before this one may have let the log say more."""
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", ODD)
def test_what_is_only_odd_is_a_warning_once(repository, case, way, caplog) -> None:
    precision, ending, make, message = ODD[case]
    path = repository / checkpoints.distilled(precision).relative_to(checkpoints.repository())
    folder = path if path.is_dir() else path.parent
    files = resolve_transformer(path)
    change_each(folder, ending, make)
    WAYS[way](path)
    said = [each.getMessage() for each in caplog.records if "may be damaged" in each.getMessage()]
    assert len(said) == 1
    assert re.search(rf"download\.py get NAME --replace`: {folder}/\S+ may be damaged or .*{message}", said[0])
    # The plan line and the doctor say so from then on, until the files are others.
    assert said == [f"LightX2V: {each}" for each in doubts_about(files.files)]
    change_each(folder, "no such name", torch.neg)
    for file in files.files:
        os.utime(file, ns=(1, 1))
    assert doubts_about(files.files) == ()


@pytest.mark.parametrize(
    "path",
    [
        "checkpoint/distill_fp8",
        "checkpoint/distill_models/distill_model.safetensors",
        "image_to_video/distill_fp8/low_noise_model",
    ],
)
def test_the_trained_demo_raises_no_doubt(path, caplog) -> None:
    file = Path(__file__).parents[2] / "demo" / path
    source = TransformerCheckpoint(resolve_transformer(file), float32=FLOAT32)
    for spec in source.specs:
        source.read(spec)
    source.close()
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("precision", ["fp8", "int8"])
@pytest.mark.parametrize("make", [torch.ones_like, torch.reciprocal, torch.neg, torch.zeros_like])
def test_scales_of_a_text_encoder_are_looked_at(tmp_path, precision, make) -> None:
    file = Path(shutil.copy(checkpoints.text_encoder(precision), tmp_path / "encoder.safetensors"))
    change_each(tmp_path, "weight_scale", make)
    handle = pipeline.load_text_encoder(file, tokenizer=checkpoints.repository() / "distill_fp8/google/umt5-xxl")
    with pytest.raises(
        CheckpointError, match=rf"{file} is damaged: blocks\.\d.*(makes the weights|scales|is all zeros)"
    ):
        pipeline.encode_text(handle, "a fox", hooks=Hooks())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("precision", ["fp8", "int8", "bf16"])
def test_a_bias_may_be_zero_and_a_whole_model_passes(repository, precision, way, caplog) -> None:
    path = repository / checkpoints.distilled(precision).relative_to(checkpoints.repository())
    file = path if path.is_file() else path / "block_0.safetensors"
    for name in ("blocks.0.ffn.0.bias", "blocks.0.norm3.bias", "blocks.0.self_attn.v.bias"):
        change(file, name, 0)
    WAYS[way](path)
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("name", ["blocks.1.attn.v.weight", "norm.weight", "blocks.0.pos_embedding.embedding.weight"])
@pytest.mark.parametrize("value", [0, float("nan"), float("inf")])
def test_a_damaged_text_encoder_is_named(tmp_path, name, value) -> None:
    file = Path(shutil.copy(checkpoints.text_encoder("bf16"), tmp_path))
    change(file, name, value)
    handle = pipeline.load_text_encoder(file, tokenizer=checkpoints.repository() / "distill_fp8/google/umt5-xxl")
    with pytest.raises(CheckpointError, match=f"{file} is damaged: .*(zeros|NaN)"):
        pipeline.encode_text(handle, "a fox", hooks=Hooks())


@pytest.mark.parametrize("value", [0, float("nan")])
def test_the_embedding_is_looked_at_where_a_prompt_reads_it(tmp_path, value) -> None:
    file = Path(shutil.copy(checkpoints.text_encoder("bf16"), tmp_path))
    tensors = load_file(file)
    tensors["token_embedding.weight"][3:] = value
    save_file(tensors, file)
    handle = pipeline.load_text_encoder(file, tokenizer=checkpoints.repository() / "distill_fp8/google/umt5-xxl")
    with pytest.raises(CheckpointError, match="is damaged: the embedding"):
        pipeline.encode_text(handle, "a fox", hooks=Hooks())


@pytest.mark.parametrize("name", ["decoder.conv1.weight", "decoder.head.0.gamma", "conv2.weight"])
@pytest.mark.parametrize("value", [0, float("nan"), -float("inf"), 1e30])
def test_a_damaged_vae_is_named(tmp_path, name, value) -> None:
    file = Path(shutil.copy(checkpoints.vae(), tmp_path))
    change(file, name, value)
    handle = pipeline.load_vae(file, offload=OffloadSettings())
    with pytest.raises(
        CheckpointError,
        match=f"{file} is damaged: {name} (is all zeros|holds (values that are NaN|numbers up to 1e.30))",
    ):
        pipeline.decode(handle, torch.zeros(1, 16, 1, 4, 4), hooks=Hooks())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda each: each * 10_000, "makes the weights of its layer"),
        (lambda each: each * 1e-12, "holds no number above|makes the weights of its layer"),
        (lambda each: each.bfloat16().view(torch.float16), "is said to be FP16, and what it holds is BF16"),
        (
            lambda each: each.half().view(torch.bfloat16),
            "is said to be BF16, and what it holds is FP16|makes the weights",
        ),
    ],
    ids=["large", "small", "BF16", "FP16"],
)
@pytest.mark.parametrize("kind", ["wan", "tae"])
def test_kernels_that_no_vae_has_are_named(tmp_path, kind, make, message) -> None:
    file = tmp_path / f"{kind}.safetensors"
    if kind == "wan":
        shutil.copy(checkpoints.vae(), file)
    else:
        shapes = TaeFormat(widths=(16, 16, 8, 8)).shapes()
        drawn = torch.Generator().manual_seed(1)
        save_file({name: 0.1 * torch.randn(shape, generator=drawn) for name, shape in shapes.items()}, file)
    change_each(tmp_path, "weight", make)
    with pytest.raises(CheckpointError, match=rf"{file} is damaged: \S+weight .*({message})"):
        pipeline.decode(pipeline.load_vae(file, offload=OffloadSettings()), torch.zeros(1, 16, 1, 4, 4), hooks=Hooks())


@pytest.mark.parametrize("make", [torch.abs, lambda each: each * 0 + 0.1, lambda each: -each.abs()])
def test_kernels_of_one_sign_are_a_warning(tmp_path, make, caplog) -> None:
    file = Path(shutil.copy(checkpoints.vae(), tmp_path / "wan_2.1_vae.safetensors"))
    change_each(tmp_path, "decoder.conv1.weight", make)
    pipeline.decode(pipeline.load_vae(file, offload=OffloadSettings()), torch.zeros(1, 16, 1, 4, 4), hooks=Hooks())
    assert f"{file} may be damaged or converted wrongly, as decoder.conv1.weight holds numbers of one" in caplog.text


# Tensors of the real size, of which only a part is looked at


def large(dtype: torch.dtype, num_bytes: int = 8 * MIB) -> torch.Tensor:
    values = torch.randint(1, 64, (num_bytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return values.view(dtype)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8], ids=str)
@pytest.mark.parametrize("begin", [0, 100_000, 3 * MIB + 12_345, 8 * MIB - 786_432])
def test_a_hole_in_a_large_tensor_is_seen(dtype, begin) -> None:
    values = large(dtype)
    assert find_fault(values, dtype) == find_fault_in_full(values, dtype) == ""
    values.view(torch.uint8)[begin : begin + 786_432] = 0
    for found in (find_fault(values, dtype), find_fault_in_full(values, dtype)):
        assert 786_432 - 8192 <= int(re.fullmatch(r"has (\d+) bytes of zeros in a row", found)[1]) <= 786_432


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("num_rows", [128, 256, 600])
def test_a_hole_in_a_matrix_is_called_that_whatever_is_around_it(dtype, num_rows) -> None:
    weight = (torch.randn(5120, 5120, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    weight[:num_rows] = 0
    fault, _ = ContentCheck().find("blocks.0.self_attn.q.weight", weight, dtype)
    assert "bytes of zeros in a row" in fault


@pytest.mark.parametrize("num_rows", [1, 20, 80])
def test_rows_that_are_zero_are_no_hole(num_rows) -> None:
    values = large(torch.float8_e4m3fn, 5120 * 2000).view(2000, 5120)
    values.view(torch.uint8)[500 : 500 + num_rows] = 0
    assert find_fault(values, values.dtype) == find_fault_in_full(values, values.dtype) == ""


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("num_bytes", [4096, 2**18, 2**18 + 4, 2**19 - 8, 8 * MIB])
def test_a_tensor_of_nan_is_seen_and_one_number_in_full(dtype, num_bytes) -> None:
    values = large(dtype, num_bytes)
    assert find_fault(torch.full_like(values, float("nan")), dtype).startswith("holds values that are NaN")
    values[len(values) // 2 + 5000 if num_bytes > 4096 else 3] = float("nan")
    assert find_fault_in_full(values, dtype).startswith("holds values that are NaN")
    assert (find_fault(values, dtype) != "") == (num_bytes <= 2**18)


def test_int8_has_no_values_that_are_no_numbers() -> None:
    values = torch.full((MIB,), -1, dtype=torch.int8)
    assert find_fault(values, torch.int8) == find_fault_in_full(values, torch.int8) == ""
    assert find_fault(torch.empty(0), torch.float32) == find_fault_in_full(torch.empty(0), torch.float32) == ""


def test_each_part_is_looked_at_once(tmp_path) -> None:
    content, values = ContentCheck(), large(torch.int8)
    content.look("a.weight", tmp_path, values, torch.int8)
    values.zero_()
    content.look("a.weight", tmp_path, values, torch.int8)
    with pytest.raises(CheckpointError, match=r"a\.weight has 8388608 bytes of zeros"):
        content.look("a.weight", tmp_path, values, torch.int8, start=8 * MIB)
    # The short end of a large tensor may be rows that are zero.
    content.look("a.weight", tmp_path, values[:1000], torch.int8, start=16 * MIB)


# Odd numbers among usual ones


@pytest.mark.parametrize("value", [60_000.0, -3000.0, 1e-20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_one_odd_number_is_not_taken_for_the_size_of_a_layer(dtype, value, caplog) -> None:
    weight = (torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    weight[0, 0] = value
    assert ContentCheck().find("blocks.0.self_attn.q.weight", weight, dtype) == ("", "")
    fault, _ = ContentCheck().find("blocks.0.self_attn.q.weight", weight * 1000, dtype)
    assert "makes the weights of its layer" in fault or "holds numbers up to" in fault


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_the_scale_of_one_row_is_not_taken_for_that_of_all_but_is_said(repository, precision, way, caplog) -> None:
    folder = repository / f"distill_{precision}"
    change(folder / "block_1.safetensors", "blocks.1.cross_attn.q.weight_scale", 500.0)
    WAYS[way](folder)
    assert len(warnings_in(caplog)) == 1
    assert "blocks.1.cross_attn.q.weight_scale holds a scale of 500, where its others are 0.00" in caplog.text


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["blocks.1.modulation", "head.modulation"])
def test_a_modulation_a_hundred_times_too_large_is_a_warning(repository, name, way, caplog) -> None:
    change_each(repository / "distill_int8", name, lambda each: each / each.abs().max() * 170)
    WAYS[way](repository / "distill_int8")
    said = [message for message in warnings_in(caplog) if "the latents are" not in message]
    assert len(said) == 1 and f"{name} holds numbers up to 170" in said[0]
