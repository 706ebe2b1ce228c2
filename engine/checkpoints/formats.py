"""Tables: what tensor names, dtypes and shapes of a file mean. Pure: headers in, formats out.

`detect_transformer`, `detect_text_encoder` and `detect_vae` accept the layouts of this field and refuse
the rest by name (kinds.py). Which files form a checkpoint is files.py.
Sources: https://huggingface.co/lightx2v/Wan2.1-T2V-14B-StepDistill-CfgDistill-Lightx2v (file lists),
LightX2V tools/convert/converter.py (scales), ComfyUI comfy/ops.py (scaled FP8).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..constants import CLIP_VISION_ROWS, IMAGE_CHANNELS, LATENT_CHANNELS
from ..errors import CheckpointError
from ..sentences.folders import Folders
from .checks import (
    FLOAT_DTYPES,
    Shape,
    block_indices,
    describe_blocks,
    describe_others,
    detect_scheme,
    find_others,
    find_prefix,
    missing_indices,
    read_sizes,
    strip_prefix,
)
from .header import Header
from .kinds import TRANSFORMER_FILES, USABLE_FILES, WANTED, check_wan_variant, refuse_kind


@dataclass(frozen=True, kw_only=True)
class WanArchitecture:
    """Sizes of a Wan2.1 or Wan2.2 14B transformer, all read from tensor shapes."""

    dim: int
    ffn_dim: int
    num_heads: int
    """dim / 128; one head where dim is below 128."""
    num_layers: int
    in_dim: int
    """16 latent channels; image-to-video has 20 more, a mask of 4 and an image of 16."""
    out_dim: int
    freq_dim: int
    text_dim: int
    image_dim: int = 0
    """Width of the rows of CLIP Vision that Wan2.1's image-to-video attends to; 0: there is no such branch."""
    image_positions: int = 0
    """Rows that have a learned position: of the first and the last frame (Wan2.1 FLF2V); else 0."""

    @property
    def takes_image(self) -> bool:
        """Whether the input has an image beside the noise."""
        return self.in_dim > self.out_dim

    @property
    def image_rows(self) -> int:
        """Rows of CLIP Vision that a clip usually comes with."""
        return (self.image_positions or CLIP_VISION_ROWS) if self.image_dim else 0


@dataclass(frozen=True, kw_only=True)
class TransformerFormat:
    """How a transformer checkpoint stores its weights."""

    precision: str
    """bf16 | fp8 | int8: of the blocks' linears (bf16 covers fp16 and fp32 files too)."""
    scale_suffix: str | None
    """What replaces `weight` to find a scale: weight_scale (LightX2V, [N, 1] or scalar) or scale_weight (ComfyUI,
    scalar); None where the numbers are the weights themselves: unquantized, or cast to FP8."""
    prefix: str
    """Stripped from every tensor name, e.g. `model.diffusion_model.`."""
    architecture: WanArchitecture
    notes: tuple[str, ...] = ()

    @property
    def is_cast(self) -> bool:
        """Whether it is FP8 without scales, as a plain cast of the original gives it."""
        return self.precision == "fp8" and self.scale_suffix is None


@dataclass(frozen=True, kw_only=True)
class TextEncoderFormat:
    """How a UMT5 encoder checkpoint names and stores its weights."""

    naming: str
    """wan (`blocks.0.attn.q.weight`) | hf (`encoder.block.0.layer.0.SelfAttention.q.weight`)."""
    precision: str
    """bf16 | fp8 | int8, of the blocks' linears (bf16 covers fp16 and fp32 files too)."""
    scale_suffix: str | None
    """As in TransformerFormat; None with precision fp8 means a plain cast, weight = stored value."""
    prefix: str
    num_layers: int
    d_model: int
    d_ff: int
    num_heads: int
    d_kv: int
    num_buckets: int
    vocab_size: int
    """Rows of the embedding; the tokenizer may have fewer pieces."""
    spiece: str | None
    """Whole name of the uint8 tensor in which the file holds its SentencePiece tokenizer."""
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class VaeFormat:
    """Sizes of a Wan2.1 VAE under its native names."""

    prefix: str
    base_dim: int
    z_dim: int
    dim_mult: tuple[int, ...]
    """Width of each stage from full resolution down, in units of base_dim."""
    num_res_blocks: int
    """Residual blocks a stage of the encoder; the decoder has one more."""
    temporal_downsample: tuple[bool, ...]
    """Whether each of the encoder's downsamplers halves time too."""
    has_encoder: bool
    notes: tuple[str, ...] = ()


