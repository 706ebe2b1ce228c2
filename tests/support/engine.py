"""An engine's parts, built as a run builds them."""

import torch
from lightx2v_pack.engine import engines
from lightx2v_pack.engine.handles import TransformerHandle
from lightx2v_pack.engine.interfaces import Conditioning
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings
from lightx2v_pack.engine.stages.conditioning import of_rows

CPU = torch.device("cpu")


def open_transformer(files, settings=None, placement=None, device=CPU):
    """Return the unloaded transformer of a checkpoint's files, with kernels that were tried on the device."""
    wanted = TransformerHandle(files, settings or EngineSettings(), OffloadSettings()).wanted(device)
    backends = engines.confirm(wanted, device)
    return engines.build_transformer(files, backends, placement or Placement(mode="none"), device)


def conditioning_of(rows: torch.Tensor) -> Conditioning:
    """Return what one clip is made from: text rows [n, text_dim]."""
    (entry,) = of_rows(rows, rows.shape[-1])
    return entry
