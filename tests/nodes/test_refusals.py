"""What a CONDITIONING brings: heeded, refused, said to have no effect and why, or named where nobody knows it."""

import ast
import logging
import os
from pathlib import Path

import pytest
import torch
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from support import checkpoints


@pytest.fixture
def refusals(host):
    from lightx2v_pack.engine.adapters.comfy import refusals

    return refusals


ARCHITECTURE = resolve_transformer(checkpoints.single_file("bf16")).format.architecture


def check(refusals, **values):
    refusals.check_conds({"positive": [{"cross_attn": torch.ones(1), **values}], "negative": None}, ARCHITECTURE)


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("concat_latent_image", "a picture"),
        ("concat_mask", "the mask of a picture"),
        ("clip_vision_output", "a CLIP Vision picture"),
        ("reference_latents", "reference pictures"),
        ("vace_frames", "a VACE control video"),
        ("control", "a ControlNet"),
        ("keyframe_idxs", "key frames"),
        ("time_dim_replace", "a first frame"),
    ],
)
def test_what_a_text_to_video_model_has_no_input_for_is_refused(refusals, key, named):
    with pytest.raises(ValueError, match=f"Remove {named}.* from the conditioning.*text-to-video") as refused:
        check(refusals, **{key: torch.ones(1)})
    # What an image-to-video model here would refuse as well is not sent there.
    has_place = key in ("concat_latent_image", "concat_mask", "clip_vision_output")
    assert ("load an image-to-video model" in str(refused.value)) == has_place
    assert ("'Load Diffusion Model' (UNETLoader)" in str(refused.value)) != has_place
    check(refusals, **{key: None})


def test_a_picture_beside_a_control_is_not_sent_to_a_model_that_takes_pictures(refusals):
    with pytest.raises(ValueError, match=r"Remove a picture .* and a VACE control video .*\(UNETLoader\)"):
        check(refusals, concat_latent_image=torch.ones(1), vace_frames=torch.ones(1))


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("guidance", "is distilled into this model"),
        ("pooled_output", "Wan takes its rows"),
        ("width", "the latent gives the size"),
        ("frame_rate", "Wan's frame rate is fixed"),
        ("seconds_total", "is for models of sound"),
    ],
)
def test_what_has_no_effect_is_said_with_its_reason(refusals, caplog, key, reason):
    with caplog.at_level(logging.INFO):
        check(refusals, **{key: 5})
    (record,) = caplog.records
    assert record.levelno == logging.INFO and f"the conditioning's {key} has no effect: " in caplog.text
    assert reason in caplog.text


@pytest.mark.parametrize("keys", [("something_new",), ("a", "b"), ("wan_of_next_year", "guidance")])
def test_what_nobody_knows_is_named_in_a_warning(refusals, caplog, keys):
    check(refusals, **dict.fromkeys(keys, 1))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "is not known to this model and has no effect" in warning
    assert all((key in warning) == (key != "guidance") for key in keys)


def test_what_comfyuis_samplers_heed_is_said_nowhere(refusals, caplog):
    with caplog.at_level(logging.INFO):
        check(refusals, strength=0.5, area=(1, 2, 3, 4), start_percent=0.1, mask=torch.ones(1), uuid="x")
    assert not caplog.records


@pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR (a ComfyUI checkout) is not set")
def test_every_key_that_comfyuis_nodes_write_is_known(refusals):
    known = refusals._HEEDED_KEYS | set(refusals._IDLE_KEYS) | set(refusals._IMAGE_KEYS)
    root, written = Path(os.environ["COMFYUI_DIR"]), {}
    for file in (root / "nodes.py", *(root / "comfy_extras").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            is_setter = isinstance(node, ast.Call) and "conditioning_set_values" in ast.unparse(node.func)
            for table in [each for each in node.args if isinstance(each, ast.Dict)] if is_setter else ():
                written |= {key.value: file.name for key in table.keys if isinstance(key, ast.Constant)}
    assert len(written) > 15
    assert {key: file for key, file in written.items() if key not in known} == {}
