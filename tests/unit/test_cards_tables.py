"""What README.md and pages in docs/ say of cards is what the pack's tables decide, and what was measured where."""

import json
import re
from pathlib import Path

import pytest
from lightx2v_pack.engine.backends.table import Machine
from lightx2v_pack.engine.panel.advice import rank_files
from lightx2v_pack.tools.cards import tables

ROOT = Path(__file__).resolve().parents[2]
CARDS = (ROOT / "docs" / "cards.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", tables.PAGES)
def test_the_tables_are_what_the_pack_decides(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert tables.with_tables(text, tables.PAGES[page]) == text, "run: python tools cards tables"
    assert len(re.findall(r"<!-- (files|choices|clips) -->\n\|", text)) == 1


def test_every_family_of_cards_says_how_it_is_known():
    known = {row[0]: row[1:] for row in rows_of(CARDS) if len(row) == 3}
    for family in tables.FAMILIES:
        right, fast = known[family.name]
        words = ("measured", "run as")
        assert right.startswith(words) and fast.startswith(("measured", "estimated"))
        assert fast.startswith("measured") == any(card in measured_cards() for card in family.examples), family.name


def rows_of(text):
    """Return the cells of every row of every table."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def measured_cards():
    files = (ROOT / "docs" / "measurements").glob("*/*.jsonl")
    return {json.loads(line).get("card") for file in files for line in file.read_text().splitlines()}


def test_the_table_of_files_is_the_answer_that_doctor_gives():
    page = {
        row[0]: row[1:] for row in rows_of((ROOT / "docs" / "models.md").read_text(encoding="utf-8")) if len(row) == 5
    }
    machine = Machine(capability=(8, 9), system="win32", torch="2.13.0", packages={"triton": "3.7.0"})
    best = rank_files(machine, "NVIDIA GeForce RTX 4060")[0]
    assert page["RTX 4060"][0] == best.variant.name == "int8"
    assert f"{best.step_seconds:.1f}" in page["RTX 4060"]


def test_no_page_offers_a_card_that_is_refused():
    for page in (
        "README.md",
        "README.zh.md",
        "docs/models.md",
        "docs/speed.md",
        *(f"example_workflows/{path.name}" for path in templates()),
    ):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert "RTX 20" not in text, page


def templates():
    return sorted((ROOT / "example_workflows").glob("*.json"))
