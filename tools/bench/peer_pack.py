"""This pack, through the API that its nodes call. Options: engine, attention, compile, offload,
hide (packages), lora (a rank), experts (both, as one model).
"""

from __future__ import annotations

import sys

import torch

from . import pack
from .harness import Bench, report_row
from .lora import LoraFiles, survival
from .peer import SEED, Clock, Peer, make_image, make_noise, make_text


def prepare(peer: Peer, bench: Bench) -> None:
    """Hide the packages that the peer is to do without, and import what it will run on, as the other peers do."""
    for package in peer.options.get("hide", ()):
        sys.modules[package] = None  # type: ignore[assignment]
    pack.find_machine(bench.device)
    if peer.options.get("engine") == "lightx2v":
        pack.bootstrap.import_lightx2v()


@torch.inference_mode()
def run(peer: Peer, bench: Bench, clock: Clock) -> torch.Tensor:
    """Load and sample; return the normalized latents [16, T, h, w]."""
    settings = {key: value for key, value in peer.options.items() if key in ("engine", "attention", "compile")}
    find = bench.experts if peer.options.get("experts") else bench.weights
    handle = pack.pipeline.load_transformer(
        find(peer.precision, peer.kind),
        settings=pack.EngineSettings(**settings),
        offload=pack.OffloadSettings(mode=peer.options.get("offload", "auto")),
    )
    if "lora" in peer.options:
        files, rank = LoraFiles(bench, peer.kind), peer.options["lora"]
        handle = files.view(handle, str(rank))
        found = survival(bench, files, peer.precision, rank)
        clock.write(lora_survives=found["branch_survives"], lora_error=found["branch_error"])
    clock.loaded()
    latents = pack.pipeline.sample(
        handle,
        conditioning_of(handle, peer, bench),
        torch.zeros(1, *make_noise(bench).shape),
        pack.SamplingSettings(seed=SEED, method="euler", steps=bench.options.steps),
        hooks=pack.Hooks(on_step=clock.step),
    )
    row = report_row(latents)
    # The first step loads.
    load_seconds, (first, *others) = row["load_transformer_seconds"], clock.row["step_seconds"]
    clock.write(load_seconds=load_seconds, step_seconds=[first - load_seconds, *others])
    clock.write(attention=row["attention"], compute=row["matmul"], engine=row["engine"])
    return pack.normalize(latents)[0]


def conditioning_of(handle: pack.TransformerHandle, peer: Peer, bench: Bench) -> list[pack.Conditioning]:
    """Return the text, and with a model that takes one the image, as the nodes hand it over."""
    entries = pack.of_rows(make_text(), handle.text_dim)
    image = make_image(bench, peer.kind)
    if image is None:
        return entries
    given = pack.Given(
        latents=pack.denormalize(image.latents)[None],
        mask=1 - image.is_given[None],
        rows=None if image.rows is None else image.rows[None],
    )
    return pack.with_given(entries, given, handle.architecture, pack.Clip.of_latents((1, *bench.shape)))
