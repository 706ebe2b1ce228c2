"""Sentences about data of others are in the pack's own words: nothing of Python's, PyTorch's or Rust's."""

import json
import re
import zipfile

import pytest
import torch
from lightx2v_pack.demo.train.cli import main as train
from lightx2v_pack.engine import pipeline
from lightx2v_pack.engine.checkpoints.companions import choose_tokenizer, resolve_vae
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.checkpoints.header import read_header
from lightx2v_pack.engine.errors import CheckpointError
from lightx2v_pack.engine.lora.reader import read_lora
from lightx2v_pack.engine.settings import OffloadSettings
from lightx2v_pack.engine.umt5.tokenizer import open_tokenizer
from lightx2v_pack.tools import doctor_cli, generate_cli
from safetensors.torch import save_file
from support import checkpoints, loras

FOREIGN = re.compile(
    r"Error\b|Expecting value|object has no|not subscriptable|must be|indices|NoneType|invalid literal|invalid type"
    r"|cannot instantiate|INTERNAL|enforce fail|hasRecord|Traceback|could not convert|unterminated|float\(\)",
    re.IGNORECASE,
)


def check(sentence, begins):
    assert sentence.startswith(begins) and not FOREIGN.search(sentence), sentence


TEXTS = [
    "{}",
    "[]",
    '{"a":',
    "",
    "null",
    "5",
    "\x00\x01",
    "[" * 100_000,
    '{"weight_map": 5}',
    '{"model": {"vocab": 5}}',
]


@pytest.mark.parametrize("text", [*TEXTS, '{"weight_map": {"a": 1}}', '{"weight_map": null}', "\xff"])
def test_an_index(tmp_path, text):
    file = tmp_path / "model.safetensors.index.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError) as found:
        resolve_transformer(tmp_path)
    check(str(found.value), f"Download {file} again: it is not an index of safetensors shards (it ")


ODD_SETTINGS = [
    '{"r":', "[]", '{"lora_alpha": "x"}', '{"lora_alpha": 4, "r": "x"}', '{"lora_alpha": 4, "alpha_pattern": 5}',
    '{"lora_alpha": 4, "alpha_pattern": {"a": null}}', '{"lora_alpha": 4, "alpha_pattern": ["a"]}',
    '{"lora_alpha": 4, "alpha_pattern": {"(": 1}}', "5", '{"lora_alpha": 1e999}', '{"lora_alpha": NaN}',
]  # fmt: skip


@pytest.mark.parametrize("text", ODD_SETTINGS)
def test_settings_of_peft(tmp_path, text):
    drawn = loras.draw(checkpoints.transformer_weights(), modules=["blocks.0.ffn.0"])
    file = loras.write(tmp_path / "lora.safetensors", drawn, "peft")
    (tmp_path / "adapter_config.json").write_text(text)
    report = read_lora(file, read_header(checkpoints.single_file("bf16"))).report
    (note,) = report.notes
    check(note, "Its PEFT settings (adapter_config.json) are not used: ")
    metadata = {"lora_adapter_metadata": text}
    with pytest.raises(CheckpointError) as found:
        read_lora(loras.write(file, drawn, "peft", metadata), read_header(checkpoints.single_file("bf16")))
    check(str(found.value), "Download LoRA lora.safetensors again: ")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["tokenizer.json", "spiece.model"])
def test_a_tokenizer(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="latin-1")
    for read in (open_tokenizer, lambda folder: choose_tokenizer(checkpoints.text_encoder("bf16"), [folder])):
        with pytest.raises(CheckpointError) as found:
            read(tmp_path)
        check(str(found.value), "Download the folder google/umt5-xxl again: the tokenizer ")


@pytest.mark.parametrize("lost", ["version", "data.pkl", "data/0"])
def test_a_pth_file_that_lacks_a_part(tmp_path, lost):
    file = tmp_path / "Wan2.1_VAE.pth"
    with zipfile.ZipFile(checkpoints.vae(".pth")) as source, zipfile.ZipFile(file, "w") as target:
        for entry in source.infolist():
            if not entry.filename.endswith(f"/{lost}"):
                target.writestr(entry.filename, source.read(entry))
    with pytest.raises(CheckpointError) as found:
        resolve_vae(file)
    check(str(found.value), f"Download {file} again, or use a .safetensors version of it: ")
    assert lost == "data/0" or f"it lacks {lost}" in str(found.value)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.float64], ids=str)
def test_a_vae_in_another_dtype(tmp_path, dtype):
    file = tmp_path / "wan_2.1_vae.safetensors"
    save_file({name: each.to(dtype) for name, each in checkpoints.vae_weights().items()}, file)
    with pytest.raises(CheckpointError, match=r"^Use Wan2.1_VAE.pth or .* is a VAE in \w+; expected BF16, F16 or F32"):
        resolve_vae(file)


@pytest.mark.parametrize("prefix", ["", "vae."])
def test_tensors_of_a_vae_that_nobody_reads_are_said(tmp_path, prefix, caplog):
    weights = {f"{prefix}{name}": each for name, each in checkpoints.vae_weights().items()}
    file = tmp_path / "wan_2.1_vae.safetensors"
    save_file(weights, file)
    pipeline.load_vae(file, offload=OffloadSettings())
    assert not caplog.messages
    save_file(weights | {f"{prefix}loss.logvar": torch.ones(1), f"{prefix}ema.conv1.bias": torch.ones(2)}, file)
    pipeline.load_vae(file, offload=OffloadSettings())
    assert len(caplog.messages) == 1 and "holds 2 tensors that belong to no such model" in caplog.text


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (generate_cli.main, ["a fox", "--checkpoint", ""], "--checkpoint: give the path"),
        (generate_cli.main, ["a fox", "--models-dir", " "], "--models-dir: give the path"),
        (doctor_cli.main, ["--check", ""], "--check: give a name"),
        (train, ["train", "run", "--batch", "x"], "--batch: give a whole number from 1"),
        (train, ["train", "run", "--seed", "-1"], "--seed: give a whole number from 0"),
        (train, ["evaluate", "run", "--count", "1e9"], "--count: give a whole number from 1"),
    ],
)
def test_words_of_a_command_line(main, words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and said in error and not FOREIGN.search(json.dumps(error))
