"""Latents, frames and conditioning, by the nodes; and what the nodes report and log on the way."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from . import reach
from .machines import pretend_ram
from .pack import Pack
from .record import Record

Facts = Mapping[str, Any]
Size = tuple[int, int, int]

PRECISIONS = ("fp8", "int8", "bf16")
OFFLOADS = ("none", "block", "phase", "disk")
# Engine and compile.
ENGINES = (("portable", "auto"), ("portable", "off"), ("lightx2v", "auto"), ("lightx2v", "off"))
PROMPTS = {
    "plain": "A red fox runs through fresh snow at dawn while the camera follows from the side.",
    "empty": "",
    "rare": "\u732b\u304c\u8d70\u308b \U0001f98a caf\u00e9 \u2014 \u00bd <extra_id_0> \t two   spaces\n",
    "long": "A paper boat floats down a rainy street, close-up, cinematic lighting. " * 40,
}
# What one handle samples one after the other: nothing it keeps of a clip may show in the next. Cross-attention goes
# another way above 64 rows of text, and pads above 128.
CLIPS: dict[str, dict[str, Any]] = {
    **{f"{count} rows": {"rows": (count,)} for count in (0, 1, 64, 65, 128, 129, 300, 512)},
    "other size": {"size": (80, 64, 9)},
    "2 clips": {"batch": 2},
    "3 clips of 2 prompts": {"rows": (70, 12), "batch": 3},
    "2 clips of 2 long prompts": {"rows": (140, 200), "batch": 2},
    "one frame": {"size": (16, 16, 1)},
    "many tokens": {"size": (208, 112, 13)},
    "2 steps": {"steps": 2},
    "6 steps, shift 3, euler": {"steps": 6, "shift": 3.0, "method": "euler"},
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


class Runs:
    """Runs nodes on the checkpoints of a folder, and notes what they give."""

    def __init__(self, pack: Pack, record: Record, models: Path, checkpoint: str, size: Size, text_dim: int) -> None:
        pack.use_models(models)
        self.pack, self.models = pack, models
        self._record, self._checkpoint, self._size, self._text_dim = record, checkpoint, size, text_dim

    def files(self, kind: str) -> list[str]:
        return sorted(each.name for each in (self.models / kind).iterdir() if each.is_file())

    def load(self, facts: Facts) -> Any:
        """Return transformer, text encoder and VAE of the checkpoint."""
        if facts["engine"] == "lightx2v" and not torch.cuda.is_available():
            reach.run_lightx2v_on_cpu(self.pack.name, self.pack.root)
        budget = facts.get("vram_budget_gib", 0.0)
        offload = self.pack.run("Offload", mode=facts.get("offload", "none"), vram_budget_gib=budget)
        chosen = {name: facts[name] for name in ("precision", "engine", "attention", "compile") if name in facts}
        return self.pack.run("LoadCheckpoint", checkpoint=self._checkpoint, offload=offload, **chosen)

    def sample(self, facts: Facts, load: Callable[[], Any] | None = None, **clip: Any) -> None:
        """Note latents; `clip` may have size, batch, rows (of each prompt) and inputs of the sampler."""
        clip = {"size": self._size, "batch": 1, "rows": (20,)} | clip
        width, height, num_frames = clip.pop("size")
        batch, rows = clip.pop("batch"), clip.pop("rows")

        def run() -> torch.Tensor:
            transformer = load() if load else self.load(facts)[0]
            latent = self.pack.run("EmptyLatent", width=width, height=height, num_frames=num_frames, batch_size=batch)
            inputs = {"transformer": transformer, "conditioning": self._prompts(rows), "latent": latent, "seed": 7}
            sampled = self.pack.run("Sampler", **inputs, **clip)
            self._report(f"latents/{_name(facts)}", latent=sampled)
            if not sampled["samples"].isfinite().all():
                raise ValueError("the latents are not finite: nothing can be compared")
            return sampled["samples"]

        self._case(f"latents/{_name(facts)}", run)

    def sample_clips(self, facts: Facts) -> None:
        """Sample all of CLIPS with one handle."""
        handle: list[Any] = []

        def same() -> Any:
            handle[:] = handle or [self.load(facts)[0]]
            return handle[0]

        for label, clip in CLIPS.items():
            self.sample({**facts, "clip": label}, same, **clip)

    def encode(self, devices: tuple[str, ...]) -> None:
        def run(file: str, prompt: str, device: str) -> torch.Tensor:
            encoder = self.pack.run("LoadTextEncoder", text_encoder=file)
            conditioning = self.pack.run("TextEncode", text_encoder=encoder, text=PROMPTS[prompt], device=device)
            return conditioning[0][0]

        for file, prompt, device in itertools.product(self.files("text_encoders"), PROMPTS, devices):
            name = f"conditioning/file={file},prompt={prompt},device={device}"
            self._case(name, lambda file=file, prompt=prompt, device=device: run(file, prompt, device))

    def decode(self, facts: Facts, shape: tuple[int, ...], free_ram: float | None = None) -> None:
        """Note frames of facts["vae"], a file, or of the VAE of facts["engine"].

        Args:
            free_ram: GiB, where there shall be little.
        """
        facts = {**facts, "shape": "x".join(map(str, shape))} | ({"free_ram": free_ram} if free_ram else {})

        def run() -> torch.Tensor:
            samples = torch.randn(shape, generator=torch.Generator().manual_seed(3))
            vae = self.pack.run("LoadVAE", vae=facts["vae"]) if "vae" in facts else self.load(facts)[2]
            with pretend_ram(1, free_ram) if free_ram else nullcontext():
                frames = self.pack.run("Decode", vae=vae, latent={"samples": samples}, tiling=facts["tiling"])
            self._report(f"frames/{_name(facts)}", image=frames)
            return frames

        self._case(f"frames/{_name(facts)}", run)

    def _case(self, name: str, run: Callable[[], Any]) -> None:
        self.pack.log.clear()
        self._record.case(name, run)

    def _prompts(self, counts: tuple[int, ...]) -> list[Any]:
        """Return a conditioning of prompts with so many rows each."""
        texts = torch.randn(len(counts), 512, self._text_dim, generator=torch.Generator().manual_seed(1))
        for text, count in zip(texts, counts, strict=True):
            text[count:] = 0
        return [[texts, {"pooled_output": None}]]

    def _report(self, name: str, **result: Any) -> None:
        report = json.loads(self.pack.run("Report", **result)[-1])
        # On a card, lines with the memory of this moment do not last.
        log = [line for line in self.pack.log if " GiB" not in line or not torch.cuda.is_available()]
        self._record.put(f"report/{name}", {"log": log, "report": _lasting(report)})


def run_tiny(pack: Pack, record: Record, models: Path, *, quick: bool) -> None:
    """Run every case on tiny checkpoints, on the CPU."""
    runs = Runs(pack, record, models, "tiny", (96, 80, 9), 64)
    runs.encode(("cpu",) if quick else ("cpu", "gpu"))
    for precision, (engine, compile), offload in itertools.product(PRECISIONS, ENGINES, OFFLOADS):
        for method in ("lcm", "euler"):
            facts = {"precision": precision, "engine": engine, "compile": compile, "offload": offload, "method": method}
            if not quick or (offload, method) in (("none", "lcm"), ("disk", "euler")):
                runs.sample(facts, method=method)
    for precision in ("int8",) if quick else PRECISIONS:
        runs.sample_clips({"precision": precision, "engine": "portable"})
    if not quick:
        runs.sample_clips({"precision": "fp8", "engine": "lightx2v"})
    for file in runs.files("diffusion_models"):
        load = {"transformer": file, "engine": "portable"}
        runs.sample({"file": file}, lambda load=load: pack.run("LoadTransformer", **load))
    small, long, batch = (1, 16, 3, 6, 8), (1, 16, 2, 8, 72), (2, 16, 2, 6, 8)
    for file in runs.files("vae"):
        for tiling, shape in (("auto", small), ("on", long), ("off", batch)):
            runs.decode({"vae": file, "tiling": tiling}, shape)
        # Tiles of other sizes.
        for free_ram in (0.25, 0.1) if file == "wan_2.1_vae.safetensors" else ():
            runs.decode({"vae": file, "tiling": "auto"}, long, free_ram)
    for tiling, shape in (("off", small),) if quick else (("off", small), ("on", long)):
        runs.decode({"precision": "fp8", "engine": "lightx2v", "tiling": tiling}, shape)

    # What was measured decides the next forecast; how it was measured, the clock does.
    asked = {"checkpoint": "tiny", "engine": "portable", "height": 80, "frames": 9}
    for width in (96, 192):
        record.case(f"plan/after runs,{width}", lambda width=width: _lasting(pack.ask("plan", width=width, **asked)))
    for node, inputs in (
        ("LoadTransformer", {"transformer": "prefixed.safetensors"}),
        ("LoadTextEncoder", {"text_encoder": "umt5-fp8.pth"}),
        ("LoadVAE", {"vae": "wan_2.1_vae.safetensors"}),
        *(("LoadCheckpoint", {"checkpoint": "tiny", "precision": precision}) for precision in PRECISIONS),
    ):
        name = f"fingerprint/{node},{_name(inputs)}"
        record.case(name, lambda node=node, inputs=inputs: pack.fingerprint(node, **inputs))


def run_wide(pack: Pack, record: Record, models: Path, *, size: Size, text_dim: int, quick: bool) -> None:
    """Run the cases that only a card decides, on few wide blocks."""
    runs = Runs(pack, record, models, "wide", size, text_dim)
    reach.accept_few_blocks(pack.name)
    runs.encode(("gpu",))
    for precision in PRECISIONS:
        for (engine, compile), offload in itertools.product(ENGINES, OFFLOADS):
            # The streamer is the same for all; plain torch and LightX2V's own blocks are tried at the ends of it.
            if offload in (("none", "phase") if quick or compile == "off" else OFFLOADS):
                runs.sample({"precision": precision, "engine": engine, "compile": compile, "offload": offload})
        facts = {"precision": precision, "engine": "portable"}
        runs.sample_clips(facts)
        # At full width so little lets one block in 8 bits stay on the card while the others, or their phases, stream.
        for budget in (2.25, 1.75):
            runs.sample({**facts, "offload": "auto", "vram_budget_gib": budget})
        for attention in pack.options("LoadCheckpoint", "attention") if precision != "int8" else ():
            runs.sample({**facts, "attention": attention})
    for file in runs.files("vae"):
        for tiling, shape in (("auto", (1, 16, 3, 12, 20)), ("on", (1, 16, 2, 40, 72)), ("auto", (2, 16, 2, 12, 20))):
            runs.decode({"vae": file, "tiling": tiling}, shape)


def _lasting(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _lasting(value) for key, value in data.items() if not key.startswith(_PASSING)}
    return [_lasting(each) for each in data] if isinstance(data, list) else data


def _name(facts: Facts) -> str:
    return ",".join(f"{key}={value}" for key, value in facts.items())
