"""What files and folders make a model."""

from __future__ import annotations

from . import Sentence


class Folders:
    """A checkpoint's files, and the formats of what is in them."""

    # checkpoints/files.py
    NOT_SEARCHED = Sentence("{path} is not searched for checkpoints: {error}")
    NOT_LOOKED_AT = Sentence("not looked at: {error}")
    EXPECTED_TRANSFORMER = Sentence("block_<i>.safetensors with non_block.safetensors, or distill_model.safetensors")
    EXPECTED_AS_IN = Sentence("expected {transformer}, as in {transformer_files}.")
    DIFFUSERS = Sentence("the index of a model in diffusers' layout")
    DIFFUSERS_WAN = Sentence("the index of {name}, Wan in diffusers' layout")
    DIFFUSERS_OTHER = Sentence("the index of {name}, a model of another family in diffusers' layout")
    USE_NATIVE_WAN = Sentence("Use a Wan model with Wan's native names.")
    EXPECTED_PIPELINE = Sentence("the index of a pipeline of diffusers")
    USE_EIGHT_BIT = Sentence("Use the FP8 or INT8 version, or load GGUF with ComfyUI-GGUF.")
    PT = Sentence("a PyTorch .pt file")
    SAFETENSORS_ONLY = Sentence("Transformers are read from safetensors only.")
    PTH = Sentence("a PyTorch .pth file")
    PART_ALONE = Sentence("{path} is {part}. Choose its folder, {name}, instead: all parts lie there.")
    CHOSEN_PRECISION = Sentence("it is the precision chosen")
    EMPTY = Sentence("it is empty")
    NO_TRANSFORMER = Sentence("{path} holds no transformer to load: {there}; {expected}")
    DOES_NOT_EXIST = Sentence("{path} does not exist. Choose a checkpoint folder or file that is there.")
    OTHER_TEXT_ENCODER = Sentence("No {scheme} text encoder is there; {name} is used.")
    BOTH_EXPERTS = Sentence(
        "Set second_expert to 'auto', or choose one expert instead of the folder: {path} has both experts already."
    )
    FILE_OR_FOLDER = Sentence("a safetensors file or a folder of them")
    ONE_OF_BLOCKS = Sentence("one of the files that a model in blocks consists of")
    AUTO_PRECISION = Sentence("precision auto takes what is there, in the order fp8, int8, bf16")
    TWO_EXPERTS = Sentence("two experts of {num_blocks} blocks each, {size} together: {title}")
    PART_IS = Sentence("The {part} is {found}.")
    SHARD = Sentence("part {number} of {total} of a model")
    SIZE = Sentence("{num_blocks} blocks, {size}")
    AND_MORE = Sentence(" and {number} more")
    MISSING_BLOCKS = Sentence("{describe_blocks} missing")
    FOUND = Sentence("found {names}")
    PASSED_OVER = Sentence("{name} is there and cannot be used, so {taken} ({scheme}) is used. {failure}")
    NO_SUCH_PRECISION = Sentence(
        "{path} has no {precision} transformer: found {there}; expected {folder}/. Choose a precision that is "
        "there, or download {folder}/ from {model_repository}."
    )
    FILES_MISSING = Sentence(
        "Download what is missing of {folder}: {num_absent} of {num_expected} files are missing ({absent})."
    )
    LEFT_OVER_FILES = Sentence(
        "Of {folder} {leftovers}{more} are not used: they are not part of the model that its other files make. "
        "Choose one of them by its own name to use it."
    )
    ONE_MISSING = Sentence("{non_block_file} is missing")
    BLOCKS_MISSING = Sentence(
        "{folder} is incomplete: {parts} (expected {names}{more}). Download the missing files from {name}/ of "
        "{model_repository}."
    )
    SEVERAL_TRANSFORMERS = Sentence(
        "Choose one of the files in 'LightX2V Load Transformer' instead of the folder {path}: it holds more than one "
        "transformer. {name} and {other} both have a tensor {twice}."
    )
    BLOCK_COPIED = Sentence(
        "Run `python tools/download.py get NAME --replace` in the pack's folder, or download {path} again, or delete "
        "it where the model has no such file: it is a copy of {other} or of another model, as both hold {twice}, and "
        "not the block that its name says."
    )
    SHARD_COPIED = Sentence(
        "Download {name} and {other} of {path} again: both hold {twice}, so that one is a copy of the other, or of "
        "another model."
    )
    EXPERTS_TOO_MANY = Sentence(
        "Choose {choice} instead of its folder: {other} comes with it. {path} holds {names}, where two make a pair; or "
        "put what does not belong to it elsewhere."
    )
    EXPERTS_UNPAIRED = Sentence(
        "Choose the two that belong together as transformer and second_expert of 'LightX2V Load Transformer': {path} "
        "holds {names}, and names of a pair differ in high and low alone."
    )
    EXPERT_MISSING = Sentence(
        "Put the {other}-noise expert into {path} as {missing}, or choose {name} there, which is the {noise}-noise "
        "expert alone: {path} holds {names}, and a pair is one for high and one for low noise."
    )
    OTHER_PRECISION = Sentence(
        "{candidate} holds {scheme} weights; expected {precision}, as chosen. Choose precision auto or {scheme}, or "
        "another checkpoint."
    )
    TRANSFORMER_IS = Sentence("The transformer is {candidate} ({scheme}, {size}): {why}.")
    BLOCK_TWICE = Sentence(
        "Delete {one} in {folder}, or put it elsewhere: there are two files for one block, and the model's is {other}."
    )
    ODD_INDEX = Sentence("it names files that are no files of its folder")
    NO_INDEX = Sentence("Download {path} again: it is not an index of safetensors shards ({error}).")
    FOREIGN_FILE = Sentence("{advice} {path} holds no transformer to load: {found} is {kind}; {expected}")
    AT_ROOT = Sentence("at the root or ")
    PART_MISSING = Sentence(
        "The {part} is missing: expected {file} in {home}; it is {at_root}in {folder}/ of the model repository "
        "{model_repository}."
    )
    EXPECTED_INDEX = Sentence("an index of safetensors shards")
    # checkpoints/transformers.py
    FIRST_HALF = Sentence("the first half")
    SECOND_HALF = Sentence("the second half")
    ONE_EXPERT = Sentence(
        "{title} is the {noise}-noise expert of Wan2.2 alone, which is for {half} of the steps: add the "
        "{other}-noise expert (second_expert of 'LightX2V Load Transformer', or a folder with both in 'LightX2V Load "
        "Checkpoint'), or sample with one after the other."
    )
    EXPERTS_BY_WORD = Sentence(
        "Choose 'alone' as second_expert of 'LightX2V Load Transformer' if these are two models and not both experts "
        "of one: only the words high and low in their names make {title} a pair."
    )
    SAME_NOISE = Sentence(
        "Choose a {other_noise}-noise file beside {title}: {other} is the {noise}-noise expert by its name too. Where "
        "a name is wrong, say with 'expert' of 'LightX2V Load Transformer' which the first one is."
    )
    UNKNOWN_NOISE = Sentence(
        "Say with 'expert' of 'LightX2V Load Transformer' which of {title} and {other} is the high-noise expert, "
        "or rename them: expected 'high' and 'low' in their names, and nothing else in a file tells them apart."
    )
    BOTH_TITLES = Sentence("{title} and {other}")
    DIFFERENCE = Sentence("{name} {value} and {other}")
    SAME_EXPERT = Sentence(
        "Choose or download the other expert for one of {title} and {other}: they have the same content. Wan2.2 needs "
        "two different transformers, one for high and one for low noise."
    )
    SAME_PART = Sentence(
        "Download {path} and {other} again: they have the same content, so that one is a copy of the other, and every "
        "block of two experts differs."
    )
    FEWER_BLOCKS = Sentence(
        "Download the rest of {title}: it has {num_blocks} blocks and {other} has {num_others}, and both experts of a "
        "model have as many."
    )
    OTHER_SIZES = Sentence(
        "Choose two experts of the same model: {title} and {other} differ in {found}. Image to video (in_dim 36) "
        "does not go with text to video (in_dim 16)."
    )
    WITH_IMAGE_BRANCH = Sentence(
        "Set second_expert to 'alone': {title} and {other} have an image branch, which the experts of Wan2.2 have "
        "not; Wan2.1's image-to-video is one transformer."
    )
    TWO_PRECISIONS = Sentence(
        "Choose both experts in one precision: {title} is {precision}, {other} is {other_precision}; they share "
        "buffers and kernels."
    )
    # checkpoints/formats.py
    THE_FILE = Sentence("The file")
    BLOCKS_MISSING_IN_FILE = Sentence(
        "{source} is incomplete: {describe_blocks} missing. Download it again from {transformer_files}."
    )
    AND_IMAGE_BRANCH = Sentence(" and has an image branch")
    OTHER_CHANNELS = Sentence(
        "{source} takes {in_dim} and returns {out_dim} latent channels{branch}; expected {in_dims} (text-to-video) "
        "or {image_in_dim} (image-to-video) and {latent_channels}. Use {transformer_files}."
    )
    T5_V11 = Sentence(
        "{source} is a T5 v1.1 encoder, as Flux and SD3 use (only its first block has a relative_attention_bias); "
        "expected {wanted}. Use {usable}."
    )
    TEXT_BLOCKS_MISSING = Sentence("{source} is incomplete: {describe_blocks} missing. Download it again.")
    ODD_HEADS = Sentence(
        "{source} has attention of {d_kv} columns for {num_heads} heads; expected a multiple. Use {usable}."
    )
    PLAIN_CAST = Sentence(
        "{source} holds FP8 weights without scales: they are taken as a plain cast of the original. Of small weights a "
        "scaled file keeps more."
    )
    OTHER_VAE = Sentence(
        "Use {vae}: {source} is a VAE of {z_dim} latent channels (48: Wan2.2 5B) and {channels} image channels; "
        "expected {latent_channels} and 3."
    )
    VAE_IN_OTHER_DTYPE = Sentence("Use {vae}: {source} is a VAE in {dtypes}; expected BF16, F16 or F32.")
    ODD_STAGES = Sentence(
        "{source} has decoder stages of widths {stages}; expected the same number of blocks of one width in each. "
        "Use {usable}."
    )
    # pipeline.py
    TOKENIZER_IS = Sentence("the tokenizer is {where}.")
    TOKENIZER_INSIDE = Sentence("the one in {path}")
    NO_TRANSFORMER_IN = Sentence("{path} holds no transformer. {problem}")
    TWO_TRANSFORMERS = Sentence("two experts: {high} (high noise) and {low} (low noise).")
