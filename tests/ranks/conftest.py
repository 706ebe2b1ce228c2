"""Groups of ranks on the CPU, over gloo: one of each size for the whole suite, as starting one takes seconds."""

import os
import sys

import pytest
import torch
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.parallel import group as groups
from lightx2v_pack.engine.parallel import members as choosing


@pytest.fixture(autouse=True)
def is_asked_for(request):
    if not os.environ.get("LIGHTX2V_RANKS") and "always" not in request.keywords:
        pytest.skip("LIGHTX2V_RANKS is not set: several ranks, which takes minutes")


@pytest.fixture(scope="session", autouse=True)
def needs_linux():
    if not sys.platform.startswith("linux"):
        pytest.skip("ranks need Linux")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def kept():
    """Groups that are to go on from test to test."""
    kept = []
    yield kept
    for group in kept:
        group.close()


@pytest.fixture
def members():
    """members(count) -> that many ranks on the CPU."""
    return lambda count, **more: groups.Members(device="cpu", indices=tuple(range(count)), **more)


@pytest.fixture
def two_devices(monkeypatch):
    """Let the CPU be two devices that can be chosen."""
    monkeypatch.setattr(choosing, "devices_here", lambda device: (0, 1))


@pytest.fixture
def group(members, kept):
    """group(count) -> a running group of so many ranks, which goes on running."""

    def call(count):
        running = groups.group_of(members(count), Hooks())
        kept.append(running)
        return running

    return call
