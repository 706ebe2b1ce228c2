"""The published variants of the 4-step Wan2.1-T2V-14B, those of image to video, the LoRAs that distill others, and the
ordinary models that these are for: which files of which repositories each needs. Names only.

The hub's own listing decides what is fetched, how big it is and what its hash is (adapters/hub); this table says
where to look in it. Sizes here are for showing before the hub is asked.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath, PureWindowsPath

from ..errors import LightX2VError
from ..sentences import joined
from ..sentences.between import Between
from ..sentences.kinds import Parts
from ..sentences.published import Published
from .files import PRECISION_FOLDERS
from .formats import WanArchitecture
from .kinds import MODEL_REPOSITORY

SINGLE_FILE_REPOSITORY = "lightx2v/Wan2.1-Distill-Models"
WAN22_REPOSITORY = "lightx2v/Wan2.2-Distill-Models"
COMFY_REPOSITORY = "Comfy-Org/Wan_2.1_ComfyUI_repackaged"
COMFY_WAN22_REPOSITORY = "Comfy-Org/Wan_2.2_ComfyUI_Repackaged"
WAN21_LORA_REPOSITORY = "lightx2v/Wan2.1-Distill-Loras"
WAN22_LORA_REPOSITORY = "lightx2v/Wan2.2-Distill-Loras"
LORA_FOLDER = "loras"

# Source: config.json of the model's repository.
ARCHITECTURE = WanArchitecture(
    dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, in_dim=16, out_dim=16, freq_dim=256, text_dim=4096
)

DOWNLOAD_PROBLEMS = ("unreachable", "denied", "missing", "damaged", "in the way", "disk", "busy")


class DownloadError(LightX2VError):
    """A published checkpoint cannot be fetched."""

    def __init__(self, problem: str, message: str) -> None:
        """Take one of DOWNLOAD_PROBLEMS and the sentence for the user."""
        super().__init__(message)
        self.problem = problem


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a variant."""

    what: str
    repository: str
    patterns: tuple[str, ...]
    """Globs over the repository's paths, best first: the first that matches anything is taken, whole."""
    folder: str
    """Folder below models/."""
    keeps_path: bool
    """Whether files keep their path in the repository below `folder`, or only their name."""
    num_bytes: int
    """As published; rounded where the listing shows rounded sizes."""

    @property
    def name(self) -> str:
        """What commands call it: text-encoder, vae, clip-vision ..."""
        return "-".join(str(self.what).lower().split())

    @property
    def is_companion(self) -> bool:
        """Whether models have it in common: no part of a transformer, and no LoRA."""
        return self.what in _COMPANIONS

    def holds(self, name: str) -> bool:
        """Whether a file or folder, by the name that a loader has for it on any system, is of this part."""
        path = PurePosixPath(name.replace("\\", "/"))
        home = PurePosixPath(self.folder).name
        if not self.keeps_path or home not in path.parts:
            return path.name == PurePosixPath(self.patterns[0]).name
        below = "/".join(path.parts[path.parts.index(home) + 1 :])
        precision_folder = below.partition("/")[0]
        if precision_folder in PRECISION_FOLDERS.values() and not self.patterns[0].startswith(f"{precision_folder}/"):
            # There it is looked for only where its own folder lacks it.
            return False
        return not below or any(
            pattern.startswith(f"{below}/") or fnmatch.fnmatchcase(below, pattern) for pattern in self.patterns
        )


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to have the whole model: transformer, text encoder, tokenizer and VAE; or a LoRA."""

    name: str
    summary: str
    precision: str
    """fp8 | int8 | bf16."""
    parts: tuple[Part, ...]
    only: tuple[str, ...] = ()
    """Names of the parts that are to be fetched; all of them when empty."""

    @property
    def fetched(self) -> tuple[Part, ...]:
        """The parts that are to be fetched."""
        return tuple(part for part in self.parts if not self.only or part.name in self.only)

    def limited_to(self, names: Sequence[str]) -> Variant:
        """Return it with nothing but these parts to be fetched, and with a text encoder its tokenizer.

        Raises:
            ValueError: it has no such part, or none is named.
        """
        has = {part.name for part in self.parts}
        if not names or not has.issuperset(names):
            listed = ", ".join(dict.fromkeys(part.name for part in self.parts))
            raise ValueError(Published.UNKNOWN_PART(name=self.name, parts=", ".join(names), listed=listed))
        tokenizer = [part.name for part in self.parts if part.what == Parts.TOKENIZER() and _TEXT_ENCODER in names]
        return replace(self, only=tuple(dict.fromkeys([*names, *tokenizer])))

    @property
    def family(self) -> str:
        """What it has in common with the same model in another precision."""
        return self.name.replace(self.precision, "", 1)

    @property
    def title(self) -> str:
        """What a download of it is called."""
        if not self.only:
            return self.name
        return Published.PARTS_OF(parts=joined((part.what for part in self.fetched), Between.AND), name=self.name)

    @property
    def num_bytes(self) -> int:
        """Bytes of all parts that are to be fetched, about."""
        return sum(part.num_bytes for part in self.fetched)

    def parts_of(self, name: str) -> tuple[Part, ...]:
        """Return the parts that hold a file or folder; none where it is of no part."""
        return tuple(part for part in self.parts if part.holds(name))

    @property
    def repositories(self) -> tuple[str, ...]:
        """Where the parts to be fetched are, each once."""
        return tuple(dict.fromkeys(part.repository for part in self.fetched))

    @property
    def file_names(self) -> tuple[str, ...]:
        """Names of the files, of a variant of single files."""
        return tuple(PurePosixPath(part.patterns[0]).name for part in self.parts)

    @property
    def is_folder(self) -> bool:
        """Whether LightX2V Load Checkpoint takes it as one folder; else its files go to separate loaders."""
        return self.parts[0].keeps_path

    @property
    def is_lora(self) -> bool:
        """Whether it is a LoRA, or one for each of two experts, and no model."""
        return self.parts[0].folder == LORA_FOLDER

    @property
    def entry(self) -> str:
        """What to choose in the loader, below models/: the checkpoint folder, or the transformer's or LoRA's file."""
        transformer = self.parts[0]
        return (
            transformer.folder
            if self.is_folder
            else f"{transformer.folder}/{PurePosixPath(transformer.patterns[0]).name}"
        )


@dataclass(frozen=True, kw_only=True)
class WantedFile:
    """A file of a repository and where it belongs."""

    repository: str
    path: str
    target: str
    """Path below models/, with forward slashes."""


_TEXT_ENCODER = "text-encoder"
_COMPANIONS = frozenset({Parts.TEXT_ENCODER(), Parts.TOKENIZER(), "VAE", Parts.CLIP_VISION(), Parts.CONFIG()})

# Sizes: file listings of the three repositories on huggingface.co.
_BLOCKS_BYTES = 40 * 352_000_000
_NON_BLOCK_BYTES = 930_000_000
_BF16_BYTES = 28_580_000_000
_SINGLE_8_BIT_BYTES = 15_000_000_000
_T5_8_BIT_BYTES = 6_730_000_000
_T5_BF16_BYTES = 11_361_920_418
_COMFY_T5_FP8_BYTES = 6_735_906_897
_COMFY_T5_FP16_BYTES = 11_366_399_385
_VAE_BYTES = 507_609_880
_COMFY_VAE_BYTES = 254_000_000
_CLIP_VISION_BYTES = 1_264_219_396
_IMAGE_MODEL_8_BIT_BYTES = 17_000_000_000
_IMAGE_EXPERT_8_BIT_BYTES = 15_007_794_120
_COMFY_8_BIT_BYTES = 14_290_000_000
_COMFY_IMAGE_MODEL_8_BIT_BYTES = 16_401_356_938
_LORA_BYTES = 631_000_000
_LORA_OF_IMAGE_MODEL_BYTES = 739_000_000
_LORA_OF_EXPERT_BYTES = 614_000_000
_LORA_OF_IMAGE_EXPERT_BYTES = 635_000_000
_TOKENIZER_BYTES = 21_000_000
_CONFIG_BYTES = 250


def _repository_part(what: str, num_bytes: int, *patterns: str) -> Part:
    return Part(
        what=what,
        repository=MODEL_REPOSITORY,
        patterns=patterns,
        folder=f"lightx2v/{PurePosixPath(MODEL_REPOSITORY).name}",
        keeps_path=True,
        num_bytes=num_bytes,
    )


def _anywhere(name: str, precision: str) -> tuple[str, ...]:
    """Look for a companion in the precision's folder, at the root, then in the other folders."""
    folder = PRECISION_FOLDERS[precision]
    others = [other for other in PRECISION_FOLDERS.values() if other != folder]
    return (f"{folder}/{name}", name, *(f"{other}/{name}" for other in others), f"original/{name}")


