"""What is said of broken files, of wrong inputs to nodes, and of requests that are not understood."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .pack import Pack
from .record import Record


def run(pack: Pack, record: Record, broken: Path, tiny: Path) -> None:
    """Try every broken file in each loader that offers it, and use what could be loaded; then wrong inputs."""
    pack.use_models(broken)
    latent = {"samples": torch.zeros(1, 16, 2, 4, 4)}
    rows = [[torch.zeros(1, 512, 32), {}]]

    def attempt(name: str, load: Callable[[], Any], use: Callable[[Any], Any]) -> None:
        """Note what loading says, and where it passes, what the first use says."""

        def run() -> dict[str, Any]:
            pack.log.clear()
            use(load())
            return {"log": list(pack.log)}

        record.case(f"refusal/{name}", run)

    def sample(transformer: Any) -> Any:
        return pack.run("Sampler", transformer=transformer, conditioning=rows, latent=latent, seed=1, steps=1)

    import folder_paths

    for file in _offered(pack, "checkpoint", folder_paths):
        attempt(
            f"checkpoint/{file}", lambda file=file: pack.run("LoadCheckpoint", checkpoint=file, engine="portable"),
            lambda parts: (sample(parts[0]), pack.run("TextEncode", text_encoder=parts[1], text="fox"),
                           pack.run("Decode", vae=parts[2], latent=latent)),
        )  # fmt: skip
        attempt(
            f"transformer/{file}",
            lambda file=file: pack.run("LoadTransformer", transformer=file, engine="portable"),
            sample,
        )
        record.case(f"refusal/plan/{file}", lambda file=file: _sentence(pack.ask("plan", checkpoint=file)))
    for file in sorted(folder_paths.get_filename_list("text_encoders")):
        attempt(
            f"text_encoder/{file}", lambda file=file: pack.run("LoadTextEncoder", text_encoder=file),
            lambda encoder: pack.run("TextEncode", text_encoder=encoder, text="fox"),
        )  # fmt: skip
    for file in sorted(folder_paths.get_filename_list("vae")):
        attempt(
            f"vae/{file}", lambda file=file: pack.run("LoadVAE", vae=file),
            lambda vae: pack.run("Decode", vae=vae, latent=latent),
        )  # fmt: skip
    record.case("refusal/doctor", lambda: _checkpoints(pack.ask("doctor")))
    pack.use_models(tiny)
    _wrong_inputs(pack, record)
    for index, (route, parameters) in enumerate(WRONG_REQUESTS):
        record.case(
            f"refusal/request/{index}", lambda route=route, parameters=parameters: pack.ask(route, **parameters)
        )


WRONG_REQUESTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("plan", {}),
    ("plan", {"checkpoint": "tiny", "transformer": "tiny"}),
    ("plan", {"checkpoint": "../secret"}),
    ("plan", {"checkpoint": "C:/models"}),
    ("plan", {"checkpoint": "tiny", "width": "wide"}),
    ("plan", {"checkpoint": "tiny", "width": "0"}),
    ("plan", {"checkpoint": "tiny", "steps": "51"}),
    ("plan", {"checkpoint": "tiny", "engine": "fast"}),
    ("plan", {"checkpoint": "tiny", "colour": "red"}),
    ("plan", {"checkpoint": "x" * 400}),
    ("plan", {"checkpoint": "tiny", "uses_vae": "2"}),
    ("doctor", {"deep": "1"}),
    ("downloads", {}),
)


def _wrong_inputs(pack: Pack, record: Record) -> None:
    def refuse(node: str, **inputs: Any) -> None:
        shown = {name: value for name, value in inputs.items() if isinstance(value, (str, int, float))}
        label = ",".join(f"{name}={str(value)[:40]}" for name, value in shown.items())
        record.case(f"refusal/input/{node},{label}", lambda: _passes(pack, node, inputs))

    for name in ("gone", "/etc/passwd", "../tiny", "C:\\models"):
        refuse("LoadCheckpoint", checkpoint=name)
        refuse("LoadTransformer", transformer=name)
        refuse("LoadTextEncoder", text_encoder=name)
        refuse("LoadVAE", vae=name)
    refuse("LoadTextEncoder", text_encoder="umt5-fp8.pth", tokenizer="gone")
    for changes in (
        {"precision": "fp4"},
        {"engine": "fast"},
        {"engine": "lightx2v"},
        {"attention": "none"},
        {"compile": "yes"},
    ):
        refuse("LoadCheckpoint", **{"checkpoint": "tiny", **changes})
    for changes in (
        {"mode": "some"},
        {"vram_budget_gib": -1.0},
        {"pinned_ram_limit_gib": -0.5},
        {"vae_tiling": "maybe"},
    ):
        refuse("Offload", **changes)
    for size in ((65, 48, 5), (64, 40, 5), (64, 48, 6), (64, 48, 0), (0, 0, 1), (9000, 48, 5), (64, 48, 9997)):
        refuse("EmptyLatent", **dict(zip(("width", "height", "num_frames"), size, strict=True)))
    transformer, text_encoder, vae = pack.run("LoadCheckpoint", checkpoint="tiny", engine="portable")
    latent, rows = {"samples": torch.zeros(1, 16, 2, 4, 4)}, [[torch.zeros(1, 512, 64), {}]]
    good = {"transformer": transformer, "conditioning": rows, "latent": latent, "seed": 1}
    for changes in ({"method": "heun"}, {"steps": 0}, {"shift": 0.0}, {"shift": -1.0}):
        refuse("Sampler", **{**good, **changes})
    tensors = {
        "channels": (1, 4, 2, 4, 4), "image": (1, 16, 4, 4), "odd": (1, 16, 2, 5, 4), "nothing": (0, 16, 2, 4, 4),
        "sd": (1, 4, 64, 64), "wan22": (1, 48, 2, 4, 4),
    }  # fmt: skip
    for label, shape in tensors.items():
        wrong = {"samples": torch.zeros(shape)}
        record.case(
            f"refusal/latent/{label},sampler", lambda wrong=wrong: _passes(pack, "Sampler", {**good, "latent": wrong})
        )
        record.case(
            f"refusal/latent/{label},decode", lambda wrong=wrong: _passes(pack, "Decode", {"vae": vae, "latent": wrong})
        )
    prompts: dict[str, Any] = {
        "none": [], "no_tensor": [[None, {}]], "width": [[torch.zeros(1, 512, 32), {}]], "flat": [[torch.zeros(64), {}]],
        "nan": [[torch.full((1, 5, 64), torch.nan), {}]], "long": [[torch.ones(1, 600, 64), {}]],
        "two": [[torch.ones(1, 5, 64), {"area": 1}], [torch.ones(1, 5, 64), {}]],
    }  # fmt: skip
    for label, prompt in prompts.items():

        def run(prompt: Any = prompt) -> dict[str, Any]:
            pack.log.clear()
            sampled = pack.run("Sampler", **{**good, "conditioning": prompt, "latent": latent | {"noise_mask": 1}})
            return {"log": list(pack.log), "mean": float(sampled["samples"].double().mean())}

        record.case(f"refusal/conditioning/{label}", run)
    refuse("TextEncode", text_encoder=text_encoder, text="fox", device="tpu")
    refuse("Decode", vae=vae, latent=latent, tiling="maybe")
    refuse("Report")


def _passes(pack: Pack, node: str, inputs: dict[str, Any]) -> str:
    pack.run(node, **inputs)
    return "passes"


def _offered(pack: Pack, what: str, folder_paths: Any) -> list[str]:
    """Return the files and folders of lightx2v that hold something."""
    root = Path(folder_paths.get_folder_paths("lightx2v")[0])
    folders = {each.parent.relative_to(root).as_posix() for each in root.rglob("*.safetensors")} - {"."}
    return sorted(
        {each.name for each in root.glob("*.safetensors")} | folders | {each.partition("/")[0] for each in folders}
    )


def _sentence(answer: dict[str, Any]) -> Any:
    return {"status": answer["status"]} | {
        name: answer["answer"].get(name) for name in ("ok", "sentence", "missing", "error")
    }


def _checkpoints(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what the doctor says of checkpoints: what follows the disk."""
    names = [item["name"] for item in answer["answer"]]
    return {item["name"]: item for item in answer["answer"][names.index("Disk") + 1 :]}
