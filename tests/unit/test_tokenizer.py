"""Wan's text clean-up and UMT5 token ids, from every form of the tokenizer."""

import json
import shutil

import pytest
import sentencepiece
from lightx2v_pack.engine.errors import CheckpointError
from lightx2v_pack.engine.umt5.tokenizer import END_TOKEN, clean_text, open_spiece, open_tokenizer
from support.checkpoints import repository, spiece_model

PROMPTS = (
    "",
    "A cat walks on the grass, realistic style.",
    "a",
    "  two  spaces,\ttabs\nand\r\n\nnew lines ",
    "Fish &amp; chips, &amp;quot;quoted&amp;quot; &#39;x&#39; &lt;b&gt;",
    "\u4e00\u53ea\u732b\u5728\u8349\u5730\u4e0a\u884c\u8d70\uff0c\u5199\u5b9e\u98ce\u683c\u3002",
    "\u30cd\u30b3\u304c\u6b69\u304f \u3000 \u043a\u043e\u0442 \u0438\u0434\u0451\u0442 \u0642\u0637\u0629",
    "fire \U0001f525 and family \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
    "caf\u00e9 cafe\u0301 na\u00efve \u00bd \u2026 \u201cquotes\u201d \u2014 dash",
    "sch\u00c3\u00b6n, no\u00e2\u20ac\u2122s",
    "4k, 8K, (masterpiece:1.2), [cat|dog], {red}, <lora:x:1> a_b__c",
    "word " * 300,
)


@pytest.fixture(scope="module")
def folder():
    return repository() / "distill_fp8" / "google" / "umt5-xxl"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_source_gives_the_ids_of_sentencepiece(folder, prompt):
    text = clean_text(prompt)
    expected = sentencepiece.SentencePieceProcessor(model_proto=spiece_model()).encode(text)
    assert open_tokenizer(folder)(text) == expected
    assert open_tokenizer(folder / "tokenizer.json")(text) == expected
    assert open_tokenizer(folder / "spiece.model")(text) == expected
    assert open_spiece(spiece_model(), "a file")(text) == expected


def test_folder_with_spiece_model_only(folder, tmp_path):
    shutil.copy(folder / "spiece.model", tmp_path)
    assert open_tokenizer(tmp_path)("A cat") == open_tokenizer(folder)("A cat")


def test_truncation_and_padding_stored_in_the_file_do_not_apply(folder, tmp_path):
    table = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    table["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    table["padding"] = {
        "strategy": {"Fixed": 512},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")
    text = "A cat walks on the grass."
    assert open_tokenizer(tmp_path)(text) == open_tokenizer(folder)(text)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("", ""),
        (" \n\t ", ""),
        ("  a   b\n\nc\td ", "a b c d"),
        ("a\u00a0\u3000b", "a b"),
        ("&amp;amp; &lt;i&gt;", "& <i>"),
        ("&amp;lt;", "<"),
        ("sch\u00c3\u00b6n", "sch\u00f6n"),
        ("\u201cquoted\u201d it\u2019s", '"quoted" it\'s'),
        ("\uff21\uff22", "AB"),
        ("\U0001f525 \u732b", "\U0001f525 \u732b"),
    ],
)
def test_clean_text(text, cleaned):
    assert clean_text(text) == cleaned


def test_missing_tokenizer_names_the_files_and_the_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json.*spiece\.model.*google/umt5-xxl") as caught:
        open_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(CheckpointError, match="No tokenizer"):
        open_tokenizer(tmp_path / "absent")


@pytest.mark.parametrize("name", ["tokenizer.json", "spiece.model"])
@pytest.mark.parametrize("content", [b"", b"not a tokenizer", b"{}"])
def test_damaged_tokenizer_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        open_tokenizer(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_truncated_tokenizer_is_named(folder, tmp_path):
    for name in ("tokenizer.json", "spiece.model"):
        content = (folder / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(CheckpointError, match="cannot be read"):
            open_tokenizer(tmp_path / name)


def test_tokenizer_of_another_model_is_refused(folder, tmp_path):
    table = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = table["model"]["vocab"]
    vocabulary[END_TOKEN], vocabulary[2] = vocabulary[2], vocabulary[END_TOKEN]
    table["model"]["unk_id"] = END_TOKEN
    table["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(CheckpointError, match="not the tokenizer of UMT5"):
        open_tokenizer(tmp_path)
