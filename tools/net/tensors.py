"""Latents, frames and conditioning, by the nodes."""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from . import reach
from .pack import Pack
from .record import Record, Skip

PRECISIONS = ("fp8", "int8", "bf16")
OFFLOADS = ("none", "block", "phase", "disk")
METHODS = ("lcm", "euler")
# Engine and compile.
ENGINES = (("portable", "auto"), ("portable", "off"), ("lightx2v", "auto"), ("lightx2v", "off"))
PROMPTS = {
    "plain": "A red fox runs through fresh snow at dawn while the camera follows from the side.",
    "empty": "",
    "rare": "\u732b\u304c\u8d70\u308b \U0001f98a caf\u00e9 \u2014 \u00bd <extra_id_0> \t two   spaces\n",
    "long": "A paper boat floats down a rainy street, close-up, cinematic lighting. " * 40,
}
# Of a report: what the clock, the memory of this moment and the machine decide.
_PASSING = (
    "seconds",
    "peak_",
    "predicted_ram",
    "step_seconds",
    "total_",
    "versions",
    "device",
    "free_",
    "needs",
    "line",
)


class Clips:
    """Samples and decodes, and notes what the nodes give and what they report."""

    def __init__(self, pack: Pack, record: Record, size: tuple[int, int, int], text_dim: int) -> None:
        self._pack, self._record, self._size, self._text_dim = pack, record, size, text_dim

    def rows(self, *counts: int, seed: int = 1) -> list[Any]:
        """Return a conditioning of prompts with so many rows each."""
        random = torch.Generator().manual_seed(seed)
        texts = torch.randn(len(counts), 512, self._text_dim, generator=random)
        for text, count in zip(texts, counts, strict=True):
            text[count:] = 0
        return [[texts, {"pooled_output": None}]]

    def sample(
        self,
        facts: Mapping[str, Any],
        load: Callable[[], Any],
        *,
        rows: Iterable[int] = (20,),
        size: tuple[int, int, int] | None = None,
        batch: int = 1,
        **settings: Any,
    ) -> None:
        width, height, num_frames = size or self._size
        name = _name(facts)

        def run() -> torch.Tensor:
            self._pack.log.clear()
            transformer = load()
            latent = self._pack.run("EmptyLatent", width=width, height=height, num_frames=num_frames, batch_size=batch)
            sampled = self._pack.run(
                "Sampler", transformer=transformer, conditioning=self.rows(*rows), latent=latent, seed=7, **settings
            )
            self._record.put(f"report/latents/{name}", self._report(latent=sampled))
            samples: torch.Tensor = sampled["samples"]
            if not samples.isfinite().all():
                raise ValueError("the latents are not finite: nothing can be compared")
            return samples

        self._record.case(f"latents/{name}", run)

    def decode(self, facts: Mapping[str, Any], load: Callable[[], Any], shape: tuple[int, ...], tiling: str) -> None:
        name = _name(facts)

        def run() -> torch.Tensor:
            self._pack.log.clear()
            samples = torch.randn(shape, generator=torch.Generator().manual_seed(3))
            frames: torch.Tensor = self._pack.run("Decode", vae=load(), latent={"samples": samples}, tiling=tiling)
            self._record.put(f"report/frames/{name}", self._report(image=frames))
            return frames

        self._record.case(f"frames/{name}", run)

    def _report(self, **result: Any) -> dict[str, Any]:
        report = json.loads(self._pack.run("Report", **result)[-1])
        # On a card, lines with the memory of this moment do not last.
        log = [line for line in self._pack.log if " GiB" not in line or not torch.cuda.is_available()]
        return {"log": log, "report": _lasting(report)}


def _lasting(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _lasting(value) for key, value in data.items() if not key.startswith(_PASSING)}
    return [_lasting(each) for each in data] if isinstance(data, list) else data


