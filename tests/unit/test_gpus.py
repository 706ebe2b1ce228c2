"""Several GPUs, without any: who has which rows, heads and columns, who is chosen, what is planned and said."""

import os
import re
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.engine.errors import UnsupportedHardwareError
from lightx2v_pack.engine.handles import TransformerHandle
from lightx2v_pack.engine.interfaces import Host
from lightx2v_pack.engine.memory.clip import Clip
from lightx2v_pack.engine.memory.needs import activations, sampling_need, weights_ram
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.offload.shared import SharedHome
from lightx2v_pack.engine.panel import doctor
from lightx2v_pack.engine.parallel import group as groups
from lightx2v_pack.engine.parallel import members as choosing
from lightx2v_pack.engine.parallel import room
from lightx2v_pack.engine.parallel.channel import Channel, ClosedError, Region
from lightx2v_pack.engine.parallel.links import Links
from lightx2v_pack.engine.parallel.split import (
    gain,
    length,
    most_rows,
    sent_bytes,
    split_evenly,
    split_rows,
    widest_part,
    with_halo,
)
from lightx2v_pack.engine.settings import EngineSettings, GpuSettings, OffloadSettings
from support.pretended_card import pretend_card
from support.wan_14b import choose_kernels, make_files, make_sizes

CUDA = torch.device("cuda", 0)
CLIP = Clip(width=832, height=480, num_frames=81)
needs_memfd = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux's shared memory")


@pytest.mark.parametrize("tokens", [1, 2, 127, 128, 129, 297, 1000, 32_760, 75_600])
@pytest.mark.parametrize("ranks", range(1, 9))
def test_every_token_is_of_one_rank_and_blocks_are_whole(tokens, ranks):
    if tokens < ranks:
        with pytest.raises(ValueError, match="Choose fewer GPUs, or a larger clip"):
            split_rows(tokens, ranks)
        return
    runs = split_rows(tokens, ranks)
    assert [index for run in runs for index in range(run.start, run.stop)] == list(range(tokens))
    assert all(length(run) > 0 for run in runs)
    if tokens >= 128 * ranks:
        assert all(run.stop % 128 == 0 for run in runs[:-1])
        assert max(map(length, runs)) - min(map(length, runs)) <= 256
    assert most_rows(tokens, ranks) == max(map(length, runs))


@pytest.mark.parametrize(
    ("heads", "ranks", "expected"), [(40, 2, [20, 20]), (40, 3, [14, 13, 13]), (2, 4, [1, 1, 0, 0])]
)
def test_heads_may_be_uneven(heads, ranks, expected):
    assert list(map(length, split_evenly(heads, ranks))) == expected


def test_columns_come_with_what_their_frames_depend_on():
    assert with_halo(slice(0, 52), 104) == slice(0, 59)
    assert with_halo(slice(52, 104), 104) == slice(45, 104)
    assert (widest_part(104, 2), widest_part(104, 4), widest_part(104, 8)) == (59, 40, 27)


def test_what_is_sent_and_gained():
    assert sent_bytes(32_760, 5120, 2) == pytest.approx(335.5e6, rel=1e-3)
    assert sent_bytes(32_760, 5120, 8) == pytest.approx(146.8e6, rel=1e-3)
    fast = gain(32_760, 5120, 2, block_seconds=43.5e-3, link_bytes=330e9, serial_share=0)
    slow = gain(32_760, 5120, 2, block_seconds=150e-3, link_bytes=11e9, serial_share=0)
    assert (round(fast.speedup, 2), round(fast.hidden, 2)) == (1.91, 1.95)
    assert (round(slow.speedup, 2), round(slow.hidden, 2)) == (1.42, 1.66)


@pytest.mark.parametrize("gpus", ["", "0", "two", "-1", "0,", "1 2", "0;1", "1.5"])
def test_what_names_no_gpus_is_refused(gpus):
    with pytest.raises(ValueError, match="expected auto, how many GPUs"):
        GpuSettings(gpus=gpus)


@pytest.fixture
def cards(monkeypatch):
    """cards(count, kinds) -> pretend so many; of the same compute capability, or of these."""

    def call(count, capabilities=None):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (capabilities or [(9, 0)] * count)[i])
        monkeypatch.setattr(groups.exchange, "is_available", lambda backend: True)
        monkeypatch.setattr(groups.sys, "platform", "linux")

    return call


