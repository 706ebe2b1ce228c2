"""This pack, through the API that its nodes call. Options: engine, attention, compile, offload, hide (packages)."""

from __future__ import annotations

import sys

import torch

from ...engine import engines, pipeline
from ...engine.adapters.lightx2v import bootstrap
from ...engine.backends.trials import find_machine
from ...engine.interfaces import Hooks
from ...engine.latent_space import normalise
from ...engine.settings import EngineSettings, OffloadSettings, SamplingSettings
from .full_size import ensure_weights
from .peer_clock import SEED, Clock, Peer, Task


def prepare(peer: Peer, task: Task) -> None:
    """Hide the packages that the peer is to do without, and import what it will run on, as the other peers do."""
    for package in peer.options.get("hide", ()):
        sys.modules[package] = None  # type: ignore[assignment]
    find_machine(task.device)
    if engines.choose_engine(peer.options.get("engine", "auto")) == "lightx2v":
        bootstrap.import_lightx2v()


@torch.inference_mode()
def run(peer: Peer, task: Task, clock: Clock) -> torch.Tensor:
    """Load and sample; return the normalised latents [16, T, h, w]."""
    options = peer.options
    weights = ensure_weights(task.folder, task.arguments, peer.precision, task.device)
    clock.loading()
    handle = pipeline.load_transformer(
        weights,
        settings=EngineSettings(**{key: options[key] for key in ("engine", "attention", "compile") if key in options}),
        offload=OffloadSettings(mode=options.get("offload", "auto")),
    )
    handle.acquire(task.shape, Hooks())
    clock.loaded()
    latents = pipeline.sample(
        handle,
        task.context(),
        torch.zeros(1, *task.shape),
        SamplingSettings(seed=SEED, method="euler", steps=task.steps),
        hooks=Hooks(on_step=clock.step),
    )
    sampling = next(stage for stage in pipeline.report_of(latents)["stages"] if stage["stage"] == "sample")
    facts = sampling["details"]
    clock.write(attention=facts["attention"], compute=facts["matmul"], facts=facts)
    return normalise(latents)[0]
