"""Help pages and texts: every node, both languages, with a picture, and nothing left untranslated."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from support.node_schemas import read_golden

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "js" / "docs"
NODE_IDS = list(read_golden())
CHINESE = re.compile("[\u4e00-\u9fff]")


def locale(language):
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def page(node_id, language):
    return (DOCS / node_id / f"{language}.md").read_text(encoding="utf-8")


def info_inputs(info):
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_other_languages_fall_back_to_english(node_id):
    """The editor asks for docs/<id>/<language>.md, then for docs/<id>.md; without the first it logs an error."""
    assert (DOCS / f"{node_id}.md").read_text(encoding="utf-8") == page(node_id, "en")


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("node_id", NODE_IDS)
def test_page_has_the_nodes_title_and_a_picture(node_id, language):
    text = page(node_id, language)
    assert text.splitlines()[0] == f"# {locale(language)[node_id]['display_name']}"
    # The editor resolves pictures against docs/, whatever the page's own folder is.
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert pictures == [f"{node_id}/{language}.jpg"]
    picture = DOCS / pictures[0]
    with Image.open(picture) as image:
        assert image.format == "JPEG"
        assert image.width >= 300 and image.height >= 100
    assert picture.stat().st_size < 120_000


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_pages_of_both_languages_have_the_same_parts(node_id):
    """Tables row by row, code blocks and names in code: what drifts apart when only one page is edited."""
    for pattern in (r"^\|", r"^```", r"^- "):
        counts = [len(re.findall(pattern, page(node_id, language), re.MULTILINE)) for language in ("en", "zh")]
        # Chinese has one more bullet where it says that prompts may be Chinese.
        extra = 1 if node_id == "LightX2VTextEncode" and pattern == r"^- " else 0
        assert counts[1] == counts[0] + extra, pattern


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_page_names_every_choice_it_explains(host, node_id):
    """A table row whose first cell is an input's name must be an input, called as the node shows it."""
    rows = re.findall(r"^\| ([a-z_]+) \|", page(node_id, "en"), re.MULTILINE)
    inputs = info_inputs(host.infos[node_id])
    choices = {str(choice) for _, options in inputs.values() for choice in options.get("options") or ()}
    shown = {name: locale("en")[node_id]["inputs"][name]["name"] for name in inputs}
    assert set(rows) <= set(shown.values()) | choices | {"input", "mode"}
    assert not set(re.findall(r"^\| ([^|]+) \|", page(node_id, "en"), re.MULTILINE)) & (
        set(inputs) - set(shown.values())
    )


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_a_chinese_page_calls_inputs_as_the_node_shows_them(host, node_id):
    inputs = info_inputs(host.infos[node_id])
    choices = {str(choice) for _, options in inputs.values() for choice in options.get("options") or ()}
    shown = {locale("zh")[node_id]["inputs"][name]["name"] for name in inputs}
    rows = {*re.findall(r"^\| ([^|]+) \|", page(node_id, "zh"), re.MULTILINE)}
    assert not rows & (inputs.keys() - shown - choices)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("node_id", NODE_IDS)
def test_tables_fit_a_narrow_side_bar(node_id, language):
    """What cannot be broken makes a table wider than the panel, which then scrolls sideways."""
    rows = re.findall(r"^\|.*$", page(node_id, language), re.MULTILINE)
    assert [word for row in rows for word in re.findall(r"[\w./%\\]{19,}", row, re.ASCII)] == []


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_chinese_covers_every_text(host, node_id):
    entry, info = locale("zh")[node_id], host.infos[node_id]
    assert entry["display_name"].startswith("LightX2V ")
    assert CHINESE.search(entry["description"])
    for name, (_, options) in info_inputs(info).items():
        texts = entry["inputs"][name]
        assert texts["name"] and CHINESE.search(texts["tooltip"]), name
        if "auto" in (options.get("options") or ()):
            assert texts["options"]["auto"] == "\u81ea\u52a8", name
    for index in range(len(info["output"])):
        assert CHINESE.search(entry["outputs"][str(index)]["tooltip"])


def test_one_choice_has_one_translation():
    """auto, on, off and the engines read the same on every node."""
    found = {}
    for entry in locale("zh").values():
        for texts in entry["inputs"].values():
            for choice, text in texts.get("options", {}).items():
                found.setdefault(choice, set()).add(text)
    assert not {choice: texts for choice, texts in found.items() if len(texts) > 1}


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_links_between_pages_use_titles_that_exist(node_id):
    """Bold node names in a Chinese page are display names of the Chinese editor."""
    titles = {entry["display_name"].removesuffix("\uff08Wan\uff09") for entry in locale("zh").values()}
    named = re.findall(r"\*\*(LightX2V [^*]+)\*\*", page(node_id, "zh"))
    assert set(named) <= titles