@pytest.mark.parametrize(
    ("gpus", "count", "expected"),
    [
        ("1", 4, None),
        ("2", 4, (0, 1)),
        ("4", 4, (0, 1, 2, 3)),
        ("auto", 4, (0, 1, 2, 3)),
        ("auto", 1, None),
        ("auto", 9, tuple(range(8))),
        ("2,0", 4, (0, 2)),
        ("1,3", 4, (1, 3)),
    ],
)
def test_which_cards_compute(cards, gpus, count, expected):
    cards(count)
    members = choosing.choose_members(GpuSettings(gpus=gpus), CUDA)
    assert (members and members.indices) == expected


@pytest.mark.parametrize(("gpus", "count"), [("2", 1), ("0,4", 4), ("1,1", 4)])
def test_cards_that_are_not_there_are_named(cards, gpus, count, monkeypatch):
    cards(count)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UnsupportedHardwareError) as caught:
        choosing.choose_members(GpuSettings(gpus=gpus), CUDA)
    assert f"it is {gpus!r}, and this process sees" in str(caught.value) and "--cuda-device" in str(caught.value)


def test_cards_of_two_kinds_are_refused_by_name_and_passed_over_by_auto(cards):
    cards(2, [(8, 9), (12, 0)])
    with pytest.raises(UnsupportedHardwareError, match=r"GPU 0 \(Card 0\) and GPU 1 \(Card 1\) have not the same"):
        choosing.choose_members(GpuSettings(gpus="2"), CUDA)
    assert choosing.choose_members(GpuSettings(gpus="auto"), CUDA) is None


@pytest.mark.parametrize("gpus", ["2", "auto"])
def test_windows_is_told_what_can_be_done(cards, gpus, monkeypatch, caplog):
    cards(2)
    monkeypatch.setattr(groups.sys, "platform", "win32")
    if gpus == "auto":
        caplog.set_level("INFO")
        assert choosing.choose_members(GpuSettings(gpus=gpus), CUDA) is None
        assert "one GPU computes" in caplog.text and "WSL2" in caplog.text
        return
    with pytest.raises(UnsupportedHardwareError, match=r"WSL2.*docs/several-gpus\.md"):
        choosing.choose_members(GpuSettings(gpus=gpus), CUDA)


def test_a_plan_counts_less_of_the_clip_and_the_weights_once():
    one = make_sizes(CLIP, choose_kernels("fp8"))
    two, four = replace(one, ranks=2), replace(one, ranks=4)
    assert activations(one) > activations(two) > activations(four) > activations(one) / 4
    streamed = Placement(mode="block")
    assert weights_ram(one.weights, streamed, 4) == weights_ram(one.weights, streamed)
    needs = [sampling_need(each, streamed, on_gpu=True) for each in (one, two, four)]
    assert needs[1].vram < needs[0].vram
    # A process more costs about one GiB, and not the weights again.
    assert 0 < needs[1].ram - needs[0].ram < 3 * GIB and 0 < needs[2].ram - needs[1].ram < 3 * GIB


@pytest.fixture
def two_cards(cards, monkeypatch):
    """two_cards(GiB in all of each, GiB free or None where no rank runs yet) -> what a run plans with, for gpus 2."""

    def call(totals, free=None):
        cards(2)
        pretend_card(monkeypatch, "Card", (8, 9), totals[0], totals[0] - 1, packages={"triton": "3.6.0"})
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: f"Card {index}")
        sizes = [SimpleNamespace(name="Card", total_memory=each * GIB, major=8, minor=9) for each in totals]
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda device: sizes[getattr(device, "index", device) or 0]
        )
        found = [{"free": int(each * GIB), "reserved": 0, "total": 0} for each in free or ()]
        monkeypatch.setattr(
            room, "running_group", lambda members: SimpleNamespace(budgets=lambda: found) if found else None
        )
        handle = TransformerHandle(make_files("fp8"), EngineSettings(), OffloadSettings(), GpuSettings(gpus="2"))
        return handle.room(Host()).plan_run(handle.sizes_now(CLIP, CUDA))

    return call


@pytest.mark.parametrize(
    ("totals", "free"), [((12, 24), (11.0, 22.5)), ((24, 12), (22.5, 11.0)), ((12, 24), None), ((24, 12), None)]
)
def test_each_card_s_own_memory_decides_what_rests_on_it(two_cards, totals, free):
    """The second one's is known before any rank runs too, at least by how much it has in all."""
    plan = two_cards(totals, free)
    assert [rank.device for rank in plan.ranks] == ["GPU 0 (Card 0)", "GPU 1 (Card 1)"]
    counts = [rank.placement.resident_blocks for rank in plan.ranks]
    assert plan.placement.mode == "block" and plan.placement.resident_blocks == min(counts)
    assert (counts[0] < counts[1]) is (totals[0] < totals[1])
    for total, rank in zip(totals, plan.ranks, strict=True):
        assert rank.sampled < rank.budget.vram <= (total - 1) * GIB
    assert f"GPU 1 (Card 1): block, {counts[1]} of 40 blocks resident" in str(plan)


