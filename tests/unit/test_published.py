"""The table of published variants: what is chosen from a repository's listing."""

import pytest
from lightx2v_pack.engine.checkpoints.kinds import MODEL_REPOSITORY
from lightx2v_pack.engine.checkpoints.published import (
    ALL_PUBLISHED,
    COMFY_REPOSITORY,
    DOWNLOAD_PROBLEMS,
    PUBLISHED,
    PUBLISHED_IMAGE_MODELS,
    PUBLISHED_LORAS,
    PUBLISHED_ORDINARY,
    SINGLE_FILE_REPOSITORY,
    DownloadError,
    choose_files,
    find_variant,
)

FOLDER = "lightx2v/Wan2.1-T2V-14B-StepDistill-CfgDistill-Lightx2v"
TOKENIZER = ["special_tokens_map.json", "spiece.model", "tokenizer.json", "tokenizer_config.json"]


def listing(*, companions_at="{folder}/", tokenizer_at="", config_at=""):
    """Return the model repository's paths, with its companions where different times had them."""
    paths = ["README.md", "loras/Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank64.safetensors", ".gitattributes"]
    for folder, precision in (("distill_fp8", "fp8"), ("distill_int8", "int8"), ("distill_models", "bf16")):
        blocks = [f"{folder}/block_{index}.safetensors" for index in range(40)]
        paths += [*blocks, f"{folder}/non_block.safetensors"] if precision != "bf16" else []
        paths += [f"{folder}/distill_model.safetensors"] if precision == "bf16" else []
        companions = companions_at.format(folder=folder)
        paths += [f"{companions}models_t5_umt5-xxl-enc-{precision}.pth", f"{companions}Wan2.1_VAE.pth"]
        paths += [f"{tokenizer_at.format(folder=folder)}google/umt5-xxl/{name}" for name in TOKENIZER]
        paths += [f"{config_at.format(folder=folder)}config.json"]
    return set(paths)


def targets(variant, paths):
    return [file.target.removeprefix(f"{FOLDER}/") for file in choose_files(variant, {MODEL_REPOSITORY: paths})]


@pytest.mark.parametrize("companions_at", ["{folder}/", ""])
@pytest.mark.parametrize("tokenizer_at", ["{folder}/", ""])
@pytest.mark.parametrize("config_at", ["{folder}/", ""])
def test_a_precision_brings_everything_it_needs_and_nothing_else(companions_at, tokenizer_at, config_at):
    paths = listing(companions_at=companions_at, tokenizer_at=tokenizer_at, config_at=config_at)
    for name, folder in (("fp8", "distill_fp8"), ("int8", "distill_int8"), ("bf16", "distill_models")):
        companions, tokenizer, config = (at.format(folder=folder) for at in (companions_at, tokenizer_at, config_at))
        blocks = [f"{folder}/block_{index}.safetensors" for index in range(40)] + [f"{folder}/non_block.safetensors"]
        expected = {
            *(blocks if name != "bf16" else [f"{folder}/distill_model.safetensors"]),
            f"{companions}models_t5_umt5-xxl-enc-{name}.pth",
            f"{companions}Wan2.1_VAE.pth",
            f"{config}config.json",
            *(f"{tokenizer}google/umt5-xxl/{file}" for file in TOKENIZER),
        }
        assert sorted(targets(PUBLISHED[name], paths)) == sorted(expected)


def test_a_companion_that_only_another_folder_has_is_taken_from_there():
    paths = {path for path in listing(tokenizer_at="{folder}/") if not path.startswith("distill_fp8/google/")}
    tokenizer = [target for target in targets(PUBLISHED["fp8"], paths) if "google" in target]
    assert tokenizer == [f"distill_int8/google/umt5-xxl/{name}" for name in TOKENIZER]


@pytest.mark.parametrize(
    ("gone", "what"),
    [("non_block", "rest of the transformer"), ("umt5-xxl-enc-fp8", "text encoder"), ("google", "tokenizer")],
)
def test_a_part_that_is_gone_is_named(gone, what):
    paths = {path for path in listing() if gone not in path}
    with pytest.raises(DownloadError, match=f"The {what} is not in {MODEL_REPOSITORY}") as caught:
        targets(PUBLISHED["fp8"], paths)
    assert caught.value.problem == "missing"


@pytest.mark.parametrize("path", ["google/umt5-xxl/../../../../evil.py", r"google/umt5-xxl/..\..\..\evil.py"])
def test_a_listing_cannot_lead_outside_the_models_folder(path):
    with pytest.raises(DownloadError, match="outside the models folder"):
        targets(PUBLISHED["fp8"], listing() | {path})