def _repository_parts(precision: str) -> tuple[Part, ...]:
    folder = PRECISION_FOLDERS[precision]
    if precision == "bf16":
        t5_bytes = _T5_BF16_BYTES
        transformer = [_repository_part(Parts.TRANSFORMER(), _BF16_BYTES, f"{folder}/distill_model.safetensors")]
    else:
        t5_bytes = _T5_8_BIT_BYTES
        transformer = [
            _repository_part(Published.BLOCKS(), _BLOCKS_BYTES, f"{folder}/block_*.safetensors"),
            _repository_part(Published.REST(), _NON_BLOCK_BYTES, f"{folder}/non_block.safetensors"),
        ]
    return (
        *transformer,
        _repository_part(
            Parts.TEXT_ENCODER(), t5_bytes, *_anywhere(f"models_t5_umt5-xxl-enc-{precision}.pth", precision)
        ),
        _repository_part(Parts.TOKENIZER(), _TOKENIZER_BYTES, *_anywhere("google/umt5-xxl/*", precision)),
        _repository_part("VAE", _VAE_BYTES, *_anywhere("Wan2.1_VAE.pth", precision)),
        _repository_part(Parts.CONFIG(), _CONFIG_BYTES, *_anywhere("config.json", precision)),
    )


def _single_part(what: str, num_bytes: int, repository: str, path: str, folder: str) -> Part:
    return Part(
        what=what, repository=repository, patterns=(path,), folder=folder, keeps_path=False, num_bytes=num_bytes
    )


