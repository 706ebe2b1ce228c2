"""What the panels say: every text is there in both languages, with the same holes; every one that is said exists."""

import re
from pathlib import Path

JS = Path(__file__).resolve().parents[2] / "js"
SOURCE = (JS / "texts.js").read_text(encoding="utf-8")
CHINESE = re.compile("[\u4e00-\u9fff]")


def texts(language):
    block = SOURCE.split(f"    {language}: {{\n", 1)[1].split("    },\n", 1)[0]
    return dict(re.findall(r'^        (\w+): "((?:[^"\\]|\\.)*)",$', block, re.MULTILINE))


def holes(text):
    return sorted(re.findall(r"\{(\w+)\}", text))


def test_both_languages_say_the_same():
    english, chinese = texts("en"), texts("zh")
    assert english and english.keys() == chinese.keys()
    for name, text in english.items():
        assert holes(text) == holes(chinese[name]), name
        words = re.sub(r"\{\w+\}|LoRA|GiB|GB|MB|Markdown|JSON|VRAM|RAM|fps|\bof\b|[\W\d]", "", text)
        assert not words or CHINESE.search(chinese[name]), name


def test_every_text_that_is_said_exists_and_every_text_is_said():
    code = {path.name: path.read_text(encoding="utf-8") for path in JS.glob("*.js") if path.name != "texts.js"}
    said = {name for text in code.values() for name in re.findall(r'say\("(\w+)"', text)}
    assert said <= texts("en").keys()
    # Names that are put together: say(`basis_${...}`), or chosen by a condition.
    loose = {name for text in code.values() for name in re.findall(r'"(\w+)"', text)}
    begun = {name for text in code.values() for name in re.findall(r"[`](\w+_)\$\{", text)}
    unused = {name for name in texts("en").keys() - said - loose if not any(name.startswith(start) for start in begun)}
    assert not unused


def test_panels_write_no_words_of_their_own():
    """A text between quotes that a panel shows goes through say()."""
    for path in JS.glob("*.js"):
        if path.name == "texts.js":
            continue
        text = path.read_text(encoding="utf-8")
        shown = re.findall(r'(?:button|muted|copyButton|headline)\((?:[\w.]+, )?"([A-Z][^"]* [^"]*)"', text)
        assert not shown, path.name
