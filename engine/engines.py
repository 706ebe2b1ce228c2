"""Which engine runs: one build function per interface, portable or LightX2V."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from . import system
from .adapters.lightx2v import config as lightx2v_config
from .backends import table as support
from .backends.block_ops import TASK as BLOCK_TASK
from .backends.trials import after_trials, find_machine
from .checkpoints.files import TransformerFiles
from .errors import MissingDependencyError, UnsupportedHardwareError
from .interfaces import TextEncoder, Transformer, VideoDecoder
from .kernels.attention import may_run_in_place
from .memory.plan import Placement
from .settings import EngineSettings

logger = logging.getLogger(__name__)

_told: set[str] = set()


def choose_engine(wanted: str) -> str:
    """Return "lightx2v" or "portable" for what the user chose.

    "auto" is LightX2V where it is importable and there is a CUDA device, else portable; why not
    LightX2V is logged once.

    Raises:
        MissingDependencyError: "lightx2v" was chosen and is not installed.
        UnsupportedHardwareError: "lightx2v" was chosen and there is no CUDA device.
    """
    if wanted == "portable":
        return wanted
    from .adapters.lightx2v import bootstrap

    problem = bootstrap.unavailable_reason()
    has_gpu = system.compute_device().type == "cuda"
    if has_gpu and problem is None:
        return "lightx2v"
    if wanted == "auto":
        reason = problem if has_gpu else "no CUDA device"
        if reason not in _told:
            _told.add(str(reason))
            logger.info("LightX2V: using the portable engine (%s).", reason)
        return "portable"
    if problem is not None:
        raise MissingDependencyError(f"engine is 'lightx2v', but {problem} Or set engine to 'auto'.")
    raise UnsupportedHardwareError(
        "engine is 'lightx2v', but no CUDA device was found. LightX2V needs one; set engine to 'auto' or 'portable'."
    )


@dataclass(frozen=True, kw_only=True)
class Backends:
    """What a run will compute with."""

    engine: str
    attention: support.Choice
    matmul: support.Choice | None
    """None with BF16 weights."""
    blocks: support.Choice | None
    """None for LightX2V's own block compute, which `compile` off stands for on its engine."""
    is_in_place: bool
    """Whether the attention is expected to overwrite q, k and v, see kernels/attention.py."""

    @property
    def path(self) -> str:
        """Whose activations these are, see memory/activations.py."""
        return f"{self.engine}_own" if self.blocks is None else self.engine

    @property
    def attention_memory(self) -> str:
        """Name of the attention's row in memory/activations.py."""
        return f"{self.attention.name}_in_place" if self.is_in_place else self.attention.name

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(str(choice) for choice in (self.attention, self.matmul, self.blocks) if choice)


def choose_backends(scheme: str, settings: EngineSettings) -> Backends:
    """Return what a run will choose for weights of a scheme (fp8 | int8 | bf16); its trial runs may say no.

    What they said in an earlier run of this process is known here.

    Raises:
        MissingDependencyError, UnsupportedHardwareError: the settings name what cannot run here.
    """
    engine = choose_engine(settings.engine)
    device = system.compute_device()
    machine = find_machine(device)
    blocks: support.Choice | None = None
    if engine != "lightx2v" or settings.compile != "off":
        among = ("torch",) if settings.compile == "off" else None
        tried = after_trials(machine, BLOCK_TASK, support.BLOCK_BACKENDS, device)
        blocks = support.choose_backend("blocks", support.BLOCK_BACKENDS, "auto", tried, dtype="bf16", among=among)
    is_fused = blocks is not None and blocks.name == "triton"
    rows = support.attention_backends(settings.attention, is_fused=is_fused)
    tried = after_trials(machine, "attention", rows, device)
    attention = support.choose_backend("attention", rows, settings.attention, tried, dtype="bf16")
    return Backends(
        engine=engine,
        attention=attention,
        matmul=None if scheme == "bf16" else _choose_matmul(scheme, blocks, machine, device),
        blocks=blocks,
        is_in_place=is_fused and may_run_in_place(attention.name, device),
    )


def _choose_matmul(
    scheme: str, blocks: support.Choice | None, machine: support.Machine, device: torch.device
) -> support.Choice:
    task = f"{scheme} matmul"
    table: Sequence[support.Backend] = support.MATMUL_BACKENDS
    if blocks is None:
        table = lightx2v_config.MATMUL_BACKENDS
        packages = {row.package: "" for row in table if row.package and importlib.util.find_spec(row.package)}
        machine = replace(machine, packages={**machine.packages, **packages})
    elif blocks.name != "triton":
        table = [row for row in table if row.package != "triton"]
    return support.choose_backend(task, table, "auto", after_trials(machine, task, table, device), dtype=scheme)


def build_transformer(files: TransformerFiles, settings: EngineSettings, placement: Placement) -> Transformer:
    """Return an unloaded transformer for a checkpoint.

    Args:
        files: the checkpoint.
        settings: engine, attention, compile.
        placement: where its weights rest.
    """
    if choose_engine(settings.engine) == "lightx2v":
        from .adapters.lightx2v.transformer import LightX2VTransformer

        return LightX2VTransformer(files, settings, placement)
    from .wan.transformer import PortableTransformer

    return PortableTransformer(files, settings, placement)


def build_decoder(file: Path, engine: str) -> VideoDecoder:
    """Return an unloaded VAE decoder for a file; "auto" is the portable one, which takes a third of LightX2V's time.

    Raises:
        MissingDependencyError, UnsupportedHardwareError: "lightx2v" was chosen and cannot run here.
    """
    if engine == "lightx2v":
        choose_engine(engine)  # raises where it cannot run
        from .adapters.lightx2v.vae import LightX2VVideoDecoder

        return LightX2VVideoDecoder(file)
    from .wan.vae import PortableVideoDecoder

    return PortableVideoDecoder(file)


def build_text_encoder(file: Path, tokenizer: Path | None) -> TextEncoder:
    """Return an unloaded text encoder; T5 always runs on the portable engine (LightX2V cannot on a CPU)."""
    from .umt5.encoder import PortableTextEncoder

    return PortableTextEncoder(file, tokenizer)