def test_one_card_s_share_changes_without_the_other_s(two_cards):
    first, second = two_cards((12, 24), (11.0, 22.5)), two_cards((12, 24), (11.0, 15.0))
    assert first.placement == second.placement and first.placements != second.placements


@needs_memfd
def test_messages_and_memory_come_across():
    one, two = map(Channel, socket.socketpair(socket.AF_UNIX))
    region = Region.new(8192)
    region.tensor(8192).fill_(7)
    one.send(("hello", {"a": torch.arange(3)}), [region])
    (name, value), (arrived,) = two.receive()
    assert name == "hello" and value["a"].tolist() == [0, 1, 2]
    mine = arrived.tensor(8192)
    assert mine.eq(7).all()
    mine[0] = 1
    assert region.tensor(1).item() == 1
    two.close()
    with pytest.raises(ClosedError):
        one.receive()
    with pytest.raises(ClosedError):
        one.send("anybody there")


@needs_memfd
def test_streamed_weights_are_in_memory_once_and_each_rank_fills_its_share():
    region, met = Region.new(), []
    homes = [
        SharedHome(Region(os.dup(region.descriptor)), Placement(mode="block"), rank, 2, met.append) for rank in (0, 1)
    ]
    sizes = [5000, 4096, 1]
    buffers = [home.buffers(sizes) for home in homes]
    assert [[home.is_mine(index) for index in range(3)] for home in homes] == [
        [True, False, True],
        [False, True, False],
    ]
    for index in range(3):
        mine, other = (each[index].tensor for each in buffers)
        assert mine.numel() == other.numel() >= sizes[index] and mine.data_ptr() % 4096 == 0
        mine.fill_(index + 1)
        assert other.eq(index + 1).all()
    assert os.fstat(region.descriptor).st_size == 4 * 4096
    with pytest.raises(KeyError), homes[0].meeting():
        raise KeyError
    with homes[1].meeting():
        pass
    assert met == [False, True]


NVLINK = Links(
    names=("NVIDIA H100", "NVIDIA H100"), peers=True, nccl="2.27.3", has_memory=True, shared_bytes=8 * GIB,
    system="linux", speeds=(371e9, 372e9),
)  # fmt: skip


def rows(links):
    return {item.name: (item.state, item.found, item.remedy) for item in doctor._examine_gpus(links)}


def test_doctor_says_what_connects_the_gpus():
    found = rows(NVLINK)
    assert found["GPUs"] == ("ok", "2 x NVIDIA H100", "")
    assert found["Between GPUs"] == ("ok", "directly (P2P)", "")
    assert found["Link speed"][1].startswith("371 GB/s")
    assert found["Shared memory"][0] == "ok"
    assert rows(None) == {}


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"system": "win32"}, "NCCL", "WSL2"),
        ({"nccl": ""}, "NCCL", "Install the CUDA build"),
        ({"peers": False}, "Between GPUs", "through the RAM"),
        ({"peers": False, "shared_bytes": 64 * 2**20}, "Shared memory", "--shm-size"),
        ({"names": ("RTX 4090", "RTX 3090")}, "GPUs", "of one kind"),
    ],
)
def test_doctor_warns_of_what_is_in_the_way(change, name, words):
    state, *texts = rows(replace(NVLINK, **change))[name]
    assert state == "warn" and words in " ".join(texts)


SECONDS = {
    ("H100", "832x480"): 1.77, ("H100", "1280x720"): 7.41, ("RTX 4090", "832x480"): 3.95,
    ("RTX 4090", "1280x720"): 14.6, ("RTX 3090", "832x480"): 9.16, ("RTX 5090", "832x480"): 3.11,
}  # fmt: skip


def test_the_page_has_what_the_formula_gives():
    page = (Path(__file__).resolve().parents[2] / "docs" / "several-gpus.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| ([\w ]+), .* (\d+) GB/s \| (\d+x\d+) \| (.*) \|$", page, re.MULTILINE)
    assert len(found) == len(SECONDS)
    for card, rate, size, figures in found:
        width, height = map(int, size.split("x"))
        tokens = Clip(width=width, height=height, num_frames=81).tokens
        given = {"block_seconds": SECONDS[card, size] / 40, "link_bytes": int(rate) * 1e9}
        gains = [gain(tokens, 5120, ranks, **given) for ranks in (2, 4, 8)]
        assert figures == " | ".join(f"{each.speedup:.2f} to {each.hidden:.2f}" for each in gains)