_TRANSFORMER_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "")
_TEXT_ENCODER_PREFIXES = ("", "text_encoder.", "umt5xxl.transformer.", "text_encoders.umt5xxl.transformer.")
# Of a text encoder's file that holds the whole T5.
_OF_WHOLE_T5 = re.compile(r"decoder\.|lm_head\.|encoder\.embed_tokens\.")
# Of a VAE under its native names.
_OF_VAE = re.compile(r"(encoder|decoder|conv[12])\.")
_VAE_PREFIXES = ("", "vae.", "first_stage_model.")

# Blocks of the published models by width: missing last blocks do not show in names or shapes.
# Source: Wan2.1 wan/configs (t2v_14B, t2v_1_3B); google/umt5-xxl config.json.
_NUM_BLOCKS = {5120: 40, 1536: 30}
_NUM_TEXT_BLOCKS = {4096: 24}

_ATTENTION: dict[str, Shape] = {
    **{f"{part}.weight": ("dim", "dim") for part in ("q", "k", "v", "o")},
    **{f"{part}.bias": ("dim",) for part in ("q", "k", "v", "o")},
    "norm_q.weight": ("dim",),
    "norm_k.weight": ("dim",),
}
# Every tensor of the model; {index} stands for the number of each block.
_TRANSFORMER_SHAPES: dict[str, Shape] = {
    "patch_embedding.weight": ("dim", "in_dim", 1, 2, 2),
    "patch_embedding.bias": ("dim",),
    "text_embedding.0.weight": ("dim", "text_dim"),
    "text_embedding.0.bias": ("dim",),
    "text_embedding.2.weight": ("dim", "dim"),
    "text_embedding.2.bias": ("dim",),
    "time_embedding.0.weight": ("dim", "freq_dim"),
    "time_embedding.0.bias": ("dim",),
    "time_embedding.2.weight": ("dim", "dim"),
    "time_embedding.2.bias": ("dim",),
    "time_projection.1.weight": ("6 dim", "dim"),
    "time_projection.1.bias": ("6 dim",),
    "head.modulation": (1, 2, "dim"),
    "head.head.weight": ("4 out_dim", "dim"),
    "head.head.bias": ("4 out_dim",),
    "blocks.{index}.modulation": (1, 6, "dim"),
    "blocks.{index}.norm3.weight": ("dim",),
    "blocks.{index}.norm3.bias": ("dim",),
    **{f"blocks.{{index}}.self_attn.{name}": shape for name, shape in _ATTENTION.items()},
    **{f"blocks.{{index}}.cross_attn.{name}": shape for name, shape in _ATTENTION.items()},
    "blocks.{index}.ffn.0.weight": ("ffn_dim", "dim"),
    "blocks.{index}.ffn.0.bias": ("ffn_dim",),
    "blocks.{index}.ffn.2.weight": ("dim", "ffn_dim"),
    "blocks.{index}.ffn.2.bias": ("dim",),
}
# What Wan2.1's image-to-video has beside them, and the positions of its first-and-last-frame version.
_IMAGE_SHAPES: dict[str, Shape] = {
    "img_emb.proj.0.weight": ("image_dim",),
    "img_emb.proj.0.bias": ("image_dim",),
    "img_emb.proj.1.weight": ("image_dim", "image_dim"),
    "img_emb.proj.1.bias": ("image_dim",),
    "img_emb.proj.3.weight": ("dim", "image_dim"),
    "img_emb.proj.3.bias": ("dim",),
    "img_emb.proj.4.weight": ("dim",),
    "img_emb.proj.4.bias": ("dim",),
    **{f"blocks.{{index}}.cross_attn.{part}_img.weight": ("dim", "dim") for part in ("k", "v")},
    **{f"blocks.{{index}}.cross_attn.{part}_img.bias": ("dim",) for part in ("k", "v")},
    "blocks.{index}.cross_attn.norm_k_img.weight": ("dim",),
}
_POSITION_SHAPES: dict[str, Shape] = {"img_emb.emb_pos": (1, "image_positions", "image_dim")}
_IMAGE_BRANCH = re.compile(r"img_emb\.|blocks\.\d+\.cross_attn\.(norm_)?[kv]_img\.")
# Channels of the input: text-to-video, image-to-video.
_IN_DIMS = (LATENT_CHANNELS, LATENT_CHANNELS + IMAGE_CHANNELS)
# A text encoder in Wan's and in transformers' naming.
_TEXT_SHAPES: dict[str, dict[str, Shape]] = {
    "wan": {
        "token_embedding.weight": ("vocab_size", "d_model"),
        "norm.weight": ("d_model",),
        "blocks.{index}.norm1.weight": ("d_model",),
        "blocks.{index}.attn.q.weight": ("inner", "d_model"),
        "blocks.{index}.attn.k.weight": ("inner", "d_model"),
        "blocks.{index}.attn.v.weight": ("inner", "d_model"),
        "blocks.{index}.attn.o.weight": ("d_model", "inner"),
        "blocks.{index}.norm2.weight": ("d_model",),
        "blocks.{index}.ffn.gate.0.weight": ("d_ff", "d_model"),
        "blocks.{index}.ffn.fc1.weight": ("d_ff", "d_model"),
        "blocks.{index}.ffn.fc2.weight": ("d_model", "d_ff"),
        "blocks.{index}.pos_embedding.embedding.weight": ("num_buckets", "num_heads"),
    },
    "hf": {
        "shared.weight": ("vocab_size", "d_model"),
        "encoder.final_layer_norm.weight": ("d_model",),
        "encoder.block.{index}.layer.0.layer_norm.weight": ("d_model",),
        "encoder.block.{index}.layer.0.SelfAttention.q.weight": ("inner", "d_model"),
        "encoder.block.{index}.layer.0.SelfAttention.k.weight": ("inner", "d_model"),
        "encoder.block.{index}.layer.0.SelfAttention.v.weight": ("inner", "d_model"),
        "encoder.block.{index}.layer.0.SelfAttention.o.weight": ("d_model", "inner"),
        "encoder.block.{index}.layer.1.layer_norm.weight": ("d_model",),
        "encoder.block.{index}.layer.1.DenseReluDense.wi_0.weight": ("d_ff", "d_model"),
        "encoder.block.{index}.layer.1.DenseReluDense.wi_1.weight": ("d_ff", "d_model"),
        "encoder.block.{index}.layer.1.DenseReluDense.wo.weight": ("d_model", "d_ff"),
        "encoder.block.{index}.layer.0.SelfAttention.relative_attention_bias.weight": ("num_buckets", "num_heads"),
    },
}


