"""Text files as people's editors write them."""

from __future__ import annotations

import codecs
from pathlib import Path

from ..engine.sentences.tools import Command

# Longer marks first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, or in what its first bytes say (Notepad and PowerShell write such marks).

    Line ends stay as they are.

    Raises:
        OSError: it cannot be read.
        ValueError: it is in another encoding.
    """
    data = path.read_bytes()
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    data = data[len(mark) :]
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].decode(encoding, "replace").count("\n") + 1
        raise ValueError(
            _explain(path, line, Command.BYTE_OF(byte=data[error.start], encoding=encoding.upper()))
        ) from None
    if not mark and "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(_explain(path, line, Command.ZERO_BYTE()))
    return text


def _explain(path: Path, line: int, found: str) -> str:
    return Command.SAVE_AS_UTF8(name=path.name, line=line, path=path, found=found)
