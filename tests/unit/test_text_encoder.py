"""The portable text encoder against transformers' own on dequantized weights, and the stage that uses it."""

import sys
from pathlib import Path

import pytest
import torch
from lightx2v_pack.engine.checkpoints.companions import resolve_text_encoder
from lightx2v_pack.engine.constants import TEXT_ROWS
from lightx2v_pack.engine.errors import CheckpointError, UnsupportedHardwareError
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.kernels.widen import widen
from lightx2v_pack.engine.pipeline import encode_text, load_text_encoder, report_of
from lightx2v_pack.engine.stages.encode import encode_prompt
from lightx2v_pack.engine.umt5 import encoder as portable
from lightx2v_pack.engine.umt5 import linear as text_linear
from lightx2v_pack.engine.umt5.encoder import Umt5Encoder
from lightx2v_pack.engine.umt5.linear import StoredLinear
from lightx2v_pack.tools import make_tiny_checkpoint as tiny
from safetensors.torch import load_file, save_file
from support.alive import Snapshot, num_bytes, tensors
from support.cancel import CancelAfter, Cancelled
from support.checkpoints import (
    comfy_text_encoder,
    repository,
    scratch,
    single_file,
    text_encoder,
    text_encoder_weights,
    vae,
)
from support.mapped_files import file_of
from support.tensors import relative_error
from transformers import UMT5Config, UMT5EncoderModel

SIZES = tiny.DEFAULT_SIZES
PROMPT = "A cat walks on the grass, \u732b \U0001f525, soft morning light &amp; 4k."
# Of the rows' norm: 32 bits differ in the order of sums only; bfloat16 has steps of 2**-8.
FLOAT32_TOLERANCE = 1e-5
BFLOAT16_TOLERANCE = 0.03

FORMS = {
    **{
        f"{precision}{suffix}": lambda precision=precision, suffix=suffix: text_encoder(precision, suffix)
        for precision in ("bf16", "fp8", "int8")
        for suffix in (".pth", ".safetensors")
    },
    "comfy_fp16": lambda: comfy_text_encoder(),
    "comfy_fp8_scaled": lambda: comfy_text_encoder(scaled_fp8=True),
}
STORED_DTYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "int8": torch.int8, "comfy_fp16": torch.float16}


def tokenizer_folder() -> Path:
    return repository() / "distill_fp8" / tiny.TOKENIZER_FOLDER


def load(file: Path, device: str = "cpu") -> Umt5Encoder:
    encoder = Umt5Encoder(resolve_text_encoder(file, tokenizer_folder()))
    encoder.load(device, Hooks())
    return encoder


def linears(encoder: Umt5Encoder) -> list[StoredLinear]:
    return [module for module in encoder._model.modules() if isinstance(module, StoredLinear)]


def reference_rows(file: Path, token_ids: list[int]) -> torch.Tensor:
    """Dequantize a file by its own rules, load it into transformers' encoder as usual, encode in float32."""
    stored = torch.load(file, weights_only=True) if file.suffix == ".pth" else load_file(file)
    weights = {}
    for name, tensor in stored.items():
        scale = stored.get(f"{name}_scale", stored.get(name.removesuffix("weight") + "scale_weight"))
        weights[name] = tensor.float() if scale is None or "scale" in name else tensor.float() * scale
    weights = {name: tensor for name, tensor in weights.items() if name.endswith("weight") and "scale" not in name}
    if "shared.weight" not in weights:
        weights = tiny.to_hf_names(weights)
    config = UMT5Config(
        vocab_size=SIZES.vocab_size,
        d_model=SIZES.text_dim,
        d_kv=SIZES.text_d_kv,
        d_ff=SIZES.text_d_ff,
        num_layers=SIZES.text_layers,
        num_heads=SIZES.text_heads,
        feed_forward_proj="gated-gelu",
    )
    model = UMT5EncoderModel(config).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["encoder.embed_tokens.weight"] and not unexpected
    with torch.no_grad():
        model.encoder.embed_tokens.weight.copy_(weights["shared.weight"])
        return model(torch.tensor([token_ids])).last_hidden_state[0]


