import logging

import pytest
import torch
from lightx2v_pack.engine.stages.conditioning import fit_rows


def test_short_rows_are_zero_padded():
    rows = torch.randn(1, 9, 64)
    fitted = fit_rows(rows, 64)
    assert fitted.shape == (1, 512, 64)
    assert torch.equal(fitted[:, :9], rows)
    assert not fitted[:, 9:].any()


def test_rows_without_a_batch_are_accepted():
    assert fit_rows(torch.randn(512, 64), 64).shape == (1, 512, 64)


def test_long_rows_are_cut_with_a_warning(caplog):
    rows = torch.randn(1, 2001, 64)
    with caplog.at_level(logging.WARNING):
        fitted = fit_rows(rows, 64)
    assert torch.equal(fitted, rows[:, :512])
    assert "2001 rows; the last 1489 are cut" in caplog.text


@pytest.mark.parametrize(
    ("shape", "part"),
    [((1, 77, 768), "SD 1.5"), ((1, 77, 2048), "SDXL"), ((1, 512, 100), r"\[1, 512, 100\]"), ((64,), r"\[64\]")],
)
def test_conditioning_of_another_model_gets_a_sentence(shape, part):
    with pytest.raises(ValueError, match=rf"{part}.*"):
        fit_rows(torch.zeros(shape), 4096)
    with pytest.raises(ValueError, match="CLIPLoader with type 'wan'"):
        fit_rows(torch.zeros(shape), 4096)
