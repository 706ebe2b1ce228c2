"""Files that commands leave: what cannot be written is known before, and nothing is left half."""

import errno
import json
import os
import re

import pytest
from lightx2v_pack.tools import __main__ as commands
from lightx2v_pack.tools import saving
from lightx2v_pack.tools.bench.harness import ROWS
from lightx2v_pack.tools.clips.results import RESULTS
from lightx2v_pack.tools.headless.report import REPORT
from support.examples import TEXT_TO_VIDEO
from support.rights import NOBODY, needs_rights, open_folder


def says(problem, option="--out"):
    assert problem is not None and (problem.startswith((f"Choose another place for {option}: ", "Make room")))
    return problem.partition(": ")[2]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("file/fox.mp4", "{file} is a file, where a folder has to be."),
        ("file/a/b/fox.mp4", "{file} is a file, where a folder has to be."),
        ("folder", "{folder} is a folder."),
        ("a" * 300 + ".mp4", "the name " + "a" * 60 + " is too long."),
        ("b" * 300 + "/fox.mp4", "the name fox.mp4 is too long."),
        ("fox\0.mp4", "embedded null byte"),
    ],
)
def test_a_file_that_cannot_be_written_is_known_before(tmp_path, name, said):
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "folder").mkdir()
    said = said.format(file=tmp_path / "file", folder=tmp_path / "folder")
    assert said in says(saving.problem_of_file(tmp_path / name, "--out"))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"] and (tmp_path / "file").read_bytes() == b"kept"


@pytest.mark.parametrize("name", ["fox.mp4", "new/folder/fox.mp4", "file", "b" * 250 + ".mp4"])
def test_nothing_is_left_of_the_try(tmp_path, name):
    (tmp_path / "file").write_bytes(b"kept")
    assert saving.problem_of_file(tmp_path / name, "--out") is None
    assert saving.problem_of_folder(tmp_path / "new" / "folder", "--output-dir") is None
    assert saving.problem_of_folder(tmp_path, "--output-dir") is None
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"kept"


@needs_rights
@pytest.mark.parametrize("name", ["fox.mp4", "new/fox.mp4", "there.mp4"])
def test_a_folder_without_the_right_to_write_is_known_before(name):
    with open_folder() as folder:
        (folder / "there.mp4").write_bytes(b"kept")
        folder.chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(NOBODY)
        try:
            problems = [
                saving.problem_of_file(folder / name, "--out"), saving.problem_of_folder(folder / "new", "--out")
            ]  # fmt: skip
        finally:
            os.seteuid(user)
            folder.chmod(0o755)
        for problem in problems:
            assert says(problem).startswith(f"there is no right to write {folder}")
        assert os.listdir(folder) == ["there.mp4"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "Make room, or choose another place for --out: the drive of {path} is full."),
        (errno.EROFS, "Choose another place for --out: the drive of {path} can only be read."),
        (errno.EIO, "Choose another place for --out: {path} cannot be written (Input/output error)."),
    ],
)
def test_what_the_system_refuses_is_a_sentence(tmp_path, number, said):
    error = OSError(number, os.strerror(number))
    assert saving.refusal(tmp_path, "--out", error) == said.format(path=tmp_path)


def full_after(written, folder):
    """Return a writer that finds no room in a folder once there is so much in it."""

    def write(path):
        path.write_bytes(b"half")
        if path.is_relative_to(folder) and len(list(folder.rglob("*.png"))) > written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.write_bytes(b"whole")

    return write


@pytest.mark.parametrize("written", [0, 1, 2])
def test_of_several_files_those_that_have_no_room_go_elsewhere(tmp_path, monkeypatch, written):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    out = tmp_path / "out"
    with pytest.raises(saving.NotSavedError) as error:
        saving.save({out / f"{number}.png": full_after(written, out) for number in range(4)})
    (elsewhere,) = (tmp_path / "temporary").iterdir()
    assert str(error.value).startswith(f"Take what was made from {elsewhere}. Make room")
    found = {path.name: path.read_bytes() for folder in (out, elsewhere) for path in folder.iterdir()}
    assert found == {f"{number}.png": b"whole" for number in range(4)}
    assert len(list(out.iterdir())) == written