def _single_parts(transformer: str, num_bytes: int, text_encoder: str, text_encoder_bytes: int) -> tuple[Part, ...]:
    return (
        _single_part(
            Parts.TRANSFORMER(), num_bytes, SINGLE_FILE_REPOSITORY, f"{transformer}.safetensors", "diffusion_models"
        ),
        *_companions(text_encoder, text_encoder_bytes),
    )


def _companions(text_encoder: str, text_encoder_bytes: int) -> tuple[Part, ...]:
    text_encoder_path = f"split_files/text_encoders/{text_encoder}.safetensors"
    vae_path = "split_files/vae/wan_2.1_vae.safetensors"
    return (
        _single_part(Parts.TEXT_ENCODER(), text_encoder_bytes, COMFY_REPOSITORY, text_encoder_path, "text_encoders"),
        _single_part("VAE", _COMFY_VAE_BYTES, COMFY_REPOSITORY, vae_path, "vae"),
    )


def _clip_vision() -> Part:
    path = "split_files/clip_vision/clip_vision_h.safetensors"
    return _single_part(Parts.CLIP_VISION(), _CLIP_VISION_BYTES, COMFY_REPOSITORY, path, "clip_vision")


_FP8_SINGLE = "wan2.1_t2v_14b_scaled_fp8_e4m3_lightx2v_4step"
_FP8_T5 = ("umt5_xxl_fp8_e4m3fn_scaled", _COMFY_T5_FP8_BYTES)

_VARIANTS = (
    Variant(
        name="fp8",
        summary=Published.FP8_FOLDER(),
        precision="fp8",
        parts=_repository_parts("fp8"),
    ),
    Variant(
        name="int8",
        summary=Published.INT8_FOLDER(),
        precision="int8",
        parts=_repository_parts("int8"),
    ),
    Variant(
        name="bf16",
        summary=Published.BF16_FOLDER(),
        precision="bf16",
        parts=_repository_parts("bf16"),
    ),
    Variant(
        name="fp8-single",
        summary=Published.SINGLE_FILES(),
        precision="fp8",
        parts=_single_parts(_FP8_SINGLE, _SINGLE_8_BIT_BYTES, *_FP8_T5),
    ),
    Variant(
        name="fp8-comfyui",
        summary=Published.COMFYUI_FILES(),
        precision="fp8",
        parts=_single_parts(f"{_FP8_SINGLE}_comfyui", _SINGLE_8_BIT_BYTES, *_FP8_T5),
    ),
    Variant(
        name="int8-single",
        summary=Published.INT8_FILES(),
        precision="int8",
        parts=_single_parts("wan2.1_t2v_14b_int8_lightx2v_4step", _SINGLE_8_BIT_BYTES, *_FP8_T5),
    ),
    Variant(
        name="bf16-single",
        summary=Published.BF16_FILES(),
        precision="bf16",
        parts=_single_parts("wan2.1_t2v_14b_lightx2v_4step", _BF16_BYTES, "umt5_xxl_fp16", _COMFY_T5_FP16_BYTES),
    ),
)
PUBLISHED = {variant.name: variant for variant in _VARIANTS}


