"""Choices as on another machine, while trial runs compute on the CPU."""

from lightx2v_pack.engine.backends import trials


def pretend_machine(monkeypatch, machine):
    """Let the facts be those of `machine`, and what fails its trial run here be added to them."""
    monkeypatch.setattr(trials, "find_facts", lambda device: machine)
