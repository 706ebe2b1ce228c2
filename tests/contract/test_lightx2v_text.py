"""The portable text encoder and tokenizer against LightX2V's own, run on the CPU on the same tiny weights."""

import importlib

import pytest
import torch
from lightx2v_pack.engine.checkpoints.companions import resolve_text_encoder
from lightx2v_pack.engine.constants import TEXT_ROWS
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.stages.encode import encode_prompt
from lightx2v_pack.engine.umt5 import encoder as portable
from lightx2v_pack.engine.umt5.encoder import Umt5Encoder
from lightx2v_pack.tools import make_tiny_checkpoint as tiny
from support import lightx2v_cpu
from support.checkpoints import repository, text_encoder, text_encoder_weights
from support.tensors import relative_error
from transformers import PreTrainedTokenizerFast

SIZES = tiny.DEFAULT_SIZES
TOKENIZER = tiny.TOKENIZER_FOLDER
# Of the norm of all rows. LightX2V rounds its result to bfloat16 (steps of 2**-8) in either case; computing in
# bfloat16, both round after every operation, not always in the same order.
TOLERANCES = {torch.float32: 2**-8, torch.bfloat16: 0.02}
PROMPTS = {
    "empty": "",
    "short": "A cat.",
    "long": "A red fox runs through fresh snow at dawn while the camera follows from the side. " * 4,
    "multilingual": "Eine Katze, \u4e00\u53ea\u732b\u5728\u8349\u5730\uff0c \u043a\u043e\u0442, \u0642\u0637\u0629.",
    "emoji": "fire \U0001f525\U0001f525 and a family \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "dirty": "  two  spaces \n\n &amp;amp; sch\u00c3\u00b6n &lt;b&gt;\u3000",
    "over_512": "umbrellas and puddles, " * 200,
}


@pytest.fixture(scope="module")
def upstream():
    """LightX2V's modules of the text encoder."""
    lightx2v_cpu.import_lightx2v()
    with lightx2v_cpu.stand_ins():
        return importlib.import_module("lightx2v.models.input_encoders.hf.wan.t5.model")


@pytest.fixture(scope="module")
def tokenizer_folder():
    return repository() / "distill_fp8" / TOKENIZER


@pytest.fixture(scope="module")
def upstream_tokenizer(upstream, tokenizer_folder):
    """Return LightX2V's wrapper around the tokenizer as tokenizer.json defines it.

    That is what AutoTokenizer gives in transformers 4. Version 5 builds T5 tokenizers anew from the vocabulary, without
    normalizer and byte fallback: Chinese or emoji become <unk>.
    """
    tokenizer = upstream.HuggingfaceTokenizer(name=str(tokenizer_folder), seq_len=TEXT_ROWS, clean="whitespace")
    tokenizer.tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_folder / "tokenizer.json"), pad_token="<pad>", eos_token="</s>"
    )
    return tokenizer


def upstream_rows(upstream, upstream_tokenizer, prompt, dtype):
    """Return what LightX2V gives its transformer: rows of the real tokens, zero-padded to 512."""
    model = upstream.T5Encoder(
        dtype,
        SIZES.vocab_size,
        SIZES.text_dim,
        SIZES.text_heads * SIZES.text_d_kv,
        SIZES.text_d_ff,
        SIZES.text_heads,
        SIZES.text_layers,
        32,
        shared_pos=False,
    )
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in text_encoder_weights().items()})
    ids, mask = upstream_tokenizer([prompt], return_mask=True, add_special_tokens=True)
    with torch.no_grad():
        rows = model.eval().to(dtype)(ids, mask)[0]
    return rows.float() * mask[0, :, None]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_token_ids(upstream_tokenizer, tokenizer_folder, prompt):
    ids, mask = upstream_tokenizer([PROMPTS[prompt]], return_mask=True, add_special_tokens=True)
    expected = ids[0, : int(mask.sum())].tolist()
    found = Umt5Encoder(resolve_text_encoder(text_encoder("bf16"), tokenizer_folder)).tokenize(PROMPTS[prompt])
    assert (found if len(found) <= TEXT_ROWS else [*found[: TEXT_ROWS - 1], found[-1]]) == expected


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_rows(upstream, upstream_tokenizer, tokenizer_folder, monkeypatch, prompt, dtype):
    monkeypatch.setattr(portable, "_compute_dtype", lambda device: dtype)
    encoder = Umt5Encoder(resolve_text_encoder(text_encoder("bf16"), tokenizer_folder))
    encoder.load("cpu", Hooks())
    expected = upstream_rows(upstream, upstream_tokenizer, PROMPTS[prompt], dtype)
    found = encode_prompt(encoder, PROMPTS[prompt], Hooks())[0]
    assert relative_error(found, expected) < TOLERANCES[dtype]
    assert torch.equal(found.any(dim=1), expected.any(dim=1))
