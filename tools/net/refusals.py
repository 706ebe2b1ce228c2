"""What is said of broken files, of wrong inputs to nodes, and of requests that are not understood."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .pack import Pack
from .record import Record

LATENT = {"samples": torch.zeros(1, 16, 2, 4, 4)}
WRONG_INPUTS: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("LoadCheckpoint", {"checkpoint": name}) for name in ("gone", "/etc/passwd", "../tiny", "C:\\models")),
    ("LoadTransformer", {"transformer": "gone"}),
    ("LoadTextEncoder", {"text_encoder": "gone"}),
    ("LoadTextEncoder", {"text_encoder": "umt5-fp8.pth", "tokenizer": "gone"}),
    ("LoadVAE", {"vae": "gone"}),
    ("LoadCheckpoint", {"checkpoint": "tiny", "precision": "fp4"}),
    ("LoadCheckpoint", {"checkpoint": "tiny", "engine": "fast"}),
    ("LoadCheckpoint", {"checkpoint": "tiny", "attention": "none"}),
    ("LoadCheckpoint", {"checkpoint": "tiny", "compile": "yes"}),
    ("Offload", {"mode": "some"}),
    ("Offload", {"vram_budget_gib": -1.0}),
    ("Offload", {"pinned_ram_limit_gib": -0.5}),
    ("Offload", {"vae_tiling": "maybe"}),
    *(("EmptyLatent", {"width": width}) for width in (0, 65, 9000)),
    *(("EmptyLatent", {"num_frames": number}) for number in (0, 6, 9997)),
    ("Sampler", {"method": "heun"}),
    ("Sampler", {"steps": 0}),
    ("Sampler", {"shift": -1.0}),
    ("TextEncode", {"device": "tpu"}),
    ("Decode", {"tiling": "maybe"}),
    ("Report", {}),
)
WRONG_SHAPES = (
    (1, 4, 2, 4, 4), (1, 16, 4, 4), (1, 16, 2, 5, 4), (0, 16, 2, 4, 4), (1, 4, 64, 64), (1, 48, 2, 4, 4),
)  # fmt: skip
WRONG_REQUESTS = (
    {}, {"checkpoint": "tiny", "transformer": "tiny"}, {"checkpoint": "../secret"}, {"checkpoint": "C:/models"},
    {"checkpoint": "x" * 400}, {"width": "wide"}, {"width": "0"}, {"steps": "51"}, {"engine": "fast"},
    {"colour": "red"}, {"uses_vae": "2"},
)  # fmt: skip


def run(pack: Pack, record: Record, broken: Path, tiny: Path) -> None:
    """Try every broken file in each loader that offers it, and use what could be loaded; then what else is wrong."""

    def attempt(name: str, *steps: Callable[[Any], Any]) -> None:
        """Note what steps say, each of which takes the result of the one before; the last one's is not kept."""

        def work() -> dict[str, Any]:
            pack.log.clear()
            result = None
            for step in steps:
                result = step(result)
            return {"passes": list(pack.log)}

        record.case(f"refusal/{name}", work)

    def sample(transformer: Any, **changes: Any) -> None:
        rows = [[torch.zeros(1, 512, 32), {}]]
        inputs = {"transformer": transformer, "conditioning": rows, "latent": LATENT, "seed": 1, "steps": 1}
        pack.run("Sampler", **(inputs | changes))

    def encode(encoder: Any) -> None:
        pack.run("TextEncode", text_encoder=encoder, text="fox")

    def decode(vae: Any) -> None:
        pack.run("Decode", vae=vae, latent=LATENT)

    def load(node: str, **inputs: Any) -> Callable[[Any], Any]:
        return lambda _: pack.run(node, **inputs)

    pack.use_models(broken)
    home = broken / "lightx2v"
    for file in sorted({each.relative_to(home).as_posix() for each in (*home.iterdir(), *home.glob("*/distill_fp8"))}):
        attempt(f"transformer/{file}", load("LoadTransformer", transformer=file, engine="portable"), sample)
        whole = load("LoadCheckpoint", checkpoint=file, engine="portable")
        attempt(f"checkpoint/{file}", whole)
        for part, use in enumerate((sample, encode, decode)) if home.joinpath(file).is_dir() else ():
            attempt(f"checkpoint/{file}/{part}", whole, lambda parts, part=part: parts[part], use)
        record.case(f"refusal/plan/{file}", lambda file=file: _lasting(pack.ask("plan", checkpoint=file)))
    for file in sorted(each.name for each in (broken / "text_encoders").iterdir()):
        attempt(f"text_encoder/{file}", load("LoadTextEncoder", text_encoder=file), encode)
    for file in sorted(each.name for each in (broken / "vae").iterdir()):
        attempt(f"vae/{file}", load("LoadVAE", vae=file), decode)
    record.case("refusal/doctor", lambda: _of_checkpoints(pack.ask("doctor")))

    pack.use_models(tiny)
    transformer, encoder, vae = pack.run("LoadCheckpoint", checkpoint="tiny", engine="portable")
    good: dict[str, dict[str, Any]] = {
        "Sampler": {"transformer": transformer, "conditioning": [[torch.ones(1, 512, 64), {}]], "latent": LATENT},
        "TextEncode": {"text_encoder": encoder, "text": "fox"},
        "Decode": {"vae": vae, "latent": LATENT},
    }
    for index, (node, changes) in enumerate(WRONG_INPUTS):
        attempt(f"input/{index}-{node}", load(node, **(good.get(node, {}) | changes)))
    for shape in WRONG_SHAPES:
        for node in ("Sampler", "Decode"):
            attempt(f"latent/{node}/{shape}", load(node, **(good[node] | {"latent": {"samples": torch.zeros(shape)}})))
    for label, rows in _prompts().items():
        wrong = {"conditioning": rows, "latent": LATENT | {"noise_mask": 1}, "steps": 3}
        attempt(f"conditioning/{label}", load("Sampler", **(good["Sampler"] | wrong)))
    for index, changes in enumerate(WRONG_REQUESTS):
        asked = {"checkpoint": "tiny", **changes} if changes else {}
        record.case(f"refusal/request/{index}", lambda asked=asked: pack.ask("plan", **asked))
    record.case("refusal/downloads", lambda: pack.ask("downloads"))


def _prompts() -> dict[str, Any]:
    row = torch.ones(1, 5, 64)
    return {
        "none": [],
        "no_tensor": [[None, {}]],
        "width": [[torch.zeros(1, 512, 32), {}]],
        "flat": [[torch.zeros(64), {}]],
        "nan": [[row * torch.nan, {}]],
        "long": [[torch.ones(1, 600, 64), {}]],
        "two": [[row, {"area": 1}], [row, {}]],
    }


def _lasting(answer: dict[str, Any]) -> dict[str, Any]:
    kept = {name: answer["answer"].get(name) for name in ("ok", "sentence", "missing", "error")}
    return {"status": answer["status"], **kept}


def _of_checkpoints(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what the doctor says of checkpoints: what follows the disk."""
    items = {item["name"]: item for item in answer["answer"]}
    names = list(items)
    return {name: items[name] for name in names[names.index("Disk") + 1 :]}
