"""LightX2V's own sequence parallelism, in all its options, on one model that is loaded once: what runs in each rank.

`torchrun` starts the ranks, as LightX2V's own scripts do. Found through LIGHTX2V_DIR. A way that does not work here,
as its kernels are not installed, is a row that says why. Source of the options: LightX2V
lightx2v/common/ops/attn/{ulysses_attn,ring_attn}.py and models/networks/wan/infer/transformer_infer.py.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import pack, weights
from .harness import TOOLS, Bench, Row, parse_size, peaks, synchronize, timed, wait_for_turn
from .peer import Peer, make_noise, make_text
from .peer_lightx2v import configure, has

# What a way that cannot be had here raises, on every rank alike.
_CANNOT = (ImportError, ValueError, TypeError, AttributeError, RuntimeError)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One setting of LightX2V's options; the fields are its `seq_p_` ones."""

    attn_type: str = "ulysses"
    a2a_backend: str = "torch"
    prepost_backend: str = "torch"
    tensor_fusion: bool = False
    quant_scheme: str | None = None
    head_parallel: bool = False

    @property
    def name(self) -> str:
        """The type and what is not its default, such as ulysses+fusion+triton+fp8."""
        parts = {
            self.attn_type: True,
            "round-robin": self.a2a_backend == "round_robin",
            "fusion": self.tensor_fusion,
            "triton": self.prepost_backend == "triton",
            "fp8": self.quant_scheme == "fp8",
            "heads": self.head_parallel,
        }
        return "+".join(name for name, is_set in parts.items() if is_set)


def _ways() -> Iterator[Way]:
    """Yield what goes together."""
    flags = (False, True)
    for a2a, prepost, fusion, quant, heads in itertools.product(
        ("torch", "round_robin"), ("torch", "triton"), flags, (None, "fp8"), flags
    ):
        if (prepost == "torch" or fusion) and not (heads and a2a == "round_robin"):
            yield Way(
                a2a_backend=a2a, prepost_backend=prepost, tensor_fusion=fusion, quant_scheme=quant, head_parallel=heads
            )
    for fusion, quant in itertools.product(flags, (None, "fp8")):
        yield Way(attn_type="ring", tensor_fusion=fusion, quant_scheme=quant)


WAYS = {way.name: way for way in _ways()}
ALONE = "one GPU"


def run_child(bench: Bench, size: str, count: int) -> None:
    """Run this case in so many ranks: start them in place of this process, or be one of them."""
    if count > 1 and "RANK" not in os.environ:
        wait_for_turn()
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        os.execv(sys.executable, [sys.executable, *torchrun, str(TOOLS), "bench", bench.name, *bench.words])
    sys.path.append(os.environ["LIGHTX2V_DIR"])
    pack.bootstrap.import_lightx2v()
    if count == 1:
        wait_for_turn()
    bench.options.width, bench.options.height = parse_size(size)
    measure(bench, count)
    # Some threads and destructors of it take seconds, or hang.
    sys.stdout.flush()
    os._exit(0)


@torch.inference_mode()
def measure(bench: Bench, count: int) -> None:
    """Sample in every way that was asked for; the first rank writes the rows as they come.

    Args: count: ranks, of which this process is one.
    """
    rank = int(os.environ.get("RANK", 0))
    if torch.cuda.is_available():
        # Before anything else, so that nothing of this rank is on the first one's card.
        torch.cuda.set_device(rank)
    device = bench.device
    path = weights.ensure_transformer(bench.folder, bench.options, bench.options.precision)
    config = configure(_peer(bench), bench, path)
    if count > 1:
        _join(config, count)
    model, scheduler = _load(path, config, device)
    rows: list[Row] = []
    for name in [ALONE] if count == 1 else bench.options.lightx2v:
        row: Row = {"way": f"{name}, compiled" if bench.options.lightx2v_compile else name}
        if count > 1:
            _choose(model, WAYS[name])
        try:
            row |= _sample(bench, model, scheduler, device, is_first=rank == 0)
        except _CANNOT as error:
            row["problem"] = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        rows.append(row | {"attention": config["self_attn_1_type"], "compute": config["dit_quant_scheme"]})
        if rank == 0:
            bench.options.row.write_text(json.dumps({"rows": rows}))


def _peer(bench: Bench) -> Peer:
    options: dict[str, Any] = {"compile": bench.options.lightx2v_compile}
    options |= {"attention": "sage_attn2"} if has("sageattention") else {}
    return Peer(title="LightX2V", runner="lightx2v", precision=bench.options.precision, options=options)


def _join(config: dict[str, Any], count: int) -> None:
    """Join the other ranks, as LightX2V does."""
    import torch.distributed as dist
    from lightx2v.utils.set_config import set_parallel_config

    config["parallel"] = {"seq_p_size": count, "seq_p_attn_type": "ulysses"}
    if torch.cuda.is_available():
        from lightx2v_platform.base.nvidia import CudaDevice

        CudaDevice.init_parallel_env()
    else:
        dist.init_process_group("gloo")
    set_parallel_config(config)


def _load(path: Path, config: dict[str, Any], device: torch.device) -> tuple[Any, Any]:
    from lightx2v.models.networks.wan.distill_model import WanDistillModel
    from lightx2v.models.schedulers.wan.step_distill.scheduler import WanStepDistillScheduler

    model = WanDistillModel(str(path), config, device)
    scheduler = WanStepDistillScheduler(config)
    model.set_scheduler(scheduler)
    return model, scheduler


def _choose(model: Any, way: Way) -> None:
    """Let a loaded model compute in another way."""
    from lightx2v.utils.registry_factory import ATTN_WEIGHT_REGISTER

    infer = model.transformer_infer
    for field in ("prepost_backend", "a2a_backend", "tensor_fusion", "quant_scheme", "head_parallel"):
        setattr(infer, f"seq_p_{field}", getattr(way, field))
    # What was compiled for another way.
    infer.compiled_blocks.clear()
    for block in model.transformer_weights.blocks:
        block.compute_phases[0].self_attn_1_parallel = ATTN_WEIGHT_REGISTER[way.attn_type]()


def _sample(bench: Bench, model: Any, scheduler: Any, device: torch.device, *, is_first: bool) -> Row:
    """Sample a clip; returns its seconds, and how far the latents are from those of one GPU, where these are known."""
    scheduler.generator = None
    scheduler.prepare(0, list(bench.shape))
    scheduler.latents = make_noise(bench).to(device)
    inputs = {"text_encoder_output": {"context": make_text().bfloat16().to(device)[None]}, "image_encoder_output": None}

    def step(index: int) -> None:
        scheduler.step_pre(index)
        model.infer(inputs)
        scheduler.step_post()

    synchronize(device)
    seconds = [timed(lambda index=index: step(index), device)[0] for index in range(bench.options.steps)]
    latents = scheduler.latents.float().cpu()
    row = {"step_seconds": statistics.median(seconds[1:] or seconds), "first_step": seconds[0], **peaks(device)}
    return row | (compare(bench, latents) if is_first else {})


def compare(bench: Bench, latents: torch.Tensor) -> Row:
    """Return how far latents are from the first ones of this size, which it keeps."""
    file = bench.options.row.with_name(f"lightx2v-{bench.options.width}x{bench.options.height}.pt")
    if not file.exists():
        torch.save(latents, file)
    reference = torch.load(file, weights_only=True)
    return {"apart": float((latents - reference).norm() / reference.norm())}