def test_a_file_is_replaced_whole_through_a_link_and_a_device_stays_one(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    saving.write_whole(tmp_path / "link", lambda path: path.write_bytes(b"new"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    saving.write_whole(tmp_path / "pipe", lambda path: path.write_bytes(b"through"))
    assert os.read(reader, 100) == b"through" and not re.search("part", " ".join(os.listdir(tmp_path)))
    os.close(reader)


def test_a_pipe_that_nobody_reads_and_a_link_to_itself_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "nobody reads the pipe" in saving.problem_of_file(tmp_path / "pipe.mp4", "--out")
    reader = os.open(tmp_path / "pipe.mp4", os.O_RDONLY | os.O_NONBLOCK)
    assert saving.problem_of_file(tmp_path / "pipe.mp4", "--out") is None
    os.close(reader)
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    assert saving.problem_of_file(tmp_path / "loop.mp4", "--out").startswith("Choose another place for --out")
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "not there yet.mp4")
    assert saving.problem_of_file(tmp_path / "dangling.mp4", "--out") is None
    assert {path.name for path in tmp_path.iterdir() if path.is_symlink()} == {"loop.mp4", "dangling.mp4"}


def test_what_is_cancelled_leaves_nothing(tmp_path):
    def write(path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        saving.save({tmp_path / "out" / "fox.mp4": write})
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize(("words", "place"), [(["bench", "vae"], "file/rows.jsonl"), (["bench", "all"], "file")])
def test_a_benchmark_says_so_before_it_measures(tmp_path, capsys, words, place):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SystemExit) as ended:
        commands.main([*words, "--out", str(tmp_path / place)])
    assert ended.value.code == 2
    assert f"{tmp_path / 'file'} is a file, where a folder has to be." in capsys.readouterr().err


def test_a_download_says_so_before_it_asks_anybody(tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"")
    words = ["get", "int8", "--models-dir", str(tmp_path / "file" / "models"), "--endpoint", "http://127.0.0.1:9"]
    assert commands.main(["download", *words]) == 3
    said = f"download: Choose another place for --models-dir: {tmp_path / 'file'} is a file, where a folder has to be."
    assert said in capsys.readouterr().err


# The first bytes of a safetensors file: the length of its header, whose lowest byte may well be a brace.
LORA = b'{\0\0\0\0\0\0\0{"a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}' + bytes(4000)
OTHERS = {
    "a.safetensors": LORA,
    "notes.md": b"# Notes\n\nA line: {}\n",
    "graph.json": b'{"1": {"class_type": "LightX2VSampler", "inputs": {"seed": 1}}}',
    "editor.json": b'{"nodes": [], "links": [], "version": 0.4}',
    "list.json": b'[{"prompt": "a fox", "seed": 0, "status": "ok"}]',
    "seeds.jsonl": b'{"prompt": "a fox", "seed": 0}\n{"prompt": "a boat", "seed": 1}\n',
    "page.md": b'The file has\n\n{"prompt": "a fox", "seed": 0, "status": "ok"}\n\nfor each clip.\n',
    "prompts.txt": b"a fox\n",
    "null.json": b"null",
    "latin.txt": b"f\xfcr mich\n",
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    ("command", "option", "said"),
    [
        ("prompts", "--results", "holds no results of run_prompts"),
        ("prompts", "--report", "is no report of this command"),
        ("workflow", "--report", "is no report of this command"),
        ("bench vae", "--out", "holds no rows of a benchmark"),
    ],
)
def test_a_file_of_somebody_else_is_neither_added_to_nor_replaced(
    tmp_path, monkeypatch, capsys, command, option, said, name
):
    monkeypatch.setattr("lightx2v_pack.tools.headless.places.Here.run", lambda *_: pytest.fail("it began"))
    (tmp_path / name).write_bytes(OTHERS[name])
    (tmp_path / "list.txt").write_bytes(b"a fox\n")
    given = {"prompts": [str(tmp_path / "list.txt")], "workflow": [TEXT_TO_VIDEO], "bench vae": []}[command]
    folders = [] if command == "bench vae" else ["--output-dir", str(tmp_path / "out")]
    try:
        code = commands.main([*command.split(), *map(str, given), *folders, option, str(tmp_path / name)])
    except SystemExit as ended:
        code = ended.code
    assert code == (3 if command == "prompts" else 2)
    error = capsys.readouterr().err
    assert f"Choose another place for {option}: {tmp_path / name} is there already, and {said}." in error
    assert (tmp_path / name).read_bytes() == OTHERS[name]


@pytest.mark.parametrize("kind", [RESULTS, ROWS, REPORT])
@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_is_anybodys(tmp_path, kind, content):
    (tmp_path / "file").write_bytes(content)
    assert saving.problem_of_file(tmp_path / "file", "--out", kind) is None


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (RESULTS, b'{"prompt": "a fox", "seed": 0, "status": "ok"}\n'),
        (RESULTS, b'{"prompt": "a fox", "seed"'),
        (RESULTS, b'{"pro'),
        (RESULTS, b'a note\n{"prompt": "a fox", "seed": 0, "status": "failed", "key": "1"}\n'),
        (ROWS, b'{"part": "vae", "date": "2026-11-29", "command": "python tools bench vae", "seconds": 1}\n{"part'),
        (REPORT, json.dumps({"clips": 1, "made": 1, "failed": 0, "workers": {}}).encode()),
        # A long list: only its beginning is looked at.
        (RESULTS, b'{"prompt": "a fox", "seed": 0, "status": "ok"}\n' * 100_000),
    ],
    ids=lambda value: repr(value[:30]) if isinstance(value, bytes) else None,
)
def test_a_file_of_the_same_kind_is_gone_on_with(tmp_path, kind, content):
    (tmp_path / "file").write_bytes(content)
    assert saving.problem_of_file(tmp_path / "file", "--out", kind) is None
