"""Printing that never fails, and files of text as people's editors write them."""

import codecs
import io
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from lightx2v_pack.tools import console
from lightx2v_pack.tools.headless.progress import Progress
from lightx2v_pack.tools.text_files import read_text

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("encoding", "text", "shown"),
    [
        ("cp1252", "D:\\\u89c6\u9891\\a.mp4", "D:\\\\u89c6\\u9891\\a.mp4"),
        ("ascii", "é \U0001f98a", r"\xe9 \U0001f98a"),
        ("utf-8", "a\udc80.mp4", "a\\udc80.mp4"),
        ("cp1252", "é", "é"),
    ],
)
def test_what_an_encoding_lacks_is_escaped(encoding, text, shown):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="")
    console.write(stream, f"{text}\n")
    assert raw.getvalue().decode(encoding) == f"{shown}\n"


class _Full(io.TextIOBase):
    def __init__(self, error):
        self.error = error

    def write(self, text):
        raise self.error


@pytest.mark.parametrize(
    "stream",
    [None, _Full(OSError(28, "No space left on device")), _Full(BrokenPipeError()), _Full(ValueError("closed file"))],
    ids=["closed", "full", "no reader", "closed here"],
)
def test_a_stream_that_takes_nothing_costs_nothing(stream):
    console.write(stream, "lost")
    progress = Progress(stream, quiet=False)
    progress.start_run(1)
    progress.start_node("Save")
    progress.note("text")
    assert progress.finish_node() >= 0


def test_a_stream_that_was_closed_is_watched_by_nobody():
    closed = io.StringIO()
    closed.close()
    assert not console.is_live(closed) and not console.is_live(None) and not console.is_live(io.StringIO())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="shell and /dev/full")
@pytest.mark.parametrize(
    ("arguments", "code", "redirect"),
    [
        *(("workflow no_such.json", 2, redirect) for redirect in ("2>&-", ">&- 2>&-", "2>/dev/full", "| true")),
        *(("", 0, redirect) for redirect in (">&-", ">/dev/full", ">/dev/full 2>/dev/full")),
        ("doctor --json --models-dir .", 1, ">&- 2>/dev/full"),
    ],
)
def test_commands_end_as_they_would(arguments, code, redirect):
    command = f"{shlex.join([sys.executable, str(ROOT / 'tools')])} {arguments} {redirect}"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


TEXT = "ein Fuchs im Schnee: größer\n\u0437\u0438\u043c\u0430\r\n\u72d0\u2028one line\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_marks_of_encodings_are_read(tmp_path, encoding):
    file = tmp_path / "prompts.txt"
    file.write_bytes(TEXT.encode(encoding))
    assert read_text(file) == TEXT


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE])
def test_the_other_byte_order_is_read_too(tmp_path, mark):
    file = tmp_path / "prompts.txt"
    file.write_bytes(mark + TEXT.encode("utf-16-be" if len(mark) == 2 else "utf-32-be"))
    assert read_text(file) == TEXT


@pytest.mark.parametrize(
    ("content", "line", "found"),
    [
        ("a fox\ngrößer".encode("cp1252"), 2, "a byte 0xf6 that is no UTF-8"),
        ("\u72d0\n".encode("gbk"), 1, "a byte 0xba that is no UTF-8"),
        ("a fox\n\u0437\u0438\u043c\u0430".encode("cp1251"), 2, "a byte 0xe7 that is no UTF-8"),
        ("a fox".encode("utf-16-le"), 1, "a zero byte, as UTF-16 has"),
        (b"\xff\xfea\x00b", 1, "a byte 0x62 that is no UTF-16-LE"),
    ],
)
def test_another_encoding_is_named_with_file_and_line(tmp_path, content, line, found):
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_text(file)
    sentence = f"Save prompts.txt as UTF-8, which editors offer in Save As: line {line} of {file} has {found}."
    assert str(caught.value) == sentence
