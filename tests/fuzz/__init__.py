"""Mutated files by seed: `python tests/fuzz/run.py`; a few hundred are in tests/unit/test_fuzz.py."""
