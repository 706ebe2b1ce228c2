"""Files of every kind that the pack reads, each with a change, and what reads them.

A case is (kind, seed): the same file every time. What reads it may return, or raise one of EXPECTED.
"""

import contextlib
import io
import json
import math
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightx2v_pack.engine.backends.remembered import Notes
from lightx2v_pack.engine.checkpoints.companions import choose_tokenizer, resolve_text_encoder, resolve_vae
from lightx2v_pack.engine.checkpoints.files import (
    find_tokenizers,
    resolve_checkpoint,
    resolve_experts,
    resolve_transformer,
)
from lightx2v_pack.engine.checkpoints.source import TransformerCheckpoint
from lightx2v_pack.engine.checkpoints.transformers import TransformerFiles
from lightx2v_pack.engine.errors import LightX2VError
from lightx2v_pack.engine.lora.changes import Stack
from lightx2v_pack.engine.lora.experts import read_for_experts
from lightx2v_pack.engine.lora.reader import read_lora
from lightx2v_pack.engine.memory.clip import Clip
from lightx2v_pack.engine.panel.speed import History, Setup
from lightx2v_pack.engine.sentences import Said, translated
from lightx2v_pack.engine.umt5.tokenizer import clean_text, open_tokenizer
from lightx2v_pack.engine.wan.vae import check_decoder, check_encoder
from lightx2v_pack.tools import make_tiny_checkpoint as tiny
from lightx2v_pack.tools.clips.jobs import Job
from lightx2v_pack.tools.clips.results import Results
from lightx2v_pack.tools.headless.errors import CommandError
from lightx2v_pack.tools.headless.workflow import read_workflow, silenced_outputs, to_prompt
from lightx2v_pack.tools.text_files import read_text
from safetensors.torch import load_file
from support import checkpoints, loras
from support.chinese import CHINESE_CHARACTER

from .mutations import change_bytes, change_json, odd_value, write_json

EXPECTED = (LightX2VError, CommandError)
# ValueError is what text files and workflows in no known encoding end with.
EXPECTED_OF_TEXT = (*EXPECTED, ValueError)
SIZES = tiny.TinySizes(dim=64, ffn_dim=128, vae_dim=4)
IMAGE_SIZES = tiny.TinySizes(dim=64, ffn_dim=128, vae_dim=4, in_dim=36, image_dim=32, image_positions=18)
PROMPTS = (
    "a red fox in the snow",
    "a" * 60 + "b",
    "\u732b \U0001f525 \u202e\ufeff",
    "\ud800 half",
    "\0\x1b[2J",
    "e\u0301" * 30,
)
TEMPLATES = Path(__file__).parents[2] / "example_workflows"

Read = Callable[[Path], Any]


# What reads


def use_transformer(path: Path) -> None:
    _read_all(resolve_transformer(path))


def use_experts(path: Path) -> None:
    for files in resolve_experts(path).experts:
        _read_all(files)


def _read_all(files: TransformerFiles) -> None:
    source = TransformerCheckpoint(files)
    for spec in source.specs:
        source.read(spec)
        source.location(spec)
    source.close()


def use_checkpoint(path: Path) -> None:
    found = resolve_checkpoint(path)
    if found.transformer is not None:
        use_transformer(path if path.is_file() else found.transformer.files[0].parent)
    if found.text_encoder is not None:
        use_text_encoder(found.text_encoder)


def use_text_encoder(path: Path) -> None:
    resolve_text_encoder(path, choose_tokenizer(path, find_tokenizers(path)))


def use_vae(path: Path) -> None:
    files = resolve_vae(path)
    check_decoder(files)
    if files.has_encoder:
        check_encoder(files)


def use_tokenizer(path: Path) -> None:
    encode = open_tokenizer(path)
    for prompt in PROMPTS:
        encode(clean_text(prompt))


def use_lora(path: Path) -> None:
    lora = read_lora(path, resolve_transformer(checkpoints.single_file("bf16", sizes=SIZES)).header)
    Stack().add(lora, 1.0).as_facts()
    for change in lora.changes:
        for name in change.names:
            lora.read(name)
    lora.close()


def use_lora_for_experts(path: Path) -> None:
    model = resolve_transformer(checkpoints.single_file("bf16", sizes=SIZES)).header
    both = read_for_experts(path, model, ("high", "low"))
    for lora in both.each:
        if lora is not None:
            lora.close()
    str(both.report)


