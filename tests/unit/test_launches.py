"""One launch of an attention stays well under the two seconds that Windows gives a display card."""

import pytest
import torch
from lightx2v_pack.engine.backends.table import ATTENTION_BACKENDS
from lightx2v_pack.engine.kernels import launches, ops_torch
from lightx2v_pack.engine.kernels.attention import KERNELS, InParts, Normed
from lightx2v_pack.engine.kernels.ops import Rotary
from lightx2v_pack.engine.panel.speed import CARDS
from support.tensors import normal

TOKENS_720P = 75_600
# Multiprocessors. Source: NVIDIA's architecture papers of GA102, Ada and RTX Blackwell.
PROCESSORS = {
    "RTX 3060": 28, "RTX 3070": 46, "RTX 3090": 82, "RTX 4060": 24, "RTX 4060 Ti": 34, "RTX 4090": 128,
    "RTX 5060 Ti": 36, "RTX 5090": 170,
}  # fmt: skip


@pytest.mark.parametrize("card", PROCESSORS)
@pytest.mark.parametrize("row", ATTENTION_BACKENDS, ids=lambda row: row.name)
def test_a_launch_takes_half_a_second_by_the_tables_rates(card, row):
    heads = min(40, launches.heads_a_launch(TOKENS_720P, 128, row.unit, PROCESSORS[card]))
    rate = CARDS[card].of(row.unit) * row.shares.get("win32", row.share) * 1e12
    seconds = heads * 4 * TOKENS_720P**2 * 128 / rate
    assert seconds < 0.6
    # And a card is not kept from its work by many small launches.
    assert heads >= 40 or seconds > 0.1


@pytest.mark.parametrize(("heads", "most"), [(40, 40), (40, 1), (40, 7), (3, 2), (1, 5)])
def test_every_head_is_in_one_launch(heads, most):
    parts = launches.split_heads(heads, most)
    assert [head for part in parts for head in range(heads)[part]] == list(range(heads))
    assert max(part.stop - part.start for part in parts) <= most
    assert len(parts) == -(-heads // most)


@pytest.mark.parametrize("tokens", [1, 65, 300])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_parts_are_bit_for_bit_the_whole(tokens, most):
    def problem():
        q, k, v = (normal(tokens, 5, 128, seed=seed).bfloat16() for seed in range(3))
        angles = normal(tokens, 64, seed=4)
        weights = 1 + normal(2, 640, seed=3).bfloat16() / 4
        return q, k, v, (weights[0], weights[1]), 1e-6, Rotary(angles.cos(), angles.sin())

    whole = Normed(ops_torch, KERNELS["sdpa"])
    parts = InParts(whole, lambda v: launches.split_heads(5, most))
    given = problem()
    found = parts(*given)
    assert torch.equal(found, whole(*problem()))
    assert found.data_ptr() == given[2].data_ptr(), "no memory beside v's"


def test_launches_are_split_on_windows_only_and_only_for_display_cards(monkeypatch):
    class Values:
        """v [N, H, D] on a card that is not here."""

        shape = (TOKENS_720P, 40, 128)
        device = torch.device("cuda", 0)

    capability = [(8, 6)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: type("Card", (), {"multi_processor_count": 28})
    )

    def count(system, unit):
        monkeypatch.setattr(launches, "sys", type("System", (), {"platform": system}))
        launches.has_display.cache_clear()
        return len(launches.launches_for(Values(), unit))

    assert count("linux", "bf16") == 1
    assert count("win32", "bf16") == 40 and count("win32", "int8") == 6
    for capability[0] in ((8, 0), (9, 0), (10, 0)):
        assert count("win32", "bf16") == 1
    launches.has_display.cache_clear()
    assert len(launches.launches_for(torch.zeros(8, 3, 128), "bf16")) == 1
