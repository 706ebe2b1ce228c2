"""An engine's parts, built as a run builds them."""

from dataclasses import replace

import torch
from lightx2v_pack.engine import engines
from lightx2v_pack.engine.backends.choose import Wanted
from lightx2v_pack.engine.backends.table import LIGHTX2V_MATMUL_BACKENDS, MATMUL_BACKENDS, Choice
from lightx2v_pack.engine.interfaces import Conditioning
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.settings import EngineSettings
from lightx2v_pack.engine.stages.conditioning import of_rows

CPU = torch.device("cpu")


def open_transformer(files, settings=None, placement=None, device=CPU, *, matmul=None):
    """Return the unloaded transformer of a checkpoint's files, with kernels that were tried on the device.

    LightX2V's on a CPU too, which no run does.

    Args: matmul: name of the back end for 8-bit weights, tried or not; None is what the machine gets.
    """
    settings, architecture = settings or EngineSettings(), files.format.architecture
    wanted = Wanted(
        precision=files.format.precision,
        dim=architecture.dim,
        ffn_dim=architecture.ffn_dim,
        engine="lightx2v" if settings.engine == "lightx2v" else "portable",
        attention=settings.attention,
        fused_kernels=settings.compile,
    )
    backends = engines.confirm(wanted, device)
    if matmul is not None:
        rows = LIGHTX2V_MATMUL_BACKENDS if wanted.engine == "lightx2v" else MATMUL_BACKENDS
        row = next(row for row in rows if row.name == matmul and wanted.precision in row.dtypes)
        backends = replace(backends, matmul=Choice(task=backends.matmul.task, backend=row))
    return engines.build_transformer(files, backends, placement or Placement(mode="none"), device)


def conditioning_of(rows: torch.Tensor) -> Conditioning:
    """Return what one clip is made from: text rows [n, text_dim]."""
    (entry,) = of_rows(rows, rows.shape[-1])
    return entry


def with_another_image(whole: Conditioning) -> list[Conditioning]:
    """Return an image's conditioning without its rows, with these in another order, and without its mask."""
    no_mask = whole.image_latents.clone()
    no_mask[:4] = 0
    return [
        replace(whole, image_tokens=None),
        replace(whole, image_tokens=whole.image_tokens.flip(1)),
        replace(whole, image_latents=no_mask),
    ]