_PRECISIONS = {"fp8": "scaled_fp8_e4m3_", "int8": "int8_"}
"""Of a single file, as its name has it."""


def _image_model(size: str, precision: str) -> Variant:
    """Return Wan2.1's image to video, trained at a size, with CLIP Vision as ComfyUI's CLIPVisionLoader takes it."""
    transformer = f"wan2.1_i2v_{size}_{_PRECISIONS[precision]}lightx2v_4step"
    return Variant(
        name=f"wan2.1-i2v-{size}-{precision}",
        summary=Published.WAN21_IMAGE(size=size),
        precision=precision,
        parts=(
            *_single_parts(transformer, _IMAGE_MODEL_8_BIT_BYTES, *_FP8_T5),
            _clip_vision(),
        ),
    )


def _experts(num_bytes: int, repository: str, path: str) -> tuple[Part, ...]:
    """Return both experts of Wan2.2 with their companions; `path` has a hole for the noise."""
    experts = {Published.EXPERT(noise=noise): path.format(noise=noise) for noise in ("high", "low")}
    return (
        *(_single_part(what, num_bytes, repository, file, "diffusion_models") for what, file in experts.items()),
        *_companions(*_FP8_T5),
    )


def _image_experts(precision: str) -> Variant:
    """Return Wan2.2's image to video: two experts."""
    path = f"wan2.2_i2v_A14b_{{noise}}_noise_{_PRECISIONS[precision]}lightx2v_4step.safetensors"
    return Variant(
        name=f"wan2.2-i2v-{precision}",
        summary=Published.WAN22_IMAGE(),
        precision=precision,
        parts=_experts(_IMAGE_EXPERT_8_BIT_BYTES, WAN22_REPOSITORY, path),
    )


# Names: LightX2V's model cards of the two repositories.
_IMAGE_MODELS = tuple(_image_model(size, precision) for size in ("480p", "720p") for precision in _PRECISIONS)
_EXPERTS = tuple(map(_image_experts, _PRECISIONS))
PUBLISHED_IMAGE_MODELS = {variant.name: variant for variant in (*_IMAGE_MODELS, *_EXPERTS)}


def _lora(model: str, name: str, repository: str, **files: int) -> Variant:
    """Return a LoRA that distills a model; files are names and bytes, one of each expert where there are two."""
    several = Published.TWO_FILES() if len(files) > 1 else ""
    return Variant(
        name=name,
        summary=Published.LORA(model=model, several=several),
        precision="bf16",
        parts=tuple(
            _single_part("LoRA", num_bytes, repository, f"{file}.safetensors", LORA_FOLDER)
            for file, num_bytes in files.items()
        ),
    )


# Names: LightX2V configs/distill/wan21/wan_*_distill_lora_4step_cfg.json and wan22/wan_moe_*_distill_*lora*.json.
_LORAS = (
    _lora(
        "Wan2.1 T2V 14B",
        "wan2.1-t2v-lora",
        WAN21_LORA_REPOSITORY,
        **{"wan2.1_t2v_14b_lora_rank64_lightx2v_4step": _LORA_BYTES},
    ),
    _lora(
        "Wan2.1 I2V 14B",
        "wan2.1-i2v-lora",
        WAN21_LORA_REPOSITORY,
        **{"wan2.1_i2v_lora_rank64_lightx2v_4step": _LORA_OF_IMAGE_MODEL_BYTES},
    ),
    _lora(
        "Wan2.2 T2V A14B",
        "wan2.2-t2v-loras",
        WAN22_LORA_REPOSITORY,
        **{
            "wan2.2_t2v_A14b_high_noise_lora_rank64_lightx2v_4step_1217": _LORA_OF_EXPERT_BYTES,
            "wan2.2_t2v_A14b_low_noise_lora_rank64_lightx2v_4step_1217": _LORA_OF_EXPERT_BYTES,
        },
    ),
    _lora(
        "Wan2.2 I2V A14B",
        "wan2.2-i2v-loras",
        WAN22_LORA_REPOSITORY,
        **{
            "wan2.2_i2v_A14b_high_noise_lora_rank64_lightx2v_4step_1022": _LORA_OF_IMAGE_EXPERT_BYTES,
            "wan2.2_i2v_A14b_low_noise_lora_rank64_lightx2v_4step_1022": _LORA_OF_IMAGE_MODEL_BYTES,
        },
    ),
)
PUBLISHED_LORAS = {lora.name: lora for lora in _LORAS}


