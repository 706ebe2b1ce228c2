"""What the panels say: every text is there in both languages, with the same holes; every one that is said exists. And
which nodes they follow."""

import re
from pathlib import Path

from support.node_schemas import read_golden

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


def test_the_plan_line_follows_every_node_that_says_how_a_loader_loads():
    graph, nodes = (JS / "graph.js").read_text(encoding="utf-8"), read_golden()
    watched = graph.split("export const WATCHED = [", 1)[1].split("]", 1)[0]
    names = {node for constant, node in re.findall(r'const (\w+) = "(\w+)";', graph) if f" {constant}," in watched}
    given = {each["type"] for name, node in nodes.items() if "Load" in name for each in node["inputs"]}
    own = {name for name, node in nodes.items() for each in node["outputs"] if each["type"] in given}
    assert own == {"LightX2VOffload", "LightX2VGPUs"} and own <= names
