"""Which files are the two experts of Wan2.2: by names and folders, and what is refused."""

import os
import shutil
from pathlib import Path

import pytest
from lightx2v_pack.engine import pipeline
from lightx2v_pack.engine.checkpoints.files import (
    list_checkpoint_folders,
    resolve_checkpoint,
    resolve_experts,
    resolve_transformer,
)
from lightx2v_pack.engine.checkpoints.transformers import noise_of
from lightx2v_pack.engine.errors import CheckpointError
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings
from lightx2v_pack.tools import make_tiny_checkpoint as tiny
from support import checkpoints
from support.checkpoints import expert_files, expert_weights, experts

SMALLER = tiny.TinySizes(dim=128)


def put(folder, **files):
    """Lay experts into a folder under these names; values: high | low, or (high | low, precision)."""
    for name, content in files.items():
        noise, precision = content if isinstance(content, tuple) else (content, "bf16")
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        tiny.write_single_file(path, expert_weights(noise), precision)
    return folder


def names_of(files):
    return [each.files[0].relative_to(each.files[0].parents[1]).as_posix() for each in files.experts]


# By names


@pytest.mark.parametrize(
    ("name", "noise"),
    [
        ("wan2.2_i2v_A14b_high_noise_scaled_fp8_e4m3_lightx2v_4step.safetensors", "high"),
        ("wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors", "low"),
        ("Wan2.2-T2V-A14B-HighNoise-Q4_K_M.safetensors", "high"),
        ("low-noise.safetensors", "low"),
        ("high_noise_model", "high"),
        ("WanHighNoise.safetensors", "high"),
        ("wan2.1_t2v_14b_high_quality.safetensors", ""),  # a word that may mean anything
        ("wan_below_noise.safetensors", ""),
        ("distill_model.safetensors", ""),
    ],
)
def test_a_name_says_which_expert_it_is(name, noise):
    assert noise_of(Path("models") / name) == noise


@pytest.mark.parametrize(
    ("high", "low"),
    [
        ("wan2.2_t2v_A14b_high_noise_fp8_4step", "wan2.2_t2v_A14b_low_noise_fp8_4step"),
        ("Wan2.2-A14B-HighNoise-v2", "Wan2.2-A14B-LowNoise-v2"),
        ("WAN22_HIGH", "WAN22_LOW"),
        ("wan22-high-lightning", "wan22-low-lightning"),
        ("high_noise_model/model", "low_noise_model/model"),
        ("HighNoise/Wan2.2-HighNoise-Q8", "LowNoise/Wan2.2-LowNoise-Q8"),
        ("high/wan", "low/wan"),
    ],
)
def test_either_file_brings_the_other_one(tmp_path, high, low):
    """Also beside files of other models and precisions."""
    put(tmp_path, **{high: "high", low: "low", f"{Path(high).parent}/other": "high"})
    for name in (high, low):
        files = resolve_experts(tmp_path / f"{name}.safetensors")
        assert [each.files for each in files.experts] == [(tmp_path / f"{each}.safetensors",) for each in (high, low)]
        assert files.names == ("high", "low")
        # Names that say neither noise nor Wan2.2 may be those of two models.
        assert bool(files.warnings) == (high == "high/wan")


def test_a_name_with_both_words_finds_the_file_that_is_there(tmp_path):
    put(tmp_path, high_quality_low_noise="low", high_quality_high_noise="high")
    files = resolve_experts(tmp_path / "high_quality_high_noise.safetensors")
    assert [each.files[0].stem for each in files.experts] == ["high_quality_high_noise", "high_quality_low_noise"]


def test_what_is_no_expert_stays_alone(tmp_path):
    put(tmp_path, wan21_high_quality="high", wan21="low")
    files = resolve_experts(tmp_path / "wan21_high_quality.safetensors")
    assert files.second is None and files.names == ("",) and not files.warnings


def test_alone_is_as_it_says_and_says_so(tmp_path):
    put(tmp_path, x_high_noise="high", x_low_noise="low")
    files = resolve_experts(tmp_path / "x_low_noise.safetensors", "alone")
    assert files.second is None and files.names == ("low",)
    assert files.warnings[0].startswith("x_low_noise.safetensors is the low-noise expert of Wan2.2 alone")
    assert "high-noise expert" in files.warnings[0]


def test_names_that_say_nothing_need_a_choice(tmp_path):
    put(tmp_path, one="high", two="low")
    one, two = (tmp_path / f"{name}.safetensors" for name in ("one", "two"))
    with pytest.raises(CheckpointError, match="Say with 'expert'"):
        resolve_experts(one, two)
    assert resolve_experts(one, two, "high").files == (one,) == resolve_experts(two, one, "low").files
    assert resolve_experts(one, "alone", "low").names == ("low",)


def test_one_name_is_enough(tmp_path):
    put(tmp_path, one_low_noise="low", two="high")
    one, two = (tmp_path / f"{name}.safetensors" for name in ("one_low_noise", "two"))
    assert resolve_experts(one, two).files == resolve_experts(two, one).files == (two,)