@pytest.fixture
def in_float32(monkeypatch):
    """Compute as on a CPU without a fast bfloat16 matmul."""
    monkeypatch.setattr(portable, "_compute_dtype", lambda device: torch.float32)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_agrees_with_transformers_in_float32(form, in_float32):
    encoder = load(FORMS[form]())
    token_ids = encoder.tokenize(PROMPT)
    rows = encoder.encode_tokens(token_ids, Hooks())
    assert rows.dtype == torch.float32 and rows.device.type == "cpu"
    assert relative_error(rows, reference_rows(FORMS[form](), token_ids)) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_every_form_agrees_with_transformers_in_bfloat16(form, monkeypatch):
    monkeypatch.setattr(portable, "_compute_dtype", lambda device: torch.bfloat16)
    encoder = load(FORMS[form]())
    token_ids = encoder.tokenize(PROMPT)
    rows = encoder.encode_tokens(token_ids, Hooks())
    assert relative_error(rows, reference_rows(FORMS[form](), token_ids)) < BFLOAT16_TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_fp8_without_scales_is_a_plain_cast(dtype, in_float32, caplog):
    """Some files hold every tensor, the embedding included, cast to FP8."""
    file = scratch() / f"umt5-fp8-cast-{dtype}.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in text_encoder_weights().items()}, file)
    load_text_encoder(file, tokenizer=tokenizer_folder())
    assert "without scales" in caplog.text
    encoder = load(file)
    token_ids = encoder.tokenize(PROMPT)
    rows = encoder.encode_tokens(token_ids, Hooks())
    assert relative_error(rows, reference_rows(file, token_ids)) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_weights_stay_as_stored_and_mapped(form):
    file = FORMS[form]()
    encoder = load(file)
    encoder.encode_tokens([5, 1], Hooks())
    dtype = STORED_DTYPES["fp8" if "fp8" in form else form.split(".")[0]]
    assert len(linears(encoder)) == 7 * SIZES.text_layers
    assert {linear.stored.dtype for linear in linears(encoder)} == {dtype}
    if sys.platform == "linux":
        for tensor in (encoder._embedding, *(linear.stored for linear in linears(encoder))):
            assert file_of(tensor).name == file.name


def test_all_values_of_8_bits_widen_exactly():
    every_byte = torch.arange(256, dtype=torch.uint8)
    finite, of_e5m2 = every_byte[every_byte & 0x7F != 0x7F], every_byte[every_byte & 0x7C != 0x7C]
    for stored in (finite.view(torch.float8_e4m3fn), of_e5m2.view(torch.float8_e5m2), every_byte.view(torch.int8)):
        for dtype in (torch.bfloat16, torch.float32):
            wide = widen(stored, torch.empty(stored.shape, dtype=dtype))
            assert torch.equal(wide.double(), stored.double())


@pytest.mark.parametrize("num_outputs", [1, 64, 100])
def test_linear_in_chunks_of_rows(monkeypatch, num_outputs):
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(-127, 128, (num_outputs, 32), dtype=torch.int8, generator=generator)
    scale, inputs = torch.rand(num_outputs, 1, generator=generator), torch.randn(2, 3, 32, generator=generator)
    monkeypatch.setattr(text_linear, "_CHUNK_ELEMENTS", 32 * 24)
    expected = inputs @ (stored.float() * scale).T
    assert relative_error(StoredLinear(stored, scale)(inputs), expected) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("num_padding", [1, 400])
def test_padding_changes_no_row(in_float32, num_padding):
    encoder = load(text_encoder("fp8"))
    token_ids = encoder.tokenize(PROMPT)
    rows = encoder.encode_tokens(token_ids, Hooks())
    padded = encoder.encode_tokens(token_ids, Hooks(), num_padding=num_padding)
    assert relative_error(padded, rows) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("prompt", ["", "A cat", PROMPT])
