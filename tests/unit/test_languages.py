"""Which language somebody is spoken to in: by a tag, by a header, by what the machine says of its user."""

import contextlib
import importlib
import logging
import os
import sys

import pytest
from lightx2v_pack.engine.sentences.languages import language_of, language_of_environment, language_of_header
from lightx2v_pack.engine.sentences.tools import Command
from lightx2v_pack.tools.headless.progress import Progress, logging_to
from support.chinese import CHINESE_CHARACTER


@pytest.mark.parametrize(
    ("tag", "language"),
    [
        ("zh", "zh"),
        ("zh-CN", "zh"),
        ("zh_CN", "zh"),
        ("zh_CN.UTF-8", "zh"),
        ("ZH-Hans-SG", "zh"),
        (" zh-TW ", "zh"),
        ("Chinese (Simplified)_China.936", "zh"),
        ("cmn-Hans", "zh"),
        ("en_GB.UTF-8@euro", "en"),
        ("English_United States.1252", "en"),
        ("zhu", None),
        ("fr-FR", None),
        ("C.UTF-8", None),
        ("*", None),
        ("", None),
    ],
)
def test_a_tag_is_read_in_every_spelling(tag, language):
    assert language_of(tag) == language


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("zh", "zh"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en;q=0.5, zh;q=0.9", "zh"),
        ("en, zh", "en"),
        ("zh, en", "zh"),
        ("fr, zh_CN ; q = 0.3", "zh"),
        ("fr;q=1, de;q=0.9", "en"),
        ("zh;q=0", "en"),
        ("zh;q=0, en;q=0.1", "en"),
        ("zh;q=much, en;q=0.1", "en"),
        ("zh;q=nan", "en"),
        ("zh;q=-1", "en"),
        ("en;q=1.0, zh;q=7", "en"),
        (",;q=1,;,zh;q=0.1", "zh"),
        ("*, zh;q=0.1", "zh"),
    ],
)
def test_a_header_says_what_is_liked_best(accepted, language):
    assert language_of_header(accepted) == language


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "en_US.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": ""}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LANGUAGE": "en"}, "en"),
        ({"LANG": "en_US.UTF-8", "LANGUAGE": "fr:zh_TW:en"}, "zh"),
        ({"LANG": "C.UTF-8", "LANGUAGE": "zh"}, "en"),
        ({"LANG": "POSIX"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
    ],
)
def test_the_machine_says_what_its_user_speaks(environment, language):
    assert language_of_environment(environment) == language


@pytest.fixture
def in_chinese(monkeypatch):
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    for name in ("LANGUAGE", "LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("generate_cli", [], "generate: "),
        ("generate_cli", ["a fox", "--steps", "x"], "generate.py: --steps"),
        ("headless.cli", ["gone.json"], "run_workflow: "),
        ("prompts_cli", [os.devnull], "run_prompts: "),
        ("doctor_cli", ["--check", "gone", "--models-dir", "gone"], "doctor: "),
        ("download_cli", ["get", "int8", "--dry-run", "--endpoint", "http://127.0.0.1:9"], "download: "),
    ],
)
def test_a_command_speaks_its_users_language(command, words, said, in_chinese, monkeypatch, capsys):
    run = importlib.import_module(f"lightx2v_pack.tools.{command}").main

    def complained():
        with contextlib.suppress(SystemExit):
            assert run(list(words))
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith(said)][-1]

    assert CHINESE_CHARACTER.search(complained())
    monkeypatch.setenv("LC_ALL", "en_US.UTF-8")
    assert not CHINESE_CHARACTER.search(complained())


def test_what_is_logged_is_said_in_the_users_language_where_it_is_shown(in_chinese, capsys, caplog):
    with logging_to(Progress(sys.stderr, quiet=False)):
        logging.getLogger("lightx2v_pack.test").warning("LightX2V: %s (%d)", Command.NO_PROMPT(), 3)
    shown = capsys.readouterr().err
    assert CHINESE_CHARACTER.search(shown) and shown.startswith("LightX2V: ") and shown.endswith(" (3)\n")
    assert caplog.records[-1].getMessage() == f"LightX2V: {Command.NO_PROMPT()} (3)"