def use_findings(path: Path) -> None:
    """What was remembered may be lost, but no kernel gets another number; what is added is there."""
    notes = Notes(path)
    for combination in ("card", "another"):
        found = notes.about(combination)
        assert all(isinstance(died, str) for died in found.trials.values())
        assert all(0 < each < math.inf for seconds in found.measured.values() for each in seconds.values())
    notes.add_trial("a third", "attention: triton", "SIGSEGV")
    assert Notes(path).about("a third").trials == {"attention: triton": "SIGSEGV"}


def use_speeds(path: Path) -> None:
    """Whatever is there, a forecast is a duration that JSON has, or none."""
    history = History(path)
    for width in (16, 832, 4096):
        clip = Clip(width=width, height=width, num_frames=81)
        duration = history.predict(_setup(), clip, 4, is_tiled=False)
        assert all(each is None or 0 <= each < math.inf for each in (duration.seconds, duration.step_seconds))
    history.add_decode("a card", Clip(width=16, height=16, num_frames=1), 1.0, is_tiled=True)
    History(path)


@cache
def _setup() -> Setup:
    return Setup(
        card="a card",
        architecture=resolve_transformer(checkpoints.single_file("bf16", sizes=SIZES)).format.architecture,
        engine="portable",
        compute="bf16",
        attention="sdpa",
        matmul="bf16",
        ops="torch",
        offload="none",
    )


def use_results(path: Path) -> None:
    job = Job(index=1, prompt=PROMPTS[0], seed=7, key="0123456789abcdef", values=())
    with contextlib.redirect_stderr(io.StringIO()):
        results = Results(path, path.parent / "clips")
        results.is_done(job)
        results.note(job, "ok", seconds=1.0)
        assert Results(path, path.parent / "clips").is_done(job)


def use_workflow(path: Path) -> None:
    data = read_workflow(path)
    to_prompt(data, _infos(), has_server=True)
    silenced_outputs(data, _infos())


@cache
def _infos() -> dict[str, Any]:
    infos = {}
    for file in sorted(TEMPLATES.glob("*.json")):
        for node in json.loads(file.read_text(encoding="utf-8"))["nodes"]:
            values = node.get("widgets_values") or []
            inputs = {each["name"]: [each["type"], {}] for each in node.get("inputs", ())}
            inputs |= {f"widget_{number}": ["STRING", {}] for number in range(len(values))}
            outputs = [each["type"] for each in node.get("outputs", ())]
            infos[node["type"]] = {"input": {"required": inputs}, "output": outputs, "output_node": not outputs}
    return infos


# What is written


def write_safetensors(draw: random.Random, source: Path, target: Path) -> Path:
    """Write a safetensors file with changed bytes, or with a changed header."""
    content = source.read_bytes()
    if draw.random() < 0.4:
        target.write_bytes(change_bytes(draw, content))
        return target
    (length,) = struct.unpack("<Q", content[:8])
    header, weights = json.loads(content[8 : 8 + length]), content[8 + length :]
    if draw.random() < 0.3:
        header["__metadata__"] = draw.choice(
            (
                {
                    "_quantization_metadata": json.dumps(
                        change_json(draw, {"layers": {"a": {"format": "int8_tensorwise"}}})
                    )
                },
                {"lora_adapter_metadata": json.dumps(change_json(draw, {"lora_alpha": 4, "alpha_pattern": {"a": 1}}))},
                odd_value(draw),
            )
        )
    names = [name for name in header if name != "__metadata__"]
    for _ in range(draw.randint(1, 3)):
        name = draw.choice(names)
        if name not in header:
            continue
        kind = draw.randrange(4)
        if kind == 0:
            header[draw.choice((name.replace("0", "300000000", 1), f"module.{name}", name[::-1], name.upper()))] = (
                header.pop(name)
            )
        elif kind == 1:
            header[name] = change_json(draw, header[name], 1)
        elif kind == 2 and isinstance(header[name], dict):
            header[name]["dtype"] = draw.choice(
                ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8", "U8", "I64", "F4", "BOOL")
            )
        else:
            del header[name]
    raw = write_json(draw, header)
    target.write_bytes(struct.pack("<Q", len(raw)) + raw + weights)
    return target


def write_pth(draw: random.Random, source: Path, target: Path) -> Path:
    """Write a .pth file with changed bytes, or with a changed table of tensors."""
    if draw.random() < 0.4:
        target.write_bytes(change_bytes(draw, source.read_bytes()))
        return target
    compression = zipfile.ZIP_DEFLATED if draw.random() < 0.1 else zipfile.ZIP_STORED
    made = io.BytesIO()
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(made, "w", compression) as copy:
        for entry in archive.infolist():
            content = archive.read(entry)
            if entry.filename.endswith("data.pkl"):
                content = change_bytes(draw, content)
            if draw.random() < 0.98:
                copy.writestr(entry.filename, content)
    target.write_bytes(made.getvalue())
    return target


