"""A few mutated files of every kind; thousands are read by `python tests/fuzz/run.py`."""

import pytest
from fuzz.cases import KINDS, run_case


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_end_in_a_sentence(tmp_path, kind):
    for seed in range(10):
        folder = tmp_path / str(seed)
        folder.mkdir()
        error = run_case(kind, seed, folder)
        if error is not None:
            raise AssertionError(f"{kind}, seed {seed}") from error
