import pytest
import torch
from lightx2v_pack.engine.stages.conditioning import of_rows


def test_short_rows_are_zero_padded_and_counted():
    rows = torch.randn(1, 9, 64)
    (entry,) = of_rows(rows, 64)
    assert entry.text.shape == (512, 64) and entry.num_text == 9
    assert torch.equal(entry.text[:9], rows[0])
    assert not entry.text[9:].any()


def test_rows_without_a_batch_are_accepted():
    (entry,) = of_rows(torch.randn(512, 64), 64)
    assert entry.text.shape == (512, 64) and entry.num_text == 512


def test_every_entry_is_a_conditioning_of_its_own_with_the_records_of_all():
    entries = of_rows(torch.randn(3, 20, 64), 64, ["encoded"])
    assert [entry.num_text for entry in entries] == [20, 20, 20]
    assert all(entry.records == ("encoded",) for entry in entries)
    assert not torch.equal(entries[0].text, entries[1].text)


@pytest.mark.parametrize(("zeros", "count"), [(slice(5, None), 5), (slice(2, 4), 9), (slice(None), 0)])
def test_padding_is_what_follows_the_last_row_that_is_not_zero(zeros, count):
    rows = torch.randn(1, 9, 64)
    rows[:, zeros] = 0
    assert of_rows(rows, 64)[0].num_text == count


def test_prompts_behind_each_other_stay_whole():
    rows = torch.zeros(2, 1024, 64)
    rows[:, :5] = rows[:, 512:519] = 1
    for entry, given in zip(of_rows(rows, 64), rows, strict=True):
        assert torch.equal(entry.text, given) and entry.num_text == 519


@pytest.mark.parametrize(
    ("shape", "part"),
    [((1, 77, 768), "SD 1.5"), ((1, 77, 2048), "SDXL"), ((1, 512, 100), r"\[1, 512, 100\]"), ((64,), r"\[64\]")],
)
def test_conditioning_of_another_model_gets_a_sentence(shape, part):
    with pytest.raises(ValueError, match=rf"{part}.*"):
        of_rows(torch.zeros(shape), 4096)
    with pytest.raises(ValueError, match="CLIPLoader with type 'wan'"):
        of_rows(torch.zeros(shape), 4096)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_text_that_holds_no_numbers_is_named_before_it_makes_a_black_video(value):
    rows = torch.ones(1, 512, 64)
    rows[0, 3, 5] = value
    with pytest.raises(ValueError, match=r"Encode the prompt again.*text of the conditioning holds NaN or infinity"):
        of_rows(rows, 64)
