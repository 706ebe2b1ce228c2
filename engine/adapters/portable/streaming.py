"""Weights for torch modules: modules stay on the meta device, and each call of a unit is given its weights.

Where weights rest and how they travel is adapters/streaming.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ...interfaces import Hooks
from ..streaming import (
    Conveyor,
    FileHome,
    Mapped,
    RamHome,
    Residence,
    Resident,
    Source,
    Streamed,
    TensorSpec,
    Unit,
    report_load,
)


class UnitRunner(nn.Module):
    """Stands in for a unit in the model and calls it with its weights."""

    def __init__(self, inner: nn.Module, index: int, conveyor: Conveyor) -> None:
        super().__init__()
        self.inner = inner
        self._index = index
        self._conveyor = conveyor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._conveyor.unit(self._index) as weights:
            return torch.func.functional_call(self.inner, weights, args, kwargs, tie_weights=False)


def settle(
    model: nn.Module,
    specs: Sequence[TensorSpec],
    unit_paths: Sequence[str],
    *,
    mode: str,
    device: torch.device,
    source: Source,
    pinned_limit_bytes: int | None,
    hooks: Hooks,
) -> Conveyor:
    """Give a model on the meta device its weights, and every unit its runner.

    Args:
        specs: all parameters of the model.
        unit_paths: paths of the modules that are units, in the order in which they run.
        mode: none | block | phase | disk. On a CPU the first three are the same: mapped from the file.
        pinned_limit_bytes: RAM to page-lock at most; None: as much as the system lets us.
        hooks: told of the progress, and asked before every unit.

    Returns:
        The conveyor that the units share; its residence is to be closed in the end.
    """
    units = [Unit(path, [spec for spec in specs if spec.name.startswith(f"{path}.")]) for path in unit_paths]
    in_units = {spec.name for unit in units for spec in unit.specs.values()}
    is_streamed = mode == "disk" or (mode != "none" and device.type != "cpu")
    _fill(model, [spec for spec in specs if spec.name not in in_units], device, source)
    if not is_streamed:
        for number, unit in enumerate(units):
            report_load(hooks, number, len(units))
            _fill(model, list(unit.specs.values()), device, source)
        residence: Residence = Resident()
    elif device.type == "cpu":
        residence = Mapped(units, source)
    elif mode == "disk":
        residence = Streamed(units, FileHome(units, source), device)
    else:
        residence = Streamed(units, RamHome(units, source, pinned_limit_bytes, hooks), device)
    report_load(hooks, len(units), len(units))
    conveyor = Conveyor(residence, device)
    for index, unit in enumerate(units):
        parent, _, name = unit.path.rpartition(".")
        setattr(model.get_submodule(parent), name, UnitRunner(model.get_submodule(unit.path), index, conveyor))
    return conveyor


def _fill(model: nn.Module, specs: Sequence[TensorSpec], device: torch.device, source: Source) -> None:
    for spec in specs:
        parent, _, name = spec.name.rpartition(".")
        parameter = nn.Parameter(source.read(spec).to(device), requires_grad=False)
        setattr(model.get_submodule(parent), name, parameter)
    source.close()
