"""README.md and README.zh.md say the same: chapters, commands, links, rows and figures are those of one page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGLISH, CHINESE = "README.md", "README.zh.md"
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in (ENGLISH, CHINESE)}


def headings(text):
    return [len(marks) for marks in re.findall(r"^(#+) ", without_code(text), re.M)]


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def commands(text):
    """Return the code blocks, and what stands between backticks, without the comments."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    return [re.sub(r" *# .*", "", block) for block in blocks], sorted(re.findall(r"`([^`\n]+)`", without_code(text)))


def links(text):
    """Return where links lead, but for the line that leads to the other language."""
    found = re.findall(r"\]\(([^)]+)\)", text)
    return sorted(each for each in found if each not in PAGES)


def rows(text):
    return [line.count("|") for line in text.splitlines() if line.startswith("|")]


def figures(text):
    """Return the numbers of the prose; that of a table that is written by a tool is tested with it."""
    prose = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", text, flags=re.S)
    return sorted(re.findall(r"\d[\d.,x]*\d|\d", re.sub(r"\]\([^)]*\)", "]", prose)))


@pytest.mark.parametrize("part", [headings, commands, links, rows, figures])
def test_both_readmes_have_the_same(part):
    assert part(PAGES[ENGLISH]) == part(PAGES[CHINESE])
    assert part(PAGES[ENGLISH])


def test_each_leads_to_the_other_in_its_first_lines():
    for name, other in ((ENGLISH, CHINESE), (CHINESE, ENGLISH)):
        assert f"]({other})" in "".join(PAGES[name].splitlines()[:4])


def test_every_line_of_the_chinese_one_is_chinese():
    prose = without_code(PAGES[CHINESE])
    paragraphs = [each for each in re.split(r"\n\n|\n(?=[|#-])", prose) if re.search("[a-z]{3,}.* [a-z]{3,}", each)]
    assert paragraphs
    for each in paragraphs:
        assert re.search("[\u4e00-\u9fff]", each) or each.startswith(("# ", "<!--")), each


@pytest.mark.parametrize("name", PAGES)
def test_links_within_the_repository_lead_somewhere(name):
    inside = [link.partition("#")[0] for link in links(PAGES[name]) if "://" not in link]
    assert inside and all((ROOT / link).exists() for link in inside)
