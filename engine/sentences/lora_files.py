"""Sentences of LoRA files."""

from __future__ import annotations

from . import Sentence


class LoraFiles:
    """What a LoRA's file holds, and for what."""

    # lora/keys.py
    OWN_BIAS = Sentence("a bias of its own")
    REPLACED_WEIGHTS = Sentence("replaced weights")
    REFERENCE_BRANCH = Sentence("a reference branch (Stand-In)")
    IMAGE_BRANCH = Sentence("the image branch of an image-to-video model")
    VACE_MODULE = Sentence("a VACE module")
    ADD_ON = Sentence("an add-on")
    LACKED_MODULES = Sentence("modules that this checkpoint lacks")
    BLOCKS_AFTER_LAST = Sentence("blocks after the last of {num_blocks}")
    TEXT_ENCODER = Sentence("a text encoder")
    # lora/reader.py
    NO_LORA = Sentence("what is no part of a LoRA")
    SELF_ATTENTION = Sentence("self-attention")
    CROSS_ATTENTION = Sentence("cross-attention")
    FEED_FORWARD = Sentence("feed-forward")
    FOREIGN = Sentence("{kind} ({num_tensors} tensors, e.g. {example})")
    OF_GROUP = Sentence("{group} ({num_names})")
    ODD_PATTERN = Sentence("a pattern {pattern!r}")
    MANY_PATTERNS = Sentence("{num_patterns} patterns, more than can be looked for")
    EXPECTED = Sentence(
        "expected low-rank pairs (lora_down and lora_up, or lora_A and lora_B) and differences (diff, diff_b, "
        "diff_m) of a Wan2.1 transformer"
    )
    INPUT_OF_36_CHANNELS = Sentence("an input of 36 channels (image to video)")
    ANOTHER_SHAPE = Sentence("another shape")
    NORMS_MODULATION = Sentence("norms and modulation")
    WAN_MODEL_14B = Sentence("a Wan model of 14B")
    OF_OTHER_EXPERT = Sentence("the {expert}-noise expert of Wan2.2")
    FACTOR_FOR = Sentence("A LoRA cannot be applied: its factor for {key}")
    OWN_HALF = Sentence("each gets its own half")
    MODEL_OF_WIDTH = Sentence("a model of that width")
    ONE_HALF = Sentence("this checkpoint is one transformer and gets the {expert}-noise half")
    APPLIES_TO_NOTHING = Sentence(
        "Use a LoRA for this model: {subject} applies to nothing of this checkpoint: {groups}, e.g. {examples}; "
        "{expected}."
    )
    OF_OTHER_FAMILY = Sentence(
        "Use a LoRA for Wan: {subject} is one for {family}, and applies to nothing of this checkpoint. It has layers "
        "such as {examples}."
    )
    STABLE_DIFFUSION = Sentence("Stable Diffusion or SDXL")
    OR_ANOTHER = Sentence("{names} or another model built like it")
    IS_MODEL = Sentence("{advice} {subject} is no LoRA but {kind}: it has tensors such as {examples}.")
    EMBEDDINGS_HEAD = Sentence("embeddings and head")
    OTHER_KIND = Sentence(
        "A LoRA cannot be applied: {key} is to be changed by {kind}, which this transformer does not compute; "
        "{expected}. Remove that LoRA, or use ComfyUI's own Load Diffusion Model for it."
    )
    NO_TARGET = Sentence("A LoRA cannot be applied: this checkpoint has no {key}. Remove that LoRA.")
    OTHER_SHAPE = Sentence(
        "A LoRA cannot be applied: what is to be added to {key} is of {shapes}, the checkpoint's is of {shape}. The "
        "LoRA is for another model; remove it."
    )
    NOT_EXACT = Sentence(
        "{subject} cannot be applied exactly, and so it is not applied at all: it has {kinds}; {expected}. Use a "
        "version of it that was trained or extracted as plain LoRA."
    )
    BOTH_EXPERTS = Sentence("It is for both experts of Wan2.2; {each}.")
    ITS_NUMBER = Sentence("{subject} cannot be used: its {name}")
    NO_TENSORS = Sentence("Download it again, or use another: {subject} holds no tensors; {expected}.")
    OTHER_FAMILY = Sentence(
        "{subject} is for {family}: none of its tensors has the shape of this checkpoint's, whose width is {own}: "
        "{examples}. Use a LoRA for {model}."
    )
    NOT_FINITE = Sentence("{what} is {factor}; expected a finite number. Use another version of the file.")
    DORA = Sentence(
        "A LoRA cannot be applied: {key} is to be changed by DoRA, LoCon or a new shape; {expected}. Remove that LoRA."
    )
    ODD_PATCH = Sentence(
        "A LoRA cannot be applied: its pair for {key} is of {down} and {up}; expected [rank, columns] and "
        "[rows, rank]. Download it again."
    )
    TWICE = Sentence(
        "{subject} has two tensors for the same: {part} and {name}. Two LoRAs may have been put into one file; use "
        "them one by one."
    )
    SEVERAL_LORAS = Sentence(
        "Use a file with one LoRA: {subject} has modules of this checkpoint {num_found} times, under {prefixes}{more}."
    )
    ODD_DTYPE = Sentence(
        "{subject} stores {name} as {dtype}; expected floating point numbers. Use another version of it."
    )
    HALF_A_PAIR = Sentence(
        "{subject} is incomplete: {names} is there without the other half of its pair. Download it again."
    )
    ODD_PAIR = Sentence(
        "{subject} does not fit together: {down} is of {shape} and {up} of {other_shape}; expected [rank, columns] "
        "and [rows, rank]. Download it again."
    )
    ODD_ALPHA = Sentence("{subject} has {name} of shape {shape}; expected one number. Download it again.")
    PEFT_IGNORED = Sentence(
        "Its PEFT settings (adapter_config.json) are not used: {reason}. It is taken as made with an alpha as large as "
        "its rank."
    )
    PEFT_USED = Sentence("It is scaled by {factors}{more} (alpha/rank of adapter_config.json).")
    OTHER_RANK = Sentence("they say rank {rank}, and it has {own}")
    OTHER_MODULES = Sentence("they are for {targets}{more}, and it has {module}")
    NOT_OF_PEFT = Sentence(
        "PEFT's own files are called adapter_model.safetensors or have names that begin with base_model.model, and "
        "this is none"
    )
    SETTINGS_UNREADABLE = Sentence("they cannot be read ({error})")
    NO_LORA_ALPHA = Sentence("they have no lora_alpha")
    BY_SETTINGS = Sentence("{kind}, as its PEFT settings (adapter_config.json) say")
    PEFT_WITHOUT_ALPHA = Sentence(
        "It was saved by PEFT, and adapter_config.json is not beside it: it is taken as made with an alpha as large "
        "as its rank."
    )
    FOR_IMAGE = Sentence(
        "It is a LoRA for image to video; this checkpoint is text to video and has no image branch. The rest applies."
    )
    NAMED_EXPERT = Sentence(
        "Its name says that it is for the {lower}-noise expert of Wan2.2; a Wan2.1 checkpoint has the same layers, "
        "and other weights."
    )
    ANOTHER_SIZE = Sentence("a model of another size")
    PEFT_UNREADABLE = Sentence(
        "Download LoRA {name} again: its PEFT settings, lora_adapter_metadata in it, cannot be read ({error})."
    )
    PEFT_SETTINGS = Sentence("the settings of PEFT")
    ALPHA_ALONE = Sentence("no pair (alpha alone)")