def test_a_choice_goes_before_names(tmp_path):
    put(tmp_path, x_high_noise="high", x_low_noise="low")
    files = resolve_experts(tmp_path / "x_high_noise.safetensors", first_is="low")
    assert files.files[0].stem == "x_low_noise"


# Folders


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
def test_a_folder_with_two_folders_or_two_files_is_a_pair(precision):
    for folder in (experts(precision), expert_files(precision)):
        files = resolve_transformer(folder)
        assert files.names == ("high", "low")
        assert files.total_bytes == sum(each.num_bytes for each in files.experts)
        assert resolve_checkpoint(folder).transformer == files


def test_a_folder_of_an_expert_brings_its_counterpart():
    folder = experts()
    assert resolve_experts(folder / "low_noise_model") == resolve_transformer(folder)
    assert resolve_checkpoint(folder / "high_noise_model").transformer == resolve_transformer(folder)
    alone = resolve_experts(folder / "high_noise_model", "alone")
    assert (alone.names, alone.second) == (("high",), None)


def test_a_repository_has_its_precisions_and_companions(tmp_path):
    shutil.copytree(checkpoints.repository(), tmp_path, dirs_exist_ok=True)
    for precision in ("fp8", "int8"):
        folder = tmp_path / f"distill_{precision}"
        for file in folder.glob("*block*.safetensors"):
            file.unlink()
        shutil.copytree(experts(precision), folder, dirs_exist_ok=True)
    found = resolve_checkpoint(tmp_path)
    assert found.transformer.format.precision == "fp8" and found.transformer.names == ("high", "low")
    assert not found.missing and found.vae.parent == found.text_encoder.parent == tmp_path / "distill_fp8"
    assert resolve_checkpoint(tmp_path, "int8").transformer.format.precision == "int8"
    assert any("two experts" in note for note in found.notes)


def test_folders_are_listed_with_what_holds_both(tmp_path):
    shutil.copytree(experts(), tmp_path / "wan22", copy_function=os.symlink)
    shutil.copytree(experts(), tmp_path / "repo" / "distill_fp8", copy_function=os.symlink)
    assert list_checkpoint_folders(tmp_path) == [
        "repo", "repo/distill_fp8", "repo/distill_fp8/high_noise_model", "repo/distill_fp8/low_noise_model",
        "wan22", "wan22/high_noise_model", "wan22/low_noise_model",
    ]  # fmt: skip


def test_several_pairs_in_a_folder_are_chosen_from(tmp_path):
    put(tmp_path, a_high_noise="high", a_low_noise="low", b_high_noise=("high", "fp8"), b_low_noise=("low", "fp8"))
    with pytest.raises(CheckpointError, match=r"Choose one of the files in .* instead of the folder"):
        resolve_transformer(tmp_path)
    assert resolve_experts(tmp_path / "b_low_noise.safetensors").format.precision == "fp8"


# What is refused


def test_the_same_transformer_twice(tmp_path):
    """The same file, by another name, by a link of either kind, and as a copy."""
    put(tmp_path, x_high_noise="high")
    file = tmp_path / "x_high_noise.safetensors"
    os.symlink(file, tmp_path / "soft_low_noise.safetensors")
    os.link(file, tmp_path / "hard_low_noise.safetensors")
    shutil.copy(file, tmp_path / "copy_low_noise.safetensors")
    for name in ("x_high_noise", "soft_low_noise", "hard_low_noise", "copy_low_noise"):
        with pytest.raises(CheckpointError, match="have the same content"):
            resolve_experts(file, tmp_path / f"{name}.safetensors", "high")
    shutil.copytree(experts() / "high_noise_model", tmp_path / "pair" / "high_noise_model")
    shutil.copytree(experts() / "high_noise_model", tmp_path / "pair" / "low_noise_model")
    with pytest.raises(CheckpointError, match="have the same content"):
        resolve_transformer(tmp_path / "pair")


HIGH, LOW = "high_noise_model", "low_noise_model"


@pytest.mark.parametrize(
    ("folders", "choice", "other"),
    [
        ({HIGH: HIGH, LOW: LOW, "high_noise_model_v2": HIGH}, HIGH, LOW),
        ({HIGH: HIGH, LOW: LOW, "low_noise_model - Copy": LOW}, HIGH, LOW),
        ({"a_HighNoise": HIGH, "a_LowNoise": LOW, "b_HighNoise": HIGH, "b_LowNoise": LOW}, "a_HighNoise", "a_LowNoise"),
    ],
)
@pytest.mark.parametrize("resolve", [resolve_checkpoint, resolve_transformer])
def test_more_folders_of_experts_than_a_pair_say_which_to_choose(tmp_path, folders, choice, other, resolve):
    for name, source in folders.items():
        shutil.copytree(experts() / source, tmp_path / "a14b" / name)
    with pytest.raises(CheckpointError) as found:
        resolve(tmp_path / "a14b")
    assert str(found.value).startswith(f"Choose a14b/{choice} instead of its folder: {other} comes with it.")
    # What it says is on offer, and leads to the pair.
    assert f"a14b/{choice}" in list_checkpoint_folders(tmp_path)
    files = resolve_checkpoint(tmp_path / "a14b" / choice).transformer
    assert [each.files[0].parent.name for each in files.experts] == [choice, other]