def test_rows_after_the_last_token_are_zero(prompt):
    encoder = load(text_encoder("int8"))
    token_ids = encoder.tokenize(prompt)
    assert token_ids[-1] == 1 and 1 not in token_ids[:-1]
    conditioning = encode_prompt(encoder, prompt, Hooks())
    assert conditioning.shape == (1, TEXT_ROWS, SIZES.text_dim) and conditioning.dtype == torch.float32
    assert torch.equal(conditioning[0, : len(token_ids)], encoder.encode_tokens(token_ids, Hooks()))
    assert not conditioning[0, len(token_ids) :].any()
    assert conditioning[0, : len(token_ids)].abs().sum(dim=1).min() > 0


def test_empty_prompt_is_the_end_token():
    assert load(text_encoder("bf16")).tokenize(" \n ") == [1]


def test_long_prompt_is_cut_with_a_warning_and_keeps_its_end_token(caplog):
    encoder = load(text_encoder("fp8"))
    prompt = "cat " * TEXT_ROWS
    token_ids = encoder.tokenize(prompt)
    assert len(token_ids) > TEXT_ROWS
    conditioning = encode_prompt(encoder, prompt, Hooks())
    kept = [*token_ids[: TEXT_ROWS - 1], 1]
    assert torch.equal(conditioning[0], encoder.encode_tokens(kept, Hooks()))
    (said,) = caplog.messages
    assert str(len(token_ids)) in said and str(TEXT_ROWS) in said


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a (red:1.3) fox and a (blue:0.5) fox", ["weights such as (word:1.3) are read as plain text"]),
        ("(snow and ice:.8)", ["weights such as"]),
        ("a fox (in snow: 2)", ["weights such as"]),
        ("((fox:1.2))", ["weights such as"]),
        ("a clock (at 10:30) (16:9) (a fox) fox:1.3 (fox: a red one)", []),
        ("(fox\n:1.3 [fox:1.3] () (:1.2)", []),
        (
            "a fox <lora:snow_v2:0.8> <lora:b:1>",
            ["the node LightX2V LoRA: <lora:snow_v2:0.8> in the prompt is read as"],
        ),
        ("< LoRA : x>, a (fox:1.2)", ["LightX2V LoRA: < LoRA : x> in", "weights such as"]),
        ("<lycoris:a:1:lbw=1>", ["<lycoris:a:1:lbw=1> in"]),
        ("a <3 lora: fox> 2 <b>", []),
        ("a lora:fox <lora>", []),
    ],
)
def test_what_other_programs_read_in_a_prompt_is_text_and_said(prompt, said, caplog):
    handle = load_text_encoder(text_encoder("fp8"), tokenizer=tokenizer_folder())
    report = report_of(encode_text(handle, prompt, hooks=Hooks()))
    (details,) = [stage["details"] for stage in report["stages"] if stage["stage"] == "encode"]
    for warnings in (details.get("warnings", []), [each for each in caplog.messages if "plain text" in each]):
        assert len(warnings) == len(said)
        assert all(part in each for part, each in zip(said, warnings, strict=True))


def test_prompt_of_exactly_512_tokens_is_whole(caplog):
    encoder = load(text_encoder("fp8"))
    words = next(count for count in range(TEXT_ROWS) if len(encoder.tokenize("cat " * count)) >= TEXT_ROWS)
    prompt = "cat " * words
    token_ids = encoder.tokenize(prompt)[:TEXT_ROWS]
    encoder.tokenize = lambda text: token_ids
    conditioning = encode_prompt(encoder, prompt, Hooks())
    assert torch.equal(conditioning[0], encoder.encode_tokens(token_ids, Hooks()))
    assert not caplog.records


def test_comfy_file_brings_its_tokenizer():
    inside = Umt5Encoder(resolve_text_encoder(comfy_text_encoder(), None))
    assert inside.tokenize(PROMPT) == load(text_encoder("fp8")).tokenize(PROMPT)


def test_progress_and_interrupt_between_layers():
    encoder = load(text_encoder("fp8"))
    events = []
    encoder.encode_tokens([5, 1], Hooks(on_progress=lambda done, total, what: events.append((done, total))))
    assert events == [(index, SIZES.text_layers) for index in range(SIZES.text_layers + 1)]
    events.clear()
    with pytest.raises(Cancelled):
        encoder.encode_tokens([5, 1], Hooks(check_interrupt=CancelAfter(1)))
    encoder.encode_tokens([5, 1], Hooks())
    assert not events


