"""Two experts of Wan2.2 as one MODEL, through ComfyUI's own samplers. Needs COMFYUI_DIR.

On the CPU, on tiny weights. Differences are shares of the latents' spread.
"""

from pathlib import Path

import pytest
from support import checkpoints
from support.comfy_server import ROOT, comfyui_dir, run_in_comfyui

SCRIPT = Path(__file__).parent / "in_comfy" / "experts.py"
FLOAT32 = 1e-4
HIGH, LOW = [0, 0], [1, 1]


@pytest.fixture(scope="module")
def found():
    comfyui_dir()
    return run_in_comfyui(SCRIPT, ROOT, checkpoints.experts("fp8"))


def test_ksampler_gives_the_latents_of_ours_bit_for_bit(found):
    assert found["ksampler"] == 0
    assert found["report"] == ["high", "high", "low", "low"]


def test_the_next_expert_is_announced(found):
    assert found["ours"] == found["turns"] == [[0, 0], [0, 1], [1, 1], [1, 0]]


def test_the_number_of_the_step_decides_whatever_shift_and_steps(found):
    difference, turns = found["another shift"]
    assert difference < FLOAT32 and [expert for expert, _ in turns] == HIGH + LOW
    assert found["eight steps"] == ["high"] * 4 + ["low"] * 4
    assert found["heun"] == [0, 1]


def test_samplers_that_do_a_part_have_the_experts_of_that_part(found):
    assert found["two samplers"] < FLOAT32 and found["turns of two samplers"] == HIGH + LOW
    assert set(found["video to video"]) == {"low"}


def test_two_models_one_behind_the_other_give_the_same(found):
    assert found["two models"] < FLOAT32


def test_a_batch_changes_over_once(found):
    turns, difference = found["batch"]
    assert [expert for expert, _ in turns] == [0] * 4 + [1] * 4 and difference < FLOAT32
    assert turns[3] == [0, 1] and turns[2] == [0, 0]
    assert found["guided"] == [0] * 4 + [1] * 4


def test_ours_through_comfyuis_samplers_has_its_own_number_of_steps(found):
    assert found["by ComfyUI"] < FLOAT32
    difference, differs = found["by ComfyUI with one step"]
    assert difference < FLOAT32 and differs


def test_a_lora_of_comfyuis_loader_goes_on_both(found):
    difference, differs = found["LoRA"]
    assert difference < FLOAT32 and differs


def test_the_memory_manager_has_both_as_one(found):
    assert found["entries"] == [1, True] and found["unloaded"] and found["again"] == 0