def detect_transformer(header: Header, source: str = Folders.THE_FILE()) -> TransformerFormat:
    """Say how a transformer of Wan2.1 or Wan2.2 14B, text-to-video or image-to-video, is stored.

    Args:
        header: names, dtypes and shapes of all files of the transformer together.
        source: subject of the error sentences, e.g. the path.

    Raises:
        CheckpointError: another kind of model, an incomplete one, or INT8 weights without their scales.
    """
    block = r"blocks\.\d+\.modulation"
    prefix = find_prefix(header, _TRANSFORMER_PREFIXES, rf"patch_embedding\.weight|{block}", source, block)
    if prefix is None:
        refuse_kind(header, source, wanted="transformer")
    named = strip_prefix(header, prefix)
    check_wan_variant(named, source)
    missing = find_missing_blocks(named)
    if missing:
        raise CheckpointError(
            Folders.BLOCKS_MISSING_IN_FILE(
                source=source, describe_blocks=describe_blocks(missing), transformer_files=TRANSFORMER_FILES
            )
        )
    num_layers = len(block_indices(named, "blocks"))
    has_image_branch = _has_image_branch(named)
    expected = _transformer_tensors(named, num_layers)
    scheme, scale_suffix = detect_scheme(named, expected, source, wanted="transformer")
    sizes = read_sizes(named, expected, source)
    in_dim, out_dim = sizes["in_dim"], sizes["out_dim"]
    if in_dim not in _IN_DIMS or out_dim != LATENT_CHANNELS or (has_image_branch and in_dim == LATENT_CHANNELS):
        branch = Folders.AND_IMAGE_BRANCH() if has_image_branch else ""
        raise CheckpointError(
            Folders.OTHER_CHANNELS(
                source=source,
                in_dim=in_dim,
                out_dim=out_dim,
                branch=branch,
                in_dims=_IN_DIMS[0],
                image_in_dim=_IN_DIMS[1],
                latent_channels=LATENT_CHANNELS,
                transformer_files=TRANSFORMER_FILES,
            )
        )
    others = find_others(named, expected, scale_suffix)
    return TransformerFormat(
        notes=(describe_others(others, source),) if others else (),
        precision=scheme,
        scale_suffix=scale_suffix,
        prefix=prefix,
        architecture=WanArchitecture(num_layers=num_layers, num_heads=max(1, sizes["dim"] // 128), **sizes),
    )


def keep_known(header: Header, layout: TransformerFormat) -> Header:
    """Return a transformer's tensors (names without prefix) without those that nothing reads."""
    expected = _transformer_tensors(header, layout.architecture.num_layers)
    others = set(find_others(header, expected, layout.scale_suffix))
    return {name: info for name, info in header.items() if name not in others}


def _has_image_branch(named: Header) -> bool:
    return any(map(_IMAGE_BRANCH.match, named))


def _transformer_tensors(named: Header, num_layers: int) -> dict[str, Shape]:
    """Return every tensor that the transformer has whose names these are, and its shape."""
    shapes = {
        **_TRANSFORMER_SHAPES,
        **(_IMAGE_SHAPES if _has_image_branch(named) else {}),
        **(_POSITION_SHAPES if _POSITION_SHAPES.keys() & named.keys() else {}),
    }
    return _expand_blocks(shapes, num_layers)


def find_missing_blocks(header: Header) -> list[int]:
    """Return the numbers of the transformer blocks of which nothing is there.

    Gaps show in the names; missing last blocks only where the width is that of a published model.
    """
    widths = {info.shape[-1] for name, info in header.items() if name.endswith(".modulation") and info.shape}
    published = max((_NUM_BLOCKS.get(width, 0) for width in widths), default=0)
    return missing_indices(block_indices(header, "blocks"), published)


def detect_text_encoder(header: Header, source: str = Folders.THE_FILE()) -> TextEncoderFormat:
    """Say how a UMT5 encoder is named and stored.

    Raises:
        CheckpointError: another kind of model, an incomplete one, or INT8 weights without scales.
    """
    query = r"blocks\.\d+\.attn\.q\.weight|encoder\.block\.\d+\.layer\.0\.SelfAttention\.q\.weight"
    prefix = find_prefix(header, _TEXT_ENCODER_PREFIXES, query, source)
    if prefix is None:
        refuse_kind(header, source, wanted="text encoder")
    named = strip_prefix(header, prefix)
    naming = "hf" if "shared.weight" in named else "wan"
    present = block_indices(named, "encoder.block" if naming == "hf" else "blocks")
    if len(present) > 1 and sum(".relative_attention_bias." in name for name in named) == 1:
        raise CheckpointError(
            Folders.T5_V11(source=source, wanted=WANTED["text encoder"], usable=USABLE_FILES["text encoder"])
        )
    embeddings = [named[name] for name in ("shared.weight", "token_embedding.weight") if name in named]
    width = next((info.shape[-1] for info in embeddings if info.shape), 0)
    missing = missing_indices(present, _NUM_TEXT_BLOCKS.get(width, 0))
    if missing:
        raise CheckpointError(Folders.TEXT_BLOCKS_MISSING(source=source, describe_blocks=describe_blocks(missing)))
    expected = _expand_blocks(_TEXT_SHAPES[naming], len(present))
    scheme, scale_suffix = detect_scheme(named, expected, source, wanted="text encoder")
    sizes = read_sizes(named, expected, source)
    d_kv, rest = divmod(sizes.pop("inner"), sizes["num_heads"])
    if rest:
        raise CheckpointError(
            Folders.ODD_HEADS(
                source=source,
                d_kv=d_kv * sizes["num_heads"] + rest,
                num_heads=sizes["num_heads"],
                usable=USABLE_FILES["text encoder"],
            )
        )
    notes: list[str] = []
    if scheme == "fp8" and scale_suffix is None:
        notes.append(Folders.PLAIN_CAST(source=source))
    others = [name for name in find_others(named, expected, scale_suffix) if not _OF_WHOLE_T5.match(name)]
    if others:
        notes.append(describe_others(others, source))
    return TextEncoderFormat(
        naming=naming,
        precision=scheme,
        scale_suffix=scale_suffix,
        prefix=prefix,
        num_layers=len(present),
        d_kv=d_kv,
        spiece=find_spiece(header),
        notes=tuple(notes),
        **sizes,
    )


def find_spiece(header: Header) -> str | None:
    """Return the name under which a text encoder's file, or one of a whole model, holds a SentencePiece model."""
    return next((name for name in header if re.fullmatch(r"(.*\.)?spiece_model", name)), None)


def holds_text_encoder(header: Header) -> bool:
    """Say whether a file of several models holds ComfyUI's UMT5 encoder."""
    return any(name.startswith(_TEXT_ENCODER_PREFIXES[-1]) for name in header)


def _is_of_whole_model(header: Header) -> bool:
    """Say whether a file holds a transformer too, whose tensors are no concern of the VAE's."""
    return any(re.search(r"(^|\.)blocks\.\d+\.modulation$", name) for name in header)


def holds_vae(header: Header) -> bool:
    """Say whether a file of several models holds a Wan VAE under a name of its own."""
    return any(f"{prefix}decoder.middle.0.residual.0.gamma" in header for prefix in _VAE_PREFIXES if prefix)


def detect_vae(header: Header, source: str = Folders.THE_FILE()) -> VaeFormat:
    """Read the sizes of a Wan2.1 VAE, pruned versions (LightVAE) included.

    Raises:
        CheckpointError: another kind of model, or a VAE whose latents are not Wan2.1's.
    """
    prefix = find_prefix(header, _VAE_PREFIXES, r"decoder\.middle\.0\.residual\.0\.gamma", source)
    if prefix is None:
        refuse_kind(header, source, wanted="VAE")
    named = strip_prefix(header, prefix)
    edges: dict[str, Shape] = {
        "conv2.weight": ("z_dim", "z_dim", 1, 1, 1),
        "decoder.conv1.weight": ("top", "z_dim", 3, 3, 3),
        "decoder.head.0.gamma": ("base_dim", 1, 1, 1),
        "decoder.head.2.weight": ("channels", "base_dim", 3, 3, 3),
    }
    sizes = read_sizes(named, edges, source)
    dtypes = {info.dtype for info in named.values()}
    if (sizes["z_dim"], sizes["channels"]) != (LATENT_CHANNELS, 3):
        raise CheckpointError(
            Folders.OTHER_VAE(
                source=source,
                z_dim=sizes["z_dim"],
                channels=sizes["channels"],
                latent_channels=LATENT_CHANNELS,
                vae=USABLE_FILES["VAE"],
            )
        )
    if not dtypes <= FLOAT_DTYPES:
        raise CheckpointError(
            Folders.VAE_IN_OTHER_DTYPE(source=source, dtypes=", ".join(sorted(dtypes)), vae=USABLE_FILES["VAE"])
        )
    others = sorted(name for name in named if not _OF_VAE.match(name))
    stages, temporal = _read_decoder_stages(named, source)
    base_dim = sizes["base_dim"]
    is_even = len({len(stage) for stage in stages}) == 1 and all(len({*stage}) == 1 for stage in stages)
    if not base_dim or not is_even or any(stage[0] % base_dim for stage in stages):
        raise CheckpointError(Folders.ODD_STAGES(source=source, stages=stages, usable=USABLE_FILES["VAE"]))
    return VaeFormat(
        prefix=prefix,
        base_dim=base_dim,
        z_dim=sizes["z_dim"],
        dim_mult=tuple(stage[0] // base_dim for stage in reversed(stages)),
        num_res_blocks=len(stages[0]) - 1,
        temporal_downsample=tuple(reversed(temporal)),
        has_encoder="encoder.conv1.weight" in named,
        notes=(describe_others(others, source),) if others and not _is_of_whole_model(header) else (),
    )


def _read_decoder_stages(named: Header, source: str) -> tuple[list[list[int]], list[bool]]:
    """Return the widths of each stage's residual blocks, and which upsamplers between them double time."""
    stages: list[list[int]] = [[]]
    temporal: list[bool] = []
    for index in range(len(block_indices(named, "decoder.upsamples"))):
        layer = f"decoder.upsamples.{index}"
        if f"{layer}.resample.1.weight" in named:
            temporal.append(f"{layer}.time_conv.weight" in named)
            stages.append([])
        else:
            last = read_sizes(named, {f"{layer}.residual.6.weight": ("width", "width", 3, 3, 3)}, source)
            stages[-1].append(last["width"])
    return stages, temporal


def _expand_blocks(shapes: dict[str, Shape], num_layers: int) -> dict[str, Shape]:
    return {name.format(index=index): shape for name, shape in shapes.items() for index in range(num_layers)}