def test_folders_of_experts_that_are_no_pair_by_their_names(tmp_path):
    for name, source in {"one_high_noise": HIGH, "two_low_noise": LOW, "three_low_noise": LOW}.items():
        shutil.copytree(experts() / source, tmp_path / name)
    with pytest.raises(CheckpointError, match="as transformer and second_expert of 'LightX2V Load Transformer'"):
        resolve_checkpoint(tmp_path)
    assert resolve_experts(tmp_path / "one_high_noise", tmp_path / "two_low_noise").names == ("high", "low")


@pytest.mark.parametrize("there", [[HIGH], [LOW], [HIGH, "high_noise_model_v2"]])
@pytest.mark.parametrize("has_empty_folder", [False, True])
def test_a_folder_of_one_expert_says_what_is_missing_and_where_it_goes(tmp_path, there, has_empty_folder):
    missing = LOW if HIGH in there else HIGH
    for name in there:
        shutil.copytree(experts() / (HIGH if "high" in name else LOW), tmp_path / "a14b" / name)
    if has_empty_folder:
        (tmp_path / "a14b" / missing).mkdir()
    for resolve in (resolve_checkpoint, resolve_transformer):
        with pytest.raises(CheckpointError) as found:
            resolve(tmp_path / "a14b")
        noise = missing.partition("_")[0]
        assert f"Put the {noise}-noise expert into {tmp_path / 'a14b'} as {missing}, or choose {there[0]}" in str(
            found.value
        )
    # Either way out is one.
    alone = resolve_checkpoint(tmp_path / "a14b" / there[0]).transformer
    assert alone.second is None and len(alone.warnings) == 1
    if there == [HIGH]:
        shutil.copytree(experts() / missing, tmp_path / "a14b" / missing, dirs_exist_ok=True)
        assert resolve_checkpoint(tmp_path / "a14b").transformer.names == ("high", "low")


def test_an_expert_that_is_not_whole_is_the_one_that_is_named(tmp_path):
    shutil.copytree(experts(), tmp_path, dirs_exist_ok=True)
    (tmp_path / LOW / "block_1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"Download the rest of \S+/{LOW}: it has 1 blocks and \S+/{HIGH} has 2"):
        resolve_transformer(tmp_path)


def test_a_block_of_the_other_expert_is_seen(tmp_path):
    shutil.copytree(experts(), tmp_path, dirs_exist_ok=True)
    shutil.copy(tmp_path / HIGH / "block_1.safetensors", tmp_path / LOW)
    with pytest.raises(CheckpointError, match=rf"{HIGH}/block_1.safetensors and .*{LOW}/block_1.safetensors again"):
        resolve_transformer(tmp_path)


def test_two_of_a_kind(tmp_path):
    put(tmp_path, x_high_noise="high", y_high_noise="low")
    with pytest.raises(CheckpointError, match=r"Choose a low-noise file beside x_high_noise.*by its name too"):
        resolve_experts(tmp_path / "x_high_noise.safetensors", tmp_path / "y_high_noise.safetensors")


def test_experts_of_two_models(tmp_path):
    put(tmp_path, x_high_noise="high")
    tiny.write_single_file(tmp_path / "x_low_noise.safetensors", expert_weights("low", SMALLER), "bf16")
    with pytest.raises(CheckpointError, match="differ in dim 256 and 128"):
        resolve_experts(tmp_path / "x_high_noise.safetensors")


def test_experts_of_two_precisions(tmp_path):
    put(tmp_path, x_high_noise="high", x_low_noise=("low", "fp8"))
    with pytest.raises(CheckpointError, match=r"in one precision.*is bf16.*is fp8"):
        resolve_experts(tmp_path / "x_high_noise.safetensors")


def test_a_third_expert(tmp_path):
    put(tmp_path, other="low")
    with pytest.raises(CheckpointError, match="has both experts already"):
        resolve_experts(experts(), tmp_path / "other.safetensors")


def test_a_damaged_counterpart_is_an_error_and_not_left_out(tmp_path):
    put(tmp_path, x_high_noise="high", x_low_noise="low")
    low = tmp_path / "x_low_noise.safetensors"
    os.truncate(low, 1000)
    with pytest.raises(CheckpointError, match=r"x_low_noise\.safetensors"):
        resolve_experts(tmp_path / "x_high_noise.safetensors")


# As checkpoints


def test_a_whole_checkpoint_of_a_pair_loads(caplog):
    with caplog.at_level("INFO"):
        loaded = pipeline.load_checkpoint(experts(), settings=EngineSettings(), offload=OffloadSettings())
    assert loaded.transformer.files.names == ("high", "low")
    assert "two experts of 2 blocks each, " in caplog.text
