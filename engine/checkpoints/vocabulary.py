"""How many pieces a tokenizer knows, which says whose it is: every T5 has a tokenizer of the same kind and name.

Counted without building it, which takes a second for UMT5's 256,300 pieces.
Source of spiece.model: sentencepiece, sentencepiece_model.proto (ModelProto.pieces is field 1).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import MALFORMED, CheckpointError, in_words
from ..sentences.checkpoints import Models
from .disk import check_start, read_small

TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
EXPECTED_TOKENIZER = Models.EXPECTED_TOKENIZER()
# The largest of the field, Gemma's, takes 33 MB.
_MAX_BYTES = 64 * 2**20
# Rows of an embedding that no piece needs: UMT5's has 256,384 for 256,000 pieces and up to 300 extra ones.
_MAX_SPARE_ROWS = 512


def tokenizer_file(path: Path) -> Path:
    """Return the file that is read of a tokenizer's folder; a file itself."""
    if not os.path.isdir(path):
        return path
    return next((path / name for name in TOKENIZER_FILES if os.path.isfile(path / name)), path)


def read_tokenizer(file: Path) -> bytes:
    """Return the bytes of tokenizer.json or spiece.model.

    Raises:
        CheckpointError: it is missing, cannot be read, or is too large or something else altogether.
    """
    content = read_small(file, _MAX_BYTES, EXPECTED_TOKENIZER)
    check_start(file, content, EXPECTED_TOKENIZER)
    return content


def count_pieces(path: Path) -> int:
    """Return how many ids a tokenizer gives, by its folder or file.

    Raises:
        CheckpointError: it cannot be read, or is damaged.
    """
    file = tokenizer_file(path)
    content = read_tokenizer(file)
    try:
        return _count_json(json.loads(content)) if file.suffix.lower() == ".json" else _count_spiece(content)
    except MALFORMED as error:
        raise damaged_tokenizer(str(file), in_words(error)) from error


def belongs_to(num_pieces: int, num_rows: int) -> bool:
    """Say whether a tokenizer of so many pieces can be that of an embedding of so many rows."""
    return num_rows - _MAX_SPARE_ROWS <= num_pieces <= num_rows


def damaged_tokenizer(source: str, detail: str) -> CheckpointError:
    """Return the sentence about a tokenizer that cannot be read."""
    return CheckpointError(
        Models.TOKENIZER_DAMAGED(source=source, detail=detail, expected_tokenizer=EXPECTED_TOKENIZER)
    )


def _count_json(table: Any) -> int:
    added = [int(token["id"]) + 1 for token in table.get("added_tokens") or []]
    return max([len(table["model"]["vocab"]), *added])


def _count_spiece(content: bytes) -> int:
    """Count the entries of field 1 of a protocol buffer."""
    count, place = 0, 0
    while place < len(content):
        key, place = _varint(content, place)
        field, kind = key >> 3, key & 7
        size, place = _varint(content, place) if kind in (0, 2) else ({1: 8, 5: 4}[kind], place)
        if kind == 0:
            continue
        place += size
        count += field == 1
    if place != len(content) or not count:
        raise ValueError(Models.NO_PIECES())
    return count


def _varint(content: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = content[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return number, place
        if shift > 63:
            raise ValueError(Models.LONG_NUMBER())