def write_objects(draw: random.Random, target: Path) -> Path:
    """Write a .pth file of other things than a flat dict of tensors."""
    tensors = dict.fromkeys(("a", "decoder.conv1.weight"), torch.ones(2, 2))
    odd = odd_value(draw)
    value = draw.choice((odd, [tensors], {"state_dict": tensors}, {1: torch.ones(1)}, {None: odd}, {"a": odd}, tensors))
    try:
        torch.save(value, target, _use_new_zipfile_serialization=draw.random() < 0.7)
    except (UnicodeEncodeError, RecursionError):
        target.write_bytes(b"")
    return target


def write_folder(draw: random.Random, folder: Path) -> Path:
    """Write a model repository's folder of blocks with something wrong in it."""
    target = folder / draw.choice(("distill_fp8", "blocks"))
    shutil.copytree(checkpoints.repository(SIZES) / draw.choice(("distill_fp8", "distill_int8")), target)
    files = sorted(file for file in target.rglob("*") if file.is_file())
    for _ in range(draw.randint(1, 3)):
        file, kind = draw.choice(files), draw.randrange(7)
        if not file.is_file():
            continue
        if kind == 0:
            file.unlink()
        elif kind == 1:
            file.rename(
                file.with_name(
                    draw.choice(("block_7.safetensors", "._x", "block_00.safetensors", "m-1-of-9.safetensors", "X"))
                )
            )
        elif kind == 2 and file.name in ("block_0.safetensors", "non_block.safetensors"):
            write_safetensors(draw, checkpoints.distilled("fp8", SIZES) / file.name, file)
        elif kind == 3:
            file.write_bytes(change_bytes(draw, file.read_bytes()))
        elif kind == 4:
            shutil.copy(file, target / draw.choice(("Block_1.SAFETENSORS", "copy.safetensors", "m-2-of-3.safetensors")))
        elif kind == 5:
            index = {"weight_map": {"a": "block_0.safetensors", "b": "block_1.safetensors"}}
            (target / "model.safetensors.index.json").write_bytes(write_json(draw, change_json(draw, index)))
        else:
            file.unlink()
            file.mkdir()
    return target