@pytest.mark.parametrize("name", ["fp8-single", "fp8-comfyui", "int8-single", "bf16-single"])
def test_single_files_go_where_comfyui_looks_for_them(name):
    variant = PUBLISHED[name]
    listings = {repository: set() for repository in variant.repositories}
    for part in variant.parts:
        listings[part.repository].update((part.patterns[0], "README.md"))
    chosen = choose_files(variant, listings)
    assert [file.target.partition("/")[0] for file in chosen] == ["diffusion_models", "text_encoders", "vae"]
    assert all(file.target.count("/") == 1 for file in chosen)
    assert variant.entry == chosen[0].target
    assert variant.repositories == (SINGLE_FILE_REPOSITORY, COMFY_REPOSITORY)


def test_table_is_consistent():
    assert list(PUBLISHED) == [variant.name for variant in PUBLISHED.values()]
    for variant in PUBLISHED.values():
        assert variant.name.startswith(variant.precision)
        assert variant.is_folder == (variant.entry == FOLDER)
        assert all(part.num_bytes > 0 for part in variant.parts)
    # Totals of the repository's listing.
    sizes = {name: round(PUBLISHED[name].num_bytes / 1e9, 1) for name in ("fp8", "int8", "bf16")}
    assert sizes == {"fp8": 22.3, "int8": 22.3, "bf16": 40.5}
    assert len(set(DOWNLOAD_PROBLEMS)) == len(DOWNLOAD_PROBLEMS)


def test_unknown_variant_lists_the_known_ones():
    with pytest.raises(ValueError, match="'fp4'; expected one of: fp8, int8, bf16, "):
        find_variant("fp4")


@pytest.mark.parametrize("name", PUBLISHED_LORAS)
def test_a_lora_goes_where_the_lora_node_looks_and_says_what_it_is_for(name):
    lora = find_variant(name)
    listing = {lora.parts[0].repository: {"README.md", *(part.patterns[0] for part in lora.parts)}}
    chosen = choose_files(lora, listing)
    assert lora.is_lora and not lora.is_folder
    assert [file.target.partition("/")[0] for file in chosen] == ["loras"] * len(lora.parts)
    assert len(chosen) == (2 if name.endswith("loras") else 1)
    model = " ".join(name.split("-")[:2]).replace("wan", "Wan").replace("t2v", "T2V").replace("i2v", "I2V")
    assert f"an ordinary {model} " in lora.summary and "4 steps" in lora.summary


@pytest.mark.parametrize("name", PUBLISHED_IMAGE_MODELS)
def test_an_image_model_comes_with_all_that_its_nodes_load(name):
    variant = find_variant(name)
    listings = {repository: set() for repository in variant.repositories}
    for part in variant.parts:
        listings[part.repository].update((part.patterns[0], "README.md"))
    folders = [file.target.partition("/")[0] for file in choose_files(variant, listings)]
    transformers = ["diffusion_models"] * (2 if name.startswith("wan2.2") else 1)
    vision = ["clip_vision"] if name.startswith("wan2.1") else []
    assert folders == [*transformers, "text_encoders", "vae", *vision]
    assert variant.precision in name and variant.entry.startswith("diffusion_models/wan2.")
    assert ("high_noise" in variant.entry) == name.startswith("wan2.2")


def test_names_of_models_and_loras_are_different():
    tables = (PUBLISHED, PUBLISHED_IMAGE_MODELS, PUBLISHED_LORAS, PUBLISHED_ORDINARY)
    assert len(ALL_PUBLISHED) == sum(map(len, tables))
    assert not any(variant.is_lora for variant in PUBLISHED.values())


@pytest.mark.parametrize("name", PUBLISHED_LORAS)
def test_an_ordinary_model_is_there_for_every_lora_with_all_that_its_nodes_load(name):
    models = [model for model in PUBLISHED_ORDINARY.values() if f"LoRA {name} " in model.summary]
    assert models
    for model in models:
        listings = {repository: set() for repository in model.repositories}
        for part in model.parts:
            listings[part.repository].update((part.patterns[0], "README.md"))
        files = [file.target for file in choose_files(model, listings)]
        assert "not distilled" in model.summary and model.name.startswith(name.rpartition("-")[0])
        assert sum(file.startswith("diffusion_models/wan2.") for file in files) == (2 if "wan2.2" in name else 1)
        assert {"text_encoders", "vae"} < {file.partition("/")[0] for file in files}
        assert any(file.startswith("clip_vision/") for file in files) == (name == "wan2.1-i2v-lora")
        assert not any("lightx2v" in file for file in files)
