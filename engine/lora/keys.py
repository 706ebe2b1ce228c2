"""What the names in a LoRA file mean: the conventions of the field, as tables. Pure.

A name is a prefix, a module and a part: `lora_unet_` + `blocks_0_self_attn_q` + `.lora_down.weight`. Modules are looked
up among the spellings of every module that the checkpoint has, dots and underscores alike; nothing is turned back from
underscores by rule.

Sources: Wan2.1 wan/modules/model.py (native names), diffusers loaders/lora_conversion_utils.py (its names of the same),
kohya-ss/musubi-tuner networks/lora_wan.py and convert_lora.py, ostris/ai-toolkit wan22_14b_model.py,
tdrussell/diffusion-pipe models/wan, ModelTC/LightX2V lightx2v/utils/lora_loader.py, ComfyUI comfy/lora.py and
comfy/weight_adapter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..sentences.lora_files import LoraFiles

# The end of a name -> its part. The first row that matches is taken.
_PARTS = (
    # `.default` is the name of a PEFT adapter, which may be another.
    (re.compile(r"(?:\.lora_(?:down|A)|[._]lora\.down|\.lora_linear_layer\.down)(?:\.[\w-]+)?(?:\.weight)?$"), "down"),
    (re.compile(r"(?:\.lora_(?:up|B)|[._]lora\.up|\.lora_linear_layer\.up)(?:\.[\w-]+)?(?:\.weight)?$"), "up"),
    (re.compile(r"\.(?:lora_)?alpha$"), "alpha"),
    (re.compile(r"\.(?:diff|w_norm)$"), "weight"),
    (re.compile(r"\.(?:diff_b|b_norm)$"), "bias"),
    (re.compile(r"\.diff_m$"), "modulation"),
)
# What changes weights in another way: kind, and how the names of its tensors end.
_FOREIGN_PARTS = (
    ("DoRA", re.compile(r"\.(?:dora_scale|lora_magnitude_vector(?:\.[\w.-]+)?)$")),
    ("LoHa", re.compile(r"\.hada_[wt]\d(?:_[ab])?$")),
    ("LoKr", re.compile(r"\.lokr_[wt]\d(?:_[ab])?$")),
    ("OFT", re.compile(r"\.(?:oft_\w+|rescale)(?:\.[\w.-]+)?$")),
    ("GLoRA", re.compile(r"\.[ab][12]\.weight$")),
    ("(IA)3", re.compile(r"\.on_input$")),
    ("LoCon (Tucker)", re.compile(r"\.lora_mid(?:\.\w+)?$")),
    (LoraFiles.OWN_BIAS(), re.compile(r"\.lora_(?:A|B|up|down)(?:\.[\w-]+)?\.bias$")),
    (LoraFiles.REPLACED_WEIGHTS(), re.compile(r"\.(?:set_weight|reshape_weight)$")),
    (LoraFiles.REFERENCE_BRANCH(), re.compile(r"_loras\.(?:down|up)\.weight$")),
)
# How much of a name's end is looked at for them: the longest is of an adapter's name.
_MAX_ENDING = 100
# Of other models, in names without dots: down_blocks, double_blocks, transformer_blocks ...
_OTHER_BLOCKS = re.compile(r"(?:down|up|mid|input|output|middle|single|double|joint|transformer)_blocks?_\d")
# Before a module's name, dots as underscores; taken off again and again, longest first, up to so many.
_MOST_PREFIXES = 12
_PREFIXES = sorted(
    (
        "_",
        "base_model_model_",
        "diffusion_model_",
        "dit_",
        "lora_transformer_",
        "lora_unet_",
        "lycoris_",
        "model_",
        "module_",
        "pipe_",
        "transformer_",
        "unet_",
    ),
    key=len,
    reverse=True,
)
# What torch and PEFT put around a module: names of the wrapper, wherever they stand.
# Source: torch _dynamo/eval_frame.py, distributed/fsdp and distributed/algorithms/_checkpoint; PEFT tuners_utils.py.
_WRAPPER = re.compile(
    r"(?:(?<=[._])|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_layer)[._]|[._]base_layer$"
)
# Wan2.2's two experts in one file: ai-toolkit's names, of which diffusers has the second.
_EXPERTS = {"transformer_1_": "high", "transformer_2_": "low"}
_TEXT_ENCODER = re.compile(r"(?:^|[._])(?:lora_te\d?_|text_encoders?\d?[._]|te\d?\.|text_model[._]|t5xxl|umt5)")

# Native name -> diffusers' name, by parts of a module's name. Its norm2 is the native norm3: the one with weights.
_DIFFUSERS = (
    (r"\.self_attn\.", ".attn1."),
    (r"\.cross_attn\.", ".attn2."),
    (r"\.([qkv])$", r".to_\1"),
    (r"\.o$", ".to_out.0"),
    (r"\.([kv])_img$", r".add_\1_proj"),
    (r"\.norm_k_img$", ".norm_added_k"),
    (r"\.norm3$", ".norm2"),
    (r"\.ffn\.0$", ".ffn.net.0.proj"),
    (r"\.ffn\.2$", ".ffn.net.2"),
    (r"^text_embedding\.0$", "condition_embedder.text_embedder.linear_1"),
    (r"^text_embedding\.2$", "condition_embedder.text_embedder.linear_2"),
    (r"^time_embedding\.0$", "condition_embedder.time_embedder.linear_1"),
    (r"^time_embedding\.2$", "condition_embedder.time_embedder.linear_2"),
    (r"^time_projection\.1$", "condition_embedder.time_proj"),
    (r"^img_emb\.proj\.0$", "condition_embedder.image_embedder.norm1"),
    (r"^img_emb\.proj\.1$", "condition_embedder.image_embedder.ff.net.0.proj"),
    (r"^img_emb\.proj\.3$", "condition_embedder.image_embedder.ff.net.2"),
    (r"^img_emb\.proj\.4$", "condition_embedder.image_embedder.norm2"),
    (r"^head\.head$", "proj_out"),
)
# Modules of other Wan models, by their names with underscores: what they are part of.
_ELSEWHERE = (
    (
        re.compile(
            r"blocks_\d+_cross_attn_(?:norm_)?[kv]_img$|blocks_\d+_attn2_(?:add_[kv]_proj|norm_added_k)$"
            r"|img_emb_|condition_embedder_image_embedder_|^image_embedder_"
        ),
        LoraFiles.IMAGE_BRANCH(),
    ),
    (re.compile(r"vace_(?:blocks|patch_embedding)"), LoraFiles.VACE_MODULE()),
    (
        re.compile(r"^(?:blocks_\d+_)?(?:face_adapter|motion_encoder|audio_|casual_audio|control_adapter)"),
        LoraFiles.ADD_ON(),
    ),
)
# Of LoRAs for models that are none of Wan's: a part of their names with underscores, and what has it.
# Sources: diffusers' transformers and unets of these models, Stability-AI generative-models, black-forest-labs/flux.
_FAMILIES = tuple(
    (re.compile(pattern), family)
    for pattern, family in (
        (
            r"(?:input|output|middle|down|up|mid)_blocks?_(?:\d+_)+"
            r"(?:attentions|resnets|transformer_blocks|proj|emb|in_|out_)",
            LoraFiles.STABLE_DIFFUSION(),
        ),
        (r"single_transformer_blocks_\d", "FLUX.1"),
        (
            r"(?:double|single)_blocks_\d+_(?:img_|txt_|linear|modulation)",
            LoraFiles.OR_ANOTHER(names="FLUX.1, HunyuanVideo, Chroma"),
        ),
        (r"joint_blocks_\d", "Stable Diffusion 3"),
        (
            r"transformer_blocks_\d+_(?:img_m|txt_m|attn_(?:add_|to_add))",
            LoraFiles.OR_ANOTHER(names="Qwen-Image, FLUX.1, Stable Diffusion 3"),
        ),
        (r"transformer_blocks_\d+_(?:attn1|attn2|ff)_", LoraFiles.OR_ANOTHER(names="LTX-Video, PixArt, CogVideoX")),
        (r"(?:^|_)layers_\d+_(?:attention|feed_forward)_", LoraFiles.OR_ANOTHER(names="Lumina, Z-Image")),
    )
)


@dataclass(frozen=True)
class Name:
    """What one name of a LoRA file means."""

    part: str
    """down | up | alpha of a pair; weight | bias | modulation of a full difference; "" where `group` says why not."""
    module: str = ""
    """Native name of the module, or of the tensor itself where `part` is weight and the file names that."""
    expert: str = ""
    """high | low: of Wan2.2, in a file for both."""
    group: str = ""
    """What the name belongs to where it is nothing of this checkpoint."""
    prefix: str = ""
    """What stands before the module, where that is no prefix that is known."""


@dataclass(frozen=True)
class Foreign:
    """A part of a kind that is not computed, e.g. LoKr."""

    kind: str


class Spellings:
    """Every name under which LoRA files know the modules of a checkpoint."""

    def __init__(self, tensors: Iterable[str]) -> None:
        """Args: tensors: native names of the checkpoint."""
        self._modules: dict[str, str] = {}
        self.num_blocks = 0
        for tensor in tensors:
            module, _, leaf = tensor.rpartition(".")
            if leaf not in ("weight", "bias", "modulation"):
                continue
            for name in (module, tensor):
                self._modules[_fold(name)] = name
            self._modules[_fold(_diffusers_name(module))] = module
            block = re.match(r"blocks\.(\d+)\.", tensor)
            if block:
                self.num_blocks = max(self.num_blocks, int(block[1]) + 1)

    def read(self, name: str) -> Name | Foreign:
        """Say what a name of a file means."""
        ending = max(len(name) - _MAX_ENDING, 0)
        for kind, foreign in _FOREIGN_PARTS:
            if foreign.search(name, ending):
                return Foreign(kind)
        if _TEXT_ENCODER.search(name):
            return Name("", group=LoraFiles.TEXT_ENCODER())
        for pattern, part in _PARTS:
            found = pattern.search(name, ending)
            if found:
                return self._find(name[: found.start()], part)
        return Name("", group=LoraFiles.NO_LORA())

    def _find(self, spelled: str, part: str) -> Name:
        spelled = without_wrappers(spelled)
        rest, expert = _fold(spelled), ""
        for _ in range(_MOST_PREFIXES):
            if rest in self._modules:
                return Name(part, self._modules[rest], expert)
            for prefix, which in _EXPERTS.items():
                if rest.startswith(prefix):
                    rest, expert = rest.removeprefix(prefix), which
                    break
            else:
                prefix = next((each for each in _PREFIXES if rest.startswith(each)), "")
                if not prefix:
                    group = self._group_of(rest)
                    if group == LoraFiles.LACKED_MODULES() and not expert:
                        return self._find_anywhere(spelled, part) or Name("", group=group)
                    return Name("", expert=expert, group=group)
                rest = rest.removeprefix(prefix)
        return Name("", expert=expert, group=LoraFiles.LACKED_MODULES())

    def _find_anywhere(self, spelled: str, part: str) -> Name | None:
        """Return a module behind a prefix of any other name, which ends with a dot, or where there is none with an
        underscore.
        """
        between = "." if "." in spelled else "_"
        if between == "_" and _OTHER_BLOCKS.search(spelled):
            return None
        parts = spelled.split(between)
        for number in range(1, min(len(parts), _MOST_PREFIXES)):
            module = self._modules.get("_".join(parts[number:]))
            if module is not None:
                return Name(part, module, prefix=between.join(parts[:number]) + between)
        return None

    def _group_of(self, rest: str) -> str:
        """Say what a module that the checkpoint lacks belongs to."""
        for pattern, group in _ELSEWHERE:
            if pattern.search(rest):
                return group
        block = re.match(r"blocks_(\d+)_", rest)
        if block and int(block[1]) >= self.num_blocks:
            return LoraFiles.BLOCKS_AFTER_LAST(num_blocks=self.num_blocks)
        return LoraFiles.LACKED_MODULES()


def family_of(names: Iterable[str]) -> str:
    """Return the models that a LoRA's names are of, where none is Wan's, or ""."""
    folded = [_fold(name) for name in names]
    return next((family for pattern, family in _FAMILIES if any(map(pattern.search, folded))), "")


def without_wrappers(name: str) -> str:
    """Return a name of a module without the modules that torch.compile, FSDP, checkpointing and PEFT wrap it in."""
    return _WRAPPER.sub("", name)


def _fold(name: str) -> str:
    return name.replace(".", "_")


def _diffusers_name(module: str) -> str:
    for pattern, replacement in _DIFFUSERS:
        module = re.sub(pattern, replacement, module)
    return module