def test_loading_reads_the_file_where_there_is_room_for_it(monkeypatch):
    events = []
    hooks = Hooks(on_progress=lambda done, total, what: events.append((done, total)))
    encoder = Umt5Encoder(resolve_text_encoder(text_encoder("fp8"), tokenizer_folder()))
    encoder.load("cpu", hooks)
    num_linears = 7 * SIZES.text_layers
    assert events == [(index, num_linears) for index in range(num_linears)]
    encoder.unload()
    with pytest.raises(Cancelled):
        encoder.load("cpu", Hooks(check_interrupt=CancelAfter(0)))
    encoder.unload()
    events.clear()
    monkeypatch.setattr(portable.system, "free_ram_bytes", lambda: 1000)
    encoder.load("cpu", hooks)
    assert not events
    encoder.encode_tokens([5, 1], Hooks())


def test_unload_frees_the_model_and_load_brings_it_back():
    before = Snapshot()
    encoder = load(text_encoder("fp8"))
    rows = encoder.encode_tokens([7, 5, 1], Hooks()).tolist()
    held, after = before.made_since(), Snapshot()
    assert num_bytes(tensors(held)) > 100_000
    encoder.load("cpu", Hooks())
    assert not tensors(after.made_since())
    encoder.unload()
    assert not tensors(held)
    encoder.load("cpu", Hooks())
    assert encoder.encode_tokens([7, 5, 1], Hooks()).tolist() == rows
    assert encoder.describe()["scheme"] == "fp8" and encoder.describe()["device"] == "cpu"


def test_gpu_without_cuda_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedHardwareError, match="Set device to 'cpu'"):
        load(text_encoder("fp8"), "gpu")


def test_other_models_are_refused():
    for file in (vae(), vae(".pth"), single_file("fp8")):
        with pytest.raises(CheckpointError) as caught:
            Umt5Encoder(resolve_text_encoder(file, tokenizer_folder()))
        assert str(file) in str(caught.value) and "umt5" in str(caught.value)


@pytest.mark.parametrize("form", ["fp8.pth", "fp8.safetensors"])
def test_truncated_file_is_refused(form, tmp_path):
    content = FORMS[form]().read_bytes()
    file = tmp_path / FORMS[form]().name
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        Umt5Encoder(resolve_text_encoder(file, tokenizer_folder()))


def test_without_any_tokenizer_the_folder_to_get_is_named():
    with pytest.raises(CheckpointError, match=r"google/umt5-xxl folder.*tokenizer\.json"):
        Umt5Encoder(resolve_text_encoder(text_encoder("fp8"), None))


def test_tokenizer_with_more_tokens_than_the_encoder(tmp_path):
    fewer = tiny.TinySizes(vocab_size=SIZES.vocab_size - 40)
    encoder = load(tiny.write_text_encoder(tmp_path / "umt5.safetensors", tiny.make_text_encoder(fewer), "bf16"))
    encoder.encode_tokens([fewer.vocab_size - 1, 1], Hooks())
    with pytest.raises(CheckpointError, match="different models"):
        encoder.encode_tokens([fewer.vocab_size, 1], Hooks())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("form", FORMS)
def test_gpu_agrees_and_keeps_no_weights_there(form):
    encoder = load(FORMS[form]())
    token_ids = [*range(3, 43), 1]
    expected = encoder.encode_tokens(token_ids, Hooks())
    encoder.load("gpu", Hooks())
    rows = encoder.encode_tokens(token_ids, Hooks())
    assert rows.device.type == "cpu"
    assert relative_error(rows, expected) < BFLOAT16_TOLERANCE
    assert {linear.stored.device.type for linear in linears(encoder)} == {"cpu"}
    encoder.load("cpu", Hooks())
    assert torch.equal(encoder.encode_tokens(token_ids, Hooks()), expected)