def _name(facts: Mapping[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in facts.items())


def run_tiny(pack: Pack, record: Record, models: Path, *, quick: bool) -> None:
    """Run every case on tiny checkpoints, on the CPU."""
    pack.use_models(models)
    clips = Clips(pack, record, (64, 48, 5), 64)
    _encode(pack, record, quick=quick)
    for precision, (engine, compile), offload, method in itertools.product(PRECISIONS, ENGINES, OFFLOADS, METHODS):
        if quick and (offload in ("phase", "block") or (method == "euler" and offload != "none")):
            continue
        facts = {"precision": precision, "engine": engine, "compile": compile, "offload": offload, "method": method}
        clips.sample(facts, lambda facts=facts: _load(pack, "tiny", facts), method=method)
    for precision in PRECISIONS[:1] if quick else PRECISIONS:
        _sample_variants(pack, clips, precision)
    for file in sorted(each.name for each in (models / "diffusion_models").iterdir()):
        clips.sample({"file": file}, lambda file=file: pack.run("LoadTransformer", transformer=file, engine="portable"))
    _decode_tiny(pack, clips, models, quick=quick)


def _load(pack: Pack, checkpoint: str, facts: Mapping[str, Any]) -> Any:
    """Return the transformer of a checkpoint, loaded as `facts` say."""
    if facts["engine"] == "lightx2v" and not torch.cuda.is_available():
        _want_lightx2v(pack)
    offload = pack.run("Offload", mode=facts.get("offload", "none"))
    loaded = pack.run(
        "LoadCheckpoint",
        checkpoint=checkpoint,
        precision=facts["precision"],
        engine=facts["engine"],
        attention=facts.get("attention", "auto"),
        compile=facts.get("compile", "auto"),
        offload=offload,
    )
    return loaded[0]


_lightx2v: dict[str, Skip | None] = {}


def _want_lightx2v(pack: Pack) -> None:
    if pack.name not in _lightx2v:
        _lightx2v[pack.name] = None
        try:
            reach.run_lightx2v_on_cpu(pack.name, pack.root)
            gc.freeze()
        except Skip as reason:
            _lightx2v[pack.name] = reason
    reason = _lightx2v[pack.name]
    if reason is not None:
        raise reason


def _sample_variants(pack: Pack, clips: Clips, precision: str) -> None:
    """Vary prompts, batches, sizes and schedules."""
    facts = {"precision": precision, "engine": "portable"}

    def sample(label: str, **changes: Any) -> None:
        clips.sample(facts | {"case": label}, lambda: _load(pack, "tiny", facts), **changes)

    for count in (0, 1, 64, 65, 128, 129, 300, 512):
        sample(f"{count} rows", rows=(count,))
    sample("2 clips", batch=2)
    sample("3 clips of 2 prompts", rows=(70, 12), batch=3)
    sample("2 clips of 2 long prompts", rows=(140, 200), batch=2)
    for size in ((16, 16, 1), (80, 64, 9), (208, 112, 13)):
        sample("x".join(map(str, size)), size=size)
    sample("2 steps", steps=2)
    sample("6 steps, shift 3, euler", steps=6, shift=3.0, method="euler")
    # One handle for two clips: what it keeps of the first must not show in the second.
    handle: list[Any] = []

    def same() -> Any:
        handle[:] = handle or [_load(pack, "tiny", facts)]
        return handle[0]

    clips.sample(facts | {"case": "first of a handle"}, same, rows=(140,))
    clips.sample(facts | {"case": "second of a handle"}, same, rows=(9,), size=(80, 64, 9))


def _encode(pack: Pack, record: Record, *, quick: bool) -> None:
    import folder_paths

    files = sorted(folder_paths.get_filename_list("text_encoders"))
    for file, (label, prompt) in itertools.product(files, PROMPTS.items()):
        for device in ("cpu", "gpu") if not quick and label == "plain" else ("cpu",):

            def run(file: str = file, prompt: str = prompt, device: str = device) -> torch.Tensor:
                encoder = pack.run("LoadTextEncoder", text_encoder=file, tokenizer="auto")
                rows: torch.Tensor = pack.run("TextEncode", text_encoder=encoder, text=prompt, device=device)[0][0]
                return rows

            record.case(f"conditioning/file={file},prompt={label},device={device}", run)


def _decode_tiny(pack: Pack, clips: Clips, models: Path, *, quick: bool) -> None:
    small, large, batch = (1, 16, 3, 6, 8), (1, 16, 2, 8, 72), (2, 16, 2, 6, 8)
    for file in sorted(each.name for each in (models / "vae").iterdir()):
        for tiling, shape in (("auto", small), ("off", small), ("on", large), ("auto", batch)):
            if quick and shape == large and file != "wan_2.1_vae.safetensors":
                continue
            facts = {"vae": file, "tiling": tiling, "shape": "x".join(map(str, shape))}
            clips.decode(facts, lambda file=file: pack.run("LoadVAE", vae=file), shape, tiling)

    def of_checkpoint() -> Any:
        _want_lightx2v(pack)
        return pack.run("LoadCheckpoint", checkpoint="tiny", precision="fp8", engine="lightx2v")[2]

    for tiling, shape in (("off", small), ("on", large)):
        clips.decode({"engine": "lightx2v", "tiling": tiling}, of_checkpoint, shape, tiling)


def run_wide(pack: Pack, record: Record, models: Path, wide: Mapping[str, Any]) -> None:
    """Run the cases that only a card decides, on few wide blocks.

    Args:
        wide: size (width, height, frames) and text_dim.
    """
    pack.use_models(models)
    reach.accept_few_blocks(pack.name)
    clips = Clips(pack, record, tuple(wide["size"]), wide["text_dim"])

    def sample(changes: Mapping[str, Any], facts: Mapping[str, Any], **settings: Any) -> None:
        clips.sample(facts | changes, lambda: _load(pack, "wide", facts), **settings)

    for precision in PRECISIONS:
        for (engine, compile), offload in itertools.product(ENGINES, OFFLOADS):
            # Between streaming modes only the pack's own blocks differ.
            if compile == "auto" or offload in ("none", "phase"):
                sample({}, {"precision": precision, "engine": engine, "compile": compile, "offload": offload})
        facts = {"precision": precision, "engine": "portable"}
        for attention in pack.options("LoadCheckpoint", "attention"):
            sample({}, facts | {"attention": attention})
        sample({"method": "euler"}, facts, method="euler")
        for count in (1, 64, 65, 129, 512):
            sample({"rows": count}, facts, rows=(count,))
        sample({"batch": "2 of 2 prompts"}, facts, rows=(70, 12), batch=2)
        sample({"size": "other"}, facts, size=(208, 112, 13))
    for file in sorted(each.name for each in (models / "vae").iterdir()):
        for tiling, shape in (("auto", (1, 16, 3, 12, 20)), ("on", (1, 16, 2, 40, 72)), ("auto", (2, 16, 2, 12, 20))):
            facts = {"vae": file, "tiling": tiling, "shape": "x".join(map(str, shape))}
            clips.decode(facts, lambda file=file: pack.run("LoadVAE", vae=file), shape, tiling)
