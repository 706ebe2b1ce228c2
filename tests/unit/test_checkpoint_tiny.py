"""The tiny checkpoint has the real layouts, and every form of it holds the same weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch
from lightx2v_pack.engine.checkpoints.weights import open_weights
from support import checkpoints
from support.checkpoints import tiny

SCRIPT = Path(__file__).parents[2] / "tools" / "make_tiny_checkpoint.py"
COMPANIONS = {
    "Wan2.1_VAE.pth",
    *(f"google/umt5-xxl/{name}" for name in ("special_tokens_map.json", "spiece.model")),
    *(f"google/umt5-xxl/{name}" for name in ("tokenizer.json", "tokenizer_config.json")),
}
BLOCKS = {"block_0.safetensors", "block_1.safetensors", "non_block.safetensors"}


def dequantize(weights, name: str) -> torch.Tensor:
    stem = name.removesuffix("weight")
    scale = next((weights[stem + s] for s in ("weight_scale", "scale_weight") if stem + s in weights), None)
    return weights[name].float() if scale is None else weights[name].float() * scale


def files_in(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_repository_has_the_upstream_files() -> None:
    root = checkpoints.repository()
    assert files_in(root / "distill_fp8") == BLOCKS | COMPANIONS | {"models_t5_umt5-xxl-enc-fp8.pth"}
    assert files_in(root / "distill_int8") == BLOCKS | COMPANIONS | {"models_t5_umt5-xxl-enc-int8.pth"}
    bf16 = {"distill_model.safetensors", "models_t5_umt5-xxl-enc-bf16.pth"}
    assert files_in(root / "distill_models") == bf16 | COMPANIONS
    non_block = open_weights([root / "distill_fp8" / "non_block.safetensors"]).header
    assert {info.dtype for info in non_block.values()} == {"F32"}


# Relative error of a matrix: half a step of 7 bits a row's peak (int8), of 3 mantissa bits (fp8), of 8 (bf16).
TOLERANCE = {"bf16": 0.0, "int8": 0.02, "fp8": 0.05}


@pytest.mark.parametrize(
    ("make", "precision", "expected"),
    [
        *((lambda p=p: checkpoints.single_file(p), p, checkpoints.transformer_weights) for p in TOLERANCE),
        *((lambda p=p: checkpoints.text_encoder(p), p, checkpoints.text_encoder_weights) for p in TOLERANCE),
        (checkpoints.comfy_transformer, "fp8", checkpoints.transformer_weights),
        (checkpoints.vae, "bf16", checkpoints.vae_weights),
    ],
)
def test_every_form_holds_the_same_weights(make, precision: str, expected) -> None:
    weights = open_weights([make()])
    for name, tensor in expected().items():
        error = (dequantize(weights, name) - tensor).norm() / tensor.norm()
        assert error <= TOLERANCE[precision] + 1e-3, name  # 1e-3: float16 of the ComfyUI forms


@pytest.mark.parametrize("scaled_fp8", [False, True])
def test_comfy_text_encoder_holds_the_same_weights(scaled_fp8: bool) -> None:
    weights = open_weights([checkpoints.comfy_text_encoder(scaled_fp8)])
    for name, tensor in tiny.to_hf_names(checkpoints.text_encoder_weights()).items():
        error = (dequantize(weights, name) - tensor).norm() / tensor.norm()
        assert error <= (TOLERANCE["fp8"] if scaled_fp8 else 1e-3), name
    assert ("scaled_fp8" in weights) == scaled_fp8
    assert weights["spiece_model"].numpy().tobytes() == checkpoints.spiece_model()


def test_text_encoder_fits_transformers_and_is_not_degenerate() -> None:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=400, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    model = UMT5EncoderModel(config).eval()
    result = model.load_state_dict(tiny.to_hf_names(checkpoints.text_encoder_weights()), strict=False)
    assert result.unexpected_keys == []
    assert set(result.missing_keys) <= {"encoder.embed_tokens.weight"}  # tied to shared.weight
    model.encoder.embed_tokens = model.shared
    with torch.no_grad():
        rows = model(torch.tensor([[5, 270, 300, 1], [5, 271, 300, 1]])).last_hidden_state
    assert 0.5 < rows.std() < 2.0
    assert (rows[0, 0] - rows[1, 0]).norm() > 0.1 * rows[0, 0].norm()  # attention carries another token's change


@pytest.mark.parametrize(
    "text",
    [
        "Two anthropomorphic cats in comfy boxing gear.",
        "  spaces \n and\tlines ",
        "\u4e00\u53ea\u732b, caf\u00e9 and \uff26ull width \U0001f63a",
        "",
        "UPPER 123 %$#",
    ],
)
def test_tokenizer_files_agree(text: str) -> None:
    from tokenizers import Tokenizer

    folder = checkpoints.repository() / "distill_fp8" / "google" / "umt5-xxl"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert ids == [*processor.encode(text), 1]
    assert 2 not in ids  # bytes stand in for unknown characters
    assert max(ids) < tiny.DEFAULT_SIZES.vocab_size


def test_transformers_loads_the_tokenizer() -> None:
    from transformers import AutoTokenizer

    folder = checkpoints.repository() / "distill_fp8" / "google" / "umt5-xxl"
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    text = "A red fox runs through fresh snow"
    assert tokenizer(text)["input_ids"] == [*processor.encode(text), 1]


def test_seed_decides_the_weights() -> None:
    again = tiny.make_transformer(seed=checkpoints.SEED)
    other = tiny.make_transformer(seed=checkpoints.SEED + 1)
    for name, tensor in checkpoints.transformer_weights().items():
        assert torch.equal(tensor, again[name])
        assert not torch.equal(tensor, other[name])


def test_script(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(SCRIPT),
        str(tmp_path / "out"),
        "--precision",
        "bf16",
        "--seed",
        str(checkpoints.SEED),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert str(tmp_path / "out") in done.stdout
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == ["distill_models"]
    written = open_weights([tmp_path / "out" / "distill_models" / "distill_model.safetensors"])
    assert torch.equal(written["head.head.weight"], checkpoints.transformer_weights()["head.head.weight"].bfloat16())
