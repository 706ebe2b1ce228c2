"""Text to UMT5 token ids, as Wan does it: clean up the text, split it into pieces, add the end token.

Reads `tokenizer.json` with the tokenizers library and `spiece.model` with sentencepiece: both give the ids
the file defines. transformers' tokenizer classes are not used: version 5 rebuilds T5's without normalizer and
byte fallback. The two files agree except for characters outside the vocabulary, where `tokenizer.json` says
whether they become bytes, as with sentencepiece, or <unk>; Wan reads `tokenizer.json`, ComfyUI the other.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..checkpoints.vocabulary import (
    EXPECTED_TOKENIZER,
    TOKENIZER_FILES,
    damaged_tokenizer,
    read_tokenizer,
    tokenizer_file,
)
from ..errors import MALFORMED, CheckpointError, MissingDependencyError, in_words
from ..sentences import joined
from ..sentences.between import Between
from ..sentences.text import Text

Tokenizer = Callable[[str], list[int]]
"""Cleaned text to piece ids, without the end token."""

# How many times as long rules of a tokenizer.json may make a text; UMT5's make it no longer.
_MAX_GROWTH = 64
# Id of "</s>" in every T5 vocabulary.
END_TOKEN = 1

_EXPECTED = Text.EXPECTED(tokenizer=EXPECTED_TOKENIZER)


def clean_text(text: str) -> str:
    """Repair mojibake, resolve HTML entities, and make every run of white space one blank.

    Source: Wan2.1 wan/modules/tokenizers.py, `basic_clean` and `whitespace_clean`.

    Raises:
        MissingDependencyError: ftfy is not installed.
    """
    try:
        import ftfy
    except ImportError as error:
        raise MissingDependencyError(Text.NO_FTFY()) from error
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


def open_tokenizer(path: Path) -> Tokenizer:
    """Open a google/umt5-xxl folder, a `tokenizer.json` or a `spiece.model`.

    Raises:
        CheckpointError: neither file is there, or it is damaged, or it is not a T5 tokenizer.
    """
    file = tokenizer_file(path)
    if not os.path.isfile(file):
        names = joined(TOKENIZER_FILES, Between.NOR)
        raise CheckpointError(Text.NO_TOKENIZER(path=path, names=names, expected=_EXPECTED))
    if file.suffix.lower() == ".json":
        return _open_json(file)
    return open_spiece(read_tokenizer(file), str(file))


def open_spiece(model: bytes, source: str) -> Tokenizer:
    """Open the bytes of a SentencePiece model; `source` says in errors where they are from.

    Raises:
        CheckpointError: the bytes are damaged or not a T5 tokenizer.
    """
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
        end_token = processor.eos_id()
    except (RuntimeError, *MALFORMED) as error:
        raise damaged_tokenizer(source, in_words(error)) from error
    _check_end_token(source, end_token)

    def encode(text: str) -> list[int]:
        ids: list[int] = processor.EncodeAsIds(text)
        return ids

    return encode


def _open_json(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer as JsonTokenizer

    content = read_tokenizer(file)
    _check_growth(file, content)
    tokenizer = _in_rust(file, lambda: JsonTokenizer.from_buffer(content))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _check_end_token(str(file), tokenizer.token_to_id("</s>"))

    def encode(text: str) -> list[int]:
        ids: list[int] = _in_rust(file, lambda: tokenizer.encode(text, add_special_tokens=False).ids)
        return ids

    return encode


def _in_rust(file: Path, call: Callable[[], Any]) -> Any:
    """Return what a call of the tokenizers library does, which raises nothing more specific than Exception.

    Where it panics it raises a BaseException, which would end the thread that ComfyUI runs prompts in.
    """
    try:
        return call()
    except Exception as error:
        raise damaged_tokenizer(str(file), in_words(error)) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise damaged_tokenizer(str(file), in_words(error)) from error


def _check_growth(file: Path, content: bytes) -> None:
    """Raise where the rules of a tokenizer.json would make a text longer and longer."""
    try:
        table = json.loads(content)
        rules = [rule for part in ("normalizer", "pre_tokenizer") for rule in _rules(table.get(part))]
        growth = math.prod(max(1, len(str(rule.get(key, "")))) for rule in rules for key in ("content", "prepend"))
    except MALFORMED as error:
        raise damaged_tokenizer(str(file), in_words(error)) from error
    if growth > _MAX_GROWTH:
        raise damaged_tokenizer(str(file), Text.ENDLESS_RULES())


def _rules(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield part
        for rule in (*part.get("normalizers", ()), *part.get("pretokenizers", ())):
            yield from _rules(rule)


def _check_end_token(source: str, found: int | None) -> None:
    if found != END_TOKEN:
        raise CheckpointError(Text.OTHER_END_TOKEN(source=source, found=found, end_token=END_TOKEN, expected=_EXPECTED))
