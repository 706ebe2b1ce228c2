"""Text to UMT5 token ids, as Wan does it: clean up the text, split it into pieces, add the end token.

Reads `tokenizer.json` with the tokenizers library and `spiece.model` with sentencepiece: both give the ids
the file defines. transformers' tokenizer classes are not used: version 5 rebuilds T5's without normalizer and
byte fallback. The two files agree except for characters outside the vocabulary, where `tokenizer.json` says
whether they become bytes, as with sentencepiece, or <unk>; Wan reads `tokenizer.json`, ComfyUI the other.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path

from ..checkpoints.files import TOKENIZER_FILES
from ..errors import CheckpointError, MissingDependencyError

Tokenizer = Callable[[str], list[int]]
"""Cleaned text to piece ids, without the end token."""

# Id of "</s>" in every T5 vocabulary.
END_TOKEN = 1

_EXPECTED = "expected the google/umt5-xxl folder that comes with Wan2.1 (tokenizer.json or spiece.model)"


def clean_text(text: str) -> str:
    """Repair mojibake, resolve HTML entities, and make every run of white space one blank.

    Source: Wan2.1 wan/modules/tokenizers.py, `basic_clean` and `whitespace_clean`.

    Raises:
        MissingDependencyError: ftfy is not installed.
    """
    try:
        import ftfy
    except ImportError as error:
        raise MissingDependencyError(
            "The text encoder needs the package ftfy, which is not installed. Install this pack's requirements.txt, "
            "or run: pip install ftfy"
        ) from error
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


def open_tokenizer(path: Path) -> Tokenizer:
    """Open a google/umt5-xxl folder, a `tokenizer.json` or a `spiece.model`.

    Raises:
        CheckpointError: neither file is there, or it is damaged, or it is not a T5 tokenizer.
    """
    file = path
    if path.is_dir():
        file = next((path / name for name in TOKENIZER_FILES if (path / name).is_file()), path)
    if not file.is_file():
        raise CheckpointError(
            f"No tokenizer in {path}: found neither {' nor '.join(TOKENIZER_FILES)}; {_EXPECTED}. Download that folder "
            "from the model page and put it beside the text encoder, or choose another tokenizer."
        )
    if file.suffix == ".json":
        return _open_json(file)
    return open_spiece(file.read_bytes(), str(file))


def open_spiece(model: bytes, source: str) -> Tokenizer:
    """Open the bytes of a SentencePiece model; `source` says in errors where they are from.

    Raises:
        CheckpointError: the bytes are damaged or not a T5 tokenizer.
    """
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise _damaged(source, error) from error
    _check_end_token(source, processor.eos_id())

    def encode(text: str) -> list[int]:
        ids: list[int] = processor.EncodeAsIds(text)
        return ids

    return encode


def _open_json(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer as JsonTokenizer

    try:
        tokenizer = JsonTokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing more specific
        raise _damaged(str(file), error) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _check_end_token(str(file), tokenizer.token_to_id("</s>"))

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return encode


def _damaged(source: str, error: Exception) -> CheckpointError:
    detail = str(error).splitlines()[0]
    return CheckpointError(f"The tokenizer {source} cannot be read ({detail}); {_EXPECTED}. Download the folder again.")


def _check_end_token(source: str, found: int | None) -> None:
    if found != END_TOKEN:
        raise CheckpointError(
            f"{source} is not the tokenizer of UMT5: its end token </s> has the id {found}, expected {END_TOKEN}; "
            f"{_EXPECTED}."
        )
