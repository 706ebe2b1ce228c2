"""Choices as on another machine, while trial runs compute on the CPU."""

from dataclasses import replace

from lightx2v_pack.engine.backends import trials


def pretend_machine(monkeypatch, machine):
    """Let the facts be those of `machine`, and what fails its trial run here be added to them."""
    found = trials.find_machine

    def find_machine(device):
        return replace(machine, failed_trials={**machine.failed_trials, **found(device).failed_trials})

    monkeypatch.setattr(trials, "find_machine", find_machine)