def _ordinary(model: str, name: str, lora: str, parts: tuple[Part, ...]) -> Variant:
    """Return a model that is not distilled, which a LoRA of the list distills."""
    return Variant(
        name=f"{name}-ordinary-fp8",
        summary=Published.ORDINARY(model=model, lora=lora),
        precision="fp8",
        parts=parts,
    )


def _ordinary_file(file: str, num_bytes: int) -> tuple[Part, ...]:
    path = f"split_files/diffusion_models/{file}_14B_fp8_scaled.safetensors"
    transformer = _single_part(Parts.TRANSFORMER(), num_bytes, COMFY_REPOSITORY, path, "diffusion_models")
    return (transformer, *_companions(*_FP8_T5))


def _ordinary_experts(kind: str) -> tuple[Part, ...]:
    path = f"split_files/diffusion_models/wan2.2_{kind}_{{noise}}_noise_14B_fp8_scaled.safetensors"
    return _experts(_COMFY_8_BIT_BYTES, COMFY_WAN22_REPOSITORY, path)


# Names and sizes: file listings of Comfy-Org's two repositories, which ComfyUI's own templates name too.
_ORDINARY = (
    _ordinary("Wan2.1 T2V 14B", "wan2.1-t2v", "wan2.1-t2v-lora", _ordinary_file("wan2.1_t2v", _COMFY_8_BIT_BYTES)),
    *(
        _ordinary(
            f"Wan2.1 I2V 14B {size}",
            f"wan2.1-i2v-{size}",
            "wan2.1-i2v-lora",
            (*_ordinary_file(f"wan2.1_i2v_{size}", _COMFY_IMAGE_MODEL_8_BIT_BYTES), _clip_vision()),
        )
        for size in ("480p", "720p")
    ),
    _ordinary("Wan2.2 T2V A14B", "wan2.2-t2v", "wan2.2-t2v-loras", _ordinary_experts("t2v")),
    _ordinary("Wan2.2 I2V A14B", "wan2.2-i2v", "wan2.2-i2v-loras", _ordinary_experts("i2v")),
)
PUBLISHED_ORDINARY = {model.name: model for model in _ORDINARY}
ALL_PUBLISHED = PUBLISHED | PUBLISHED_IMAGE_MODELS | PUBLISHED_LORAS | PUBLISHED_ORDINARY
_HEADINGS: Mapping[str, tuple[Variant, ...]] = {
    Published.TEXT_TO_VIDEO(): _VARIANTS,
    Published.IMAGE_TO_VIDEO(): _IMAGE_MODELS,
    Published.EXPERTS(): _EXPERTS,
    Published.LORAS(): _LORAS,
    Published.ORDINARY_MODELS(): _ORDINARY,
}


def heading_of(name: str) -> str:
    """Return what a list of all published variants says above those of this kind."""
    return next(heading for heading, variants in _HEADINGS.items() if any(name == each.name for each in variants))


def find_variant(name: str) -> Variant:
    """Return a published variant or LoRA.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in ALL_PUBLISHED:
        raise ValueError(Published.UNKNOWN_VARIANT(name=name, names=", ".join(ALL_PUBLISHED)))
    return ALL_PUBLISHED[name]


def choose_files(variant: Variant, listings: Mapping[str, Collection[str]]) -> list[WantedFile]:
    """Choose the files of a variant from what its repositories hold now.

    Args:
        variant: what is wanted.
        listings: paths by repository, at least of every repository of the variant.

    Raises:
        DownloadError: a part is nowhere in its repository, or a listed path would leave the models folder.
    """
    return [wanted for part in variant.fetched for wanted in _choose(part, listings[part.repository])]


def _choose(part: Part, paths: Collection[str]) -> list[WantedFile]:
    found: list[str] = []
    for pattern in part.patterns:
        found = found or sorted(path for path in paths if fnmatch.fnmatchcase(path, pattern))
    if not found:
        raise DownloadError(
            "missing",
            Published.GONE(what=part.what, repository=part.repository, patterns=part.patterns[0]),
        )
    return [
        WantedFile(
            repository=part.repository,
            path=path,
            target=f"{part.folder}/{_checked(path, part.repository) if part.keeps_path else PurePosixPath(path).name}",
        )
        for path in found
    ]


def _checked(path: str, repository: str) -> str:
    windows_path = PureWindowsPath(path)
    if windows_path.drive or windows_path.root or ".." in windows_path.parts:
        raise DownloadError("damaged", Published.LEADS_OUTSIDE(repository=repository, path=path))
    return path