def write_nothing(draw: random.Random, folder: Path) -> Path:
    """Write what is no model at all: noise, pictures, pages, under the name of one."""
    start = draw.choice(
        (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF", b"<html>", b"GGUF", b"PK\x03\x04", b"", b"\x80\x02", b"{")
    )
    name = draw.choice(
        (
            "wan_4step.safetensors",
            "umt5.pth",
            "Wan2.1_VAE.PTH",
            "lora.pt",
            "tokenizer.json",
            "spiece.model",
            "x.gguf",
            "x.bin",
        )
    )
    target = folder / name
    target.write_bytes(start + draw.randbytes(draw.choice((0, 3, 100, 5000))))
    return target


def in_folder(
    write: Callable[..., Path], source: Callable[[], Path], name: str
) -> Callable[[random.Random, Path], Path]:
    return lambda draw, folder: write(draw, source(), folder / name)


def _write_tokenizer(draw: random.Random, folder: Path) -> Path:
    table = json.loads((_tokenizer() / "tokenizer.json").read_text(encoding="utf-8"))
    if draw.random() < 0.5:
        # The vocabulary is most of it, and the least interesting.
        rest = {name: value for name, value in table.items() if name != "model"}
        changed, model = change_json(draw, rest), change_json(draw, {"unk_id": 2, "byte_fallback": True}, 1)
        table = table | changed if isinstance(changed, dict) else changed
        if isinstance(table, dict) and isinstance(table.get("model"), dict) and isinstance(model, dict):
            table["model"] = table["model"] | model
    target = folder / "tokenizer.json"
    target.write_bytes(change_bytes(draw, write_json(draw, table)) if draw.random() < 0.3 else write_json(draw, table))
    return target


def _write_spiece(draw: random.Random, folder: Path) -> Path:
    target = folder / "spiece.model"
    target.write_bytes(change_bytes(draw, (_tokenizer() / "spiece.model").read_bytes()))
    return target


def _tokenizer() -> Path:
    return checkpoints.repository(SIZES) / "distill_fp8" / "google" / "umt5-xxl"


def _write_workflow(draw: random.Random, folder: Path) -> Path:
    data = json.loads(draw.choice(sorted(TEMPLATES.glob("*.json"))).read_text(encoding="utf-8"))
    raw = write_json(draw, change_json(draw, data))
    target = folder / "workflow.json"
    target.write_bytes(change_bytes(draw, raw) if draw.random() < 0.2 else raw)
    return target


def _write_lora(draw: random.Random, folder: Path) -> Path:
    if draw.random() < 0.3:
        config = {"peft_type": "LORA", "lora_alpha": 4, "alpha_pattern": {"blocks.0": 8}, "use_rslora": False}
        (folder / "adapter_config.json").write_bytes(write_json(draw, change_json(draw, config)))
    if draw.random() < 0.2:
        path = folder / "lora.pt"
        torch.save(load_file(_lora("peft")), path)
        return write_pth(draw, path, path)
    return write_safetensors(
        draw, _lora(draw.choice(("lightx2v", "kohya, musubi", "peft", "diffusers"))), folder / "lora.safetensors"
    )


@cache
def _lora(convention: str) -> Path:
    weights = checkpoints.transformer_weights(SIZES)
    drawn = loras.draw(
        weights, rank=2, alpha=2.0, modules=["blocks.0.ffn.0", "blocks.1.self_attn.q"], full=["head.modulation"]
    )
    return loras.write(checkpoints.scratch() / f"fuzz-{convention[:4]}.safetensors", drawn, convention)


def _write_experts(draw: random.Random, folder: Path) -> Path:
    """Write both experts of Wan2.2, of which one is damaged, renamed, gone, or of another size."""
    target = folder / "experts"
    layout = draw.choice((checkpoints.expert_files, checkpoints.experts))
    shutil.copytree(layout("fp8", SIZES), target)
    files = sorted(file for file in target.rglob("*.safetensors"))
    for _ in range(draw.randint(1, 2)):
        file, kind = draw.choice(files), draw.randrange(4)
        if not file.is_file():
            continue
        if kind == 0:
            file.unlink()
        elif kind == 1:
            noise = draw.choice(("high_noise", "low_noise", "high_noise_low_noise", "wan"))
            shutil.move(file, file.with_name(file.name.replace("high_noise", noise).replace("low_noise", noise)))
        elif kind == 2:
            other = draw.choice(("bf16", "int8"))
            shutil.copy(checkpoints.single_file(other, sizes=IMAGE_SIZES), file)
        else:
            write_safetensors(draw, file, file)
    return target


def _write_lines(draw: random.Random, path: Path, lines: list[dict[str, Any]]) -> Path:
    """Write lines of JSON, some of which have changed."""
    written = [write_json(draw, change_json(draw, line) if draw.random() < 0.6 else line) for line in lines]
    content = b"\n".join(written) + b"\n"
    path.write_bytes(change_bytes(draw, content) if draw.random() < 0.3 else content)
    return path


def _write_findings(draw: random.Random, folder: Path) -> Path:
    lines = [
        {"on": "card", "trial": "attention: triton", "died": ""},
        {"on": "card", "problem": "32768 tokens", "seconds": {"sdpa": 0.04, "triton": 0.03}},
        {"on": "another", "trial": "blocks: triton", "died": "SIGSEGV"},
    ]
    return _write_lines(draw, folder / "kernels.jsonl", lines)


def _write_results(draw: random.Random, folder: Path) -> Path:
    ok = {"prompt": PROMPTS[0], "seed": 7, "status": "ok", "seconds": 1.0, "outputs": ["a.mp4"], "error": None}
    return _write_lines(draw, folder / "prompts.results.jsonl", [ok, ok | {"key": "a" * 16}, ok | {"status": "failed"}])


def _write_speeds(draw: random.Random, folder: Path) -> Path:
    target = folder / "speeds.json"
    history = History(target)
    history.add_steps(_setup(), 32760, [[2.5]])
    history.add_steps(_setup(), 75600, [[9.0]])
    history.add_decode("a card", Clip(width=832, height=480, num_frames=81), 4.0, is_tiled=False)
    data = json.loads(target.read_bytes())
    (key,) = data["steps"]
    data = change_json(draw, data, 1) if draw.random() < 0.3 else data
    if draw.random() < 0.7 and isinstance(data, dict) and isinstance(data.get("steps"), dict):
        odd = draw.choice(("0", "-32760", "9" * 400, "1e3", " 5 ", "x", str(2**64)))
        data["steps"] = {key: {odd: draw.choice((2.5, 5e-324, 1e308)), "32760": draw.choice((2.5, 1e-300, 1e300))}}
    raw = write_json(draw, data)
    target.write_bytes(change_bytes(draw, raw) if draw.random() < 0.2 else raw)
    return target


def _use_anything(path: Path) -> None:
    name = path.name.lower()
    uses = [use_transformer, use_checkpoint, use_text_encoder, use_vae, use_lora]
    for use in [use_tokenizer] if name in ("tokenizer.json", "spiece.model") else uses:
        try:
            use(path)
        except EXPECTED as error:
            check_sentence(error)


def _single(precision: str) -> Callable[[], Path]:
    return lambda: checkpoints.single_file(precision, sizes=SIZES)


def _write_text(draw: random.Random, folder: Path) -> Path:
    target = folder / "prompts.txt"
    target.write_bytes(change_bytes(draw, "\n".join(PROMPTS).encode("utf-8", "surrogatepass")))
    return target


Kind = tuple[Callable[[random.Random, Path], Path], Read]
KINDS: dict[str, Kind] = {
    "transformer bf16": (in_folder(write_safetensors, _single("bf16"), "wan_4step.safetensors"), use_transformer),
    "transformer fp8": (in_folder(write_safetensors, _single("fp8"), "wan_4step.safetensors"), use_transformer),
    "transformer int8": (in_folder(write_safetensors, _single("int8"), "wan_4step.safetensors"), use_transformer),
    "transformer of ComfyUI": (
        in_folder(
            write_safetensors,
            lambda: checkpoints.comfy_transformer("model.diffusion_model.", sizes=SIZES),
            "wan_4step.safetensors",
        ),
        use_checkpoint,
    ),
    "folder of blocks": (write_folder, use_checkpoint),
    "text encoder": (
        in_folder(write_safetensors, lambda: checkpoints.text_encoder("int8", sizes=SIZES), "umt5.safetensors"),
        use_text_encoder,
    ),
    "text encoder of ComfyUI": (
        in_folder(write_safetensors, lambda: checkpoints.comfy_text_encoder(True, sizes=SIZES), "umt5.safetensors"),
        use_text_encoder,
    ),
    "text encoder .pth": (
        in_folder(write_pth, lambda: checkpoints.text_encoder("fp8", ".pth", sizes=SIZES), "umt5.pth"),
        use_text_encoder,
    ),
    "VAE": (in_folder(write_safetensors, lambda: checkpoints.vae(sizes=SIZES), "vae.safetensors"), use_vae),
    "VAE .pth": (in_folder(write_pth, lambda: checkpoints.vae(".pth", sizes=SIZES), "vae.pth"), use_vae),
    "objects .pth": (lambda draw, folder: write_objects(draw, folder / "vae.pth"), use_vae),
    "tokenizer.json": (_write_tokenizer, use_tokenizer),
    "spiece.model": (_write_spiece, use_tokenizer),
    "LoRA": (_write_lora, use_lora),
    "LoRA for experts": (_write_lora, use_lora_for_experts),
    "image model": (
        in_folder(
            write_safetensors, lambda: checkpoints.single_file("fp8", sizes=IMAGE_SIZES), "wan_4step.safetensors"
        ),
        use_transformer,
    ),
    "two experts": (_write_experts, use_experts),
    "findings": (_write_findings, use_findings),
    "speeds": (_write_speeds, use_speeds),
    "results": (_write_results, use_results),
    "workflow": (_write_workflow, use_workflow),
    "text": (_write_text, read_text),
    "nothing": (write_nothing, _use_anything),
}


def check_sentence(error: Exception) -> None:
    """Refuse an error of ours that says nothing or too much, or that is in no catalogue and so in no other language."""
    if not str(error).strip() or len(str(error)) > 3000:
        raise AssertionError(f"a message of {len(str(error))} characters: {str(error)[:300]}")
    if isinstance(error, EXPECTED) and not isinstance(str(error), Said):
        raise AssertionError(f"no sentence of the catalogue: {str(error)[:300]}")
    if isinstance(str(error), Said) and not CHINESE_CHARACTER.search(translated(str(error), "zh")):
        raise AssertionError(f"no Chinese: {str(error)[:300]}")


def run_case(kind: str, seed: int, folder: Path) -> Exception | None:
    """Write a file into an empty folder and read it; returns what it ended with, if that is no sentence of ours."""
    write, read = KINDS[kind]
    expected = EXPECTED_OF_TEXT if kind in ("workflow", "text") else EXPECTED
    path = write(random.Random(f"{kind} {seed}"), folder)
    try:
        try:
            read(path)
        except expected as error:
            check_sentence(error)
    except Exception as error:  # noqa: BLE001 - what the suite looks for
        return error
    return None
