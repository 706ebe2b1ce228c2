"""Slows the GPU down at one side, so that a missing wait shows."""

import torch
from lightx2v_pack.engine.offload.residence import FileHome, RamHome

# A tenth and a hundredth of a second of GPU time at about 1.7 GHz.
LONG_SLEEP, SHORT_SLEEP = 170_000_000, 17_000_000


def sleep_before_units(cycles, check_interrupt=lambda: None):
    """Return a `check_interrupt` that lets compute sleep: it is called before every unit, on compute's stream."""

    def check():
        check_interrupt()
        torch.cuda._sleep(cycles)

    return check


def delay_copies(monkeypatch, cycles):
    """Let the stream of copies sleep after each unit that is brought to the device, and so before the next one."""

    def delayed(copied):
        def slow(home):
            copied(home)
            torch.cuda._sleep(cycles)

        return slow

    for home in (RamHome, FileHome):
        monkeypatch.setattr(home, "copied", delayed(home.copied))
