"""The net's comparison can fail: two folders of results that differ in one thing each."""

import pytest
import torch
from lightx2v_pack.tools.net import compare
from lightx2v_pack.tools.net.record import CannotRunError, Record

LATENTS = torch.linspace(-1, 1, 12).view(3, 4)


def write(folder, changes=None):
    """Write a side with a tensor, a text, an error and a skipped case; `changes` replaces cases, None drops one."""
    cases = {"latents/a": LATENTS, "frames/b": LATENTS.bfloat16(), "plan/c": {"sentence": "Fits.", "needs": [1, 2]}}
    record = Record(folder, [], {folder: "<out>"})
    for name, value in (cases | (changes or {})).items():
        if value is not None:
            record.case(name, lambda value=value: value)
    record.case("refusal/d", lambda: int(str(folder)))
    record.case("latents/e", cannot_run)
    return folder


def cannot_run():
    raise CannotRunError("needs a card")


def differences(tmp_path, changes):
    found = list(compare.compare(write(tmp_path / "old"), write(tmp_path / "new", changes)))
    assert len(found) <= 1
    return found[0] if found else None


def one_bit():
    changed = LATENTS.clone()
    changed.view(torch.int32)[1, 2] ^= 1
    return changed


def one_nan():
    changed = LATENTS.clone()
    changed[0, 1] = torch.nan
    return changed


def test_equal_sides_are_equal_wherever_they_lie(tmp_path):
    assert differences(tmp_path, {}) is None
    table, is_fine = compare.describe(tmp_path / "old", tmp_path / "new", [], limit=5)
    assert is_fine and "1 x skipped: needs a card" in table


def test_equal_nans_are_equal_and_zeros_of_two_signs_are_not(tmp_path):
    write(tmp_path / "old", {"latents/a": one_nan()})
    write(tmp_path / "new", {"latents/a": one_nan()})
    assert not list(compare.compare(tmp_path / "old", tmp_path / "new"))
    write(tmp_path / "old", {"latents/a": torch.zeros(2)})
    write(tmp_path / "new", {"latents/a": -torch.zeros(2)})
    assert [each.distance for each in compare.compare(tmp_path / "old", tmp_path / "new")] == [0.0]


@pytest.mark.parametrize(
    ("changes", "case", "words"),
    [
        ({"latents/a": one_bit()}, "latents/a", "8.3% of the values, by at most"),
        ({"latents/a": one_nan()}, "latents/a", "not finite: 0 -> 1"),
        ({"latents/a": LATENTS.view(4, 3)}, "latents/a", "(3, 4) torch.float32 -> (4, 3) torch.float32"),
        ({"frames/b": LATENTS}, "frames/b", "torch.bfloat16 -> (3, 4) torch.float32"),
        ({"latents/a": {"error": "ValueError: no"}}, "latents/a", "new: {'error': 'ValueError: no'}"),
        ({"frames/b": None}, "frames/b", "only the old side has it"),
        ({"frames/f": LATENTS}, "frames/f", "only the new side has it"),
        (
            {"plan/c": {"sentence": "It fits.", "needs": [1, 2]}},
            "plan/c",
            "sentence\n    old: Fits.\n    new: It fits.",
        ),
        ({"plan/c": {"sentence": "Fits.", "needs": [1, 3]}}, "plan/c", "needs[1]\n    old: 2\n    new: 3"),
        ({"plan/c": {"sentence": "Fits.", "needs": [1, 2.0]}}, "plan/c", "needs[1]\n    old: 2\n    new: 2.0"),
        ({"plan/c": {"needs": [1, 2]}}, "plan/c", "sentence\n    old: Fits.\n    new: (absent)"),
    ],
)
def test_one_difference_is_found_and_fails(changes, case, words, tmp_path):
    found = differences(tmp_path, changes)
    assert found.case == case and words in found.what
    table, is_fine = compare.describe(tmp_path / "old", tmp_path / "new", [], limit=5)
    assert not is_fine and words in table


@pytest.mark.parametrize(
    ("expected", "is_fine"),
    [
        ("latents/*:1e-6", True),
        ("latents/*", True),
        ("*", True),
        ("latents/*:1e-9", False),
        ("frames/*:1", False),
        ("latents/b", False),
    ],
)
def test_expected_differences_pass_within_their_limit_only(expected, is_fine, tmp_path):
    differences(tmp_path, {"latents/a": one_bit()})
    assert (
        compare.describe(tmp_path / "old", tmp_path / "new", [compare.Expected.parse(expected)], limit=5)[1] is is_fine
    )


def test_no_limit_covers_a_text_or_a_nan(tmp_path):
    expected = [compare.Expected.parse("*:1e9")]
    for changes in ({"latents/a": one_nan()}, {"plan/c": {"sentence": "It fits."}}):
        write(tmp_path / "old")
        write(tmp_path / "new", changes)
        assert not compare.describe(tmp_path / "old", tmp_path / "new", expected, limit=5)[1]


def test_only_the_cases_asked_for_are_run(tmp_path):
    record = Record(tmp_path, ["plan", "*=int8*"], {})
    for name in ("plan/1", "latents/precision=int8,x=1", "latents/precision=fp8"):
        record.case(name, lambda: 1)
    assert list(compare.record.read(tmp_path)) == ["plan/1", "latents/precision=int8,x=1"]


def test_a_side_that_computes_nothing_is_no_success(tmp_path):
    for side in ("old", "new"):
        write(tmp_path / side, {"latents/a": {"error": "no card"}})
    table, is_fine = compare.describe(tmp_path / "old", tmp_path / "new", [], limit=5)
    assert not is_fine and "NOTHING COMPARED of latents" in table and "1 x error: no card" in table
    for side in ("old", "new"):
        Record(tmp_path / side, [], {})
    assert compare.describe(tmp_path / "old", tmp_path / "new", [], limit=5)[1] is False
