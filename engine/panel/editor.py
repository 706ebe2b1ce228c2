"""What the editor asks the server: the plan line's forecast, the doctor's findings, the weights to download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .. import system
from ..adapters.comfy import host, language, memory, paths, routes
from ..adapters.comfy.routes import Value, choice, number, plain_name
from ..backends import remembered, trials
from ..backends.table import ATTENTION_CHOICES
from ..checkpoints.published import (
    ALL_PUBLISHED,
    PUBLISHED,
    PUBLISHED_LORAS,
    Part,
    Variant,
    find_variant,
    heading_of,
)
from ..checkpoints.transformers import EXPERTS
from ..constants import (
    DEFAULT_HEIGHT,
    DEFAULT_NUM_FRAMES,
    DEFAULT_WIDTH,
    DISTILL_STEPS,
    MAX_FRAMES,
    MAX_GIB,
    MAX_SIZE,
    MAX_STEPS,
    PRECISIONS,
)
from ..lora.experts import EXPERT_CHOICES
from ..memory.clip import Clip
from ..sentences import joined
from ..sentences.between import Between
from ..sentences.doctor import Doctor
from ..settings import (
    COMPILE_MODES,
    ENGINES,
    OFFLOAD_MODES,
    SHIFTS,
    TILING_MODES,
    EngineSettings,
    GpuSettings,
    OffloadSettings,
    SamplingSettings,
)
from . import doctor
from .downloads import Downloads, find_missing, offers_for, room_for
from .forecast import WAITING_LORA, Forecast, LoraLine, Question, describe_lora, forecast
from .verify import Verifications

_downloads = Downloads()
_verifications = Verifications()
_PARTS = ("text_encoder", "vae")
# Names of LoRAs, one each; js/graph.js says how many are asked with.
_LORAS = tuple(f"lora_{number}" for number in range(1, 65))
# Names of files that somebody lacks, one each.
_WANTED = tuple(f"file_{number}" for number in range(1, 21))
_WHOLE = "checkpoint"
_MODELS = {_WHOLE: paths.CHECKPOINTS, "transformer": paths.TRANSFORMERS}


def answer_plan(values: Mapping[str, Value]) -> dict[str, Any]:
    """Say what a loader will do with these widget values, at this size.

    A model that is not there or cannot run, and choices that exclude each other, are an answer with ok False.

    Raises:
        ValueError: not exactly one of checkpoint and transformer is given.
    """
    kind = _model_kind("plan", values)
    try:
        path = _MODELS[kind].resolve(str(values[kind]))
    except ValueError as error:
        return asdict(_not_chosen(values[kind], error))
    try:
        second = _second_expert(values)
    except ValueError as error:
        return asdict(replace(_not_chosen(values["second_expert"], error), absent_is_second=True))
    given: dict[str, Any] = dict(values)
    try:
        settings = EngineSettings(**{key: given[key] for key in ("engine", "attention", "compile") if key in given})
        gpus = GpuSettings(gpus=str(given.get("gpus", "1")).replace(" ", ""))
    except ValueError as error:
        return asdict(Forecast(ok=False, sentence=str(error)))
    loras = []
    for name in filter(given.__contains__, _LORAS):
        try:
            lora = paths.LORAS.resolve(str(given[name]))
        except ValueError as error:
            return asdict(Forecast(ok=False, sentence=str(error), waits_for=str(given[name])))
        loras.append((lora, str(given.get(f"{name}_expert", EXPERT_CHOICES[0]))))
    host.follow_host_device()
    question = Question(
        path=path,
        is_checkpoint=kind == _WHOLE,
        precision=given.get("precision", "auto"),
        settings=settings,
        offload=OffloadSettings(
            mode=given.get("offload", "auto"),
            vram_budget_gib=given.get("vram_budget_gib", 0.0),
            vae_tiling=given.get("vae_tiling", "auto"),
        ),
        gpus=gpus,
        policy=memory.host_policy(),
        second=second,
        first_is=str(given.get("expert", "auto")),
        loras=tuple(loras),
        uses=frozenset(part for part in _PARTS if given.get(f"uses_{part}") == "1"),
        clip=Clip(
            width=given.get("width", DEFAULT_WIDTH),
            height=given.get("height", DEFAULT_HEIGHT),
            num_frames=given.get("frames", DEFAULT_NUM_FRAMES),
            batch=given.get("batch", 1),
        ),
        steps=given.get("steps", DISTILL_STEPS),
        sampling=_sampling(given),
        has_own_sampler=given.get("has_own_sampler") == "1",
        has_picture=given["has_picture"] == "1" if "has_picture" in given else None,
    )
    return asdict(forecast(question))


def answer_lora(values: Mapping[str, Value]) -> dict[str, Any]:
    """Say how much of a LoRA applies to what a loader has chosen.

    Raises:
        ValueError: not exactly one of checkpoint and transformer is given, or no LoRA.
    """
    kind = _model_kind("lora", values)
    if "lora" not in values:
        raise ValueError(Doctor.LORA_NEEDS_NAME())
    try:
        file = paths.LORAS.resolve(str(values["lora"]))
    except ValueError as error:
        is_published = any(values["lora"] in lora.file_names for lora in PUBLISHED_LORAS.values())
        is_absent = isinstance(error, paths.NotThereError)
        choices = error.choices if isinstance(error, paths.NotThereError) else ""
        line = LoraLine(ok=False, sentence=str(error), is_absent=is_absent, choices=choices, is_published=is_published)
        return asdict(line)
    try:
        path, second = _MODELS[kind].resolve(str(values[kind])), _second_expert(values)
    except ValueError:
        return asdict(WAITING_LORA)
    question = Question(
        path=path,
        is_checkpoint=kind == _WHOLE,
        precision=str(values.get("precision", "auto")),
        second=second,
        first_is=str(values.get("expert", "auto")),
        loras=((file, str(values.get("lora_expert", EXPERT_CHOICES[0]))),),
        clip=Clip(width=DEFAULT_WIDTH, height=DEFAULT_HEIGHT, num_frames=DEFAULT_NUM_FRAMES),
    )
    return asdict(describe_lora(question))


def _not_chosen(name: Value, error: ValueError) -> Forecast:
    """Return the answer about a model that the lists do not have, by its name as it was chosen."""
    if isinstance(error, paths.NotThereError):
        return Forecast(ok=False, sentence=str(error), is_absent=True, absent=str(name), choices=error.choices)
    return Forecast(ok=False, sentence=str(error))


def _second_expert(values: Mapping[str, Value]) -> Path | str:
    return paths.resolve_second_expert(str(values.get("second_expert", paths.AUTO)), str(values.get("transformer", "")))


def _sampling(given: Mapping[str, Any]) -> SamplingSettings | None:
    """Return the settings of LightX2V Sampler, which alone has a shift."""
    if "shift" not in given:
        return None
    return SamplingSettings(seed=0, **{name: given[name] for name in ("steps", "shift", "high_steps") if name in given})


def _model_kind(route: str, values: Mapping[str, Value]) -> str:
    named = [kind for kind in _MODELS if kind in values]
    if len(named) != 1:
        raise ValueError(Doctor.NEEDS_ONE_MODEL(route=route, kinds=joined(named, Between.AND) or Doctor.NEITHER()))
    return named[0]


def answer_doctor(values: Mapping[str, Value]) -> list[dict[str, Any]]:
    """Look at the machine and at every checkpoint that the loader offers."""
    host.follow_host_device()
    checkpoints = paths.CHECKPOINTS.found()
    return doctor.as_json(doctor.examine(checkpoints, paths.models_folder(), elsewhere=paths.further_folders()))


def measure_again(values: Mapping[str, Value]) -> dict[str, Any]:
    """Forget what was found out about kernels here, so that the next run tries and measures them.

    Raises:
        ValueError: the file cannot be deleted.
    """
    try:
        remembered.notes().forget()
    except OSError as error:
        raise ValueError(Doctor.DELETE_YOURSELF(path=remembered.notes().path, error=error)) from error
    trials.forget_trials()
    return {}


def answer_downloads(values: Mapping[str, Value]) -> dict[str, Any]:
    """List what can be downloaded, the best for this card first, where to, what there is room for, and the progress.

    And which of it brings the files that are asked for, and which of these nothing brings. Where one variant is asked
    for, or parts of it by their names, `offer` is that.

    Raises:
        ValueError: the variant has no such part.
    """
    host.follow_host_device()
    folder = paths.models_folder()
    offers = [
        (advice.variant, [] if advice.step_seconds is None else [str(advice)]) for advice in doctor.rank_files_here()
    ]
    offers += [(other, []) for other in ALL_PUBLISHED.values() if other.name not in PUBLISHED]
    # Once for all: variants share parts, and the editor asks each second while one is fetched.
    missing = find_missing([variant for variant, _ in offers], folder)
    variants = [_describe(variant, notes, folder, missing) for variant, notes in offers]
    notes_of = {variant.name: notes for variant, notes in offers}
    wanted = [str(values[name]) for name in _WANTED if name in values]
    brought, unlisted = offers_for(wanted, [variant for variant, _ in offers], missing)
    # What a workflow names is somebody's choice for another card, perhaps.
    faster = doctor.faster_files_here(file for offer in brought for file in offer.files)
    better, _ = (
        offers_for([faster.get(name, name) for name in wanted], [variant for variant, _ in offers], missing)
        if faster
        else ([], [])
    )
    instead = {new: old for old, new in faster.items()}
    asked = _find_parts(values)
    return {
        "variants": variants,
        "offer": asked and _describe(asked, notes_of.get(asked.name, []), folder, missing),
        "wanted": [
            {
                **_describe(offer.variant, notes_of[offer.variant.name], folder, missing),
                "files": offer.files,
                "instead": {file: instead[file] for file in offer.files if file in instead},
            }
            for offer in (*(offer for offer in better if instead.keys() & set(offer.files)), *brought)
        ],
        "unlisted": unlisted,
        "card": system.card_name(system.compute_device()),
        "models_folder": str(folder),
        "progress": asdict(_downloads.progress),
    }


def _describe(variant: Variant, notes: list[str], models_dir: Path, missing: Mapping[Part, int]) -> dict[str, Any]:
    """Return what the list shows of a variant, or of parts of it."""
    return {
        "name": variant.name,
        "parts": list(variant.only),
        "summary": variant.title if variant.only else joined([variant.summary, *notes], Between.SEMICOLON),
        "heading": heading_of(variant.name),
        "num_bytes": variant.num_bytes,
        "folder": f"models/{variant.fetched[0].folder.partition('/')[0]}",
        "room": asdict(room_for(variant, models_dir, missing)),
    }


def start_download(values: Mapping[str, Value]) -> dict[str, Any]:
    """Start the download of a variant, or of parts of it by their names, or stop it with an empty name.

    Raises:
        ValueError: a download is running, the name is not given, or there is no such part.
    """
    if "variant" not in values:
        raise ValueError(Doctor.DOWNLOAD_NEEDS_NAME())
    variant = _find_parts(values)
    if variant:
        _downloads.start(variant, paths.models_folder())
    else:
        _downloads.stop()
    return asdict(_downloads.progress)


def _find_parts(values: Mapping[str, Value]) -> Variant | None:
    """Return the variant that is named, limited to the parts that are; None where none is."""
    name, parts = str(values.get("variant", "")), str(values.get("parts", ""))
    if not name:
        return None
    return find_variant(name).limited_to(parts.split(",")) if parts else find_variant(name)


def answer_verification(values: Mapping[str, Value]) -> dict[str, Any]:
    """Say how far the check of a checkpoint is, and what it has found."""
    return asdict(_verifications.state)


def start_verification(values: Mapping[str, Value]) -> dict[str, Any]:
    """Start looking at every byte of a checkpoint, or stop that where none is given.

    Raises:
        ValueError: there is no such checkpoint, or another one is being looked at.
    """
    if "checkpoint" in values:
        name = str(values["checkpoint"])
        _verifications.start(name, paths.CHECKPOINTS.resolve(name))
    else:
        _verifications.stop()
    return asdict(_verifications.state)


def remember_language(values: Mapping[str, Value]) -> dict[str, Any]:
    """Note the language of an editor, in which it is told what happens to its prompts.

    Raises:
        ValueError: client or language is not given.
    """
    if values.keys() != {"client", "language"}:
        raise ValueError(Doctor.LANGUAGE_NEEDS_CLIENT())
    language.remember_editor(str(values["client"]), str(values["language"]))
    return {}


_MODEL_FIELDS = {
    "checkpoint": plain_name,
    "transformer": plain_name,
    "precision": choice(*PRECISIONS),
    "second_expert": plain_name,
    "expert": choice("auto", *EXPERTS),
}
PLAN = routes.Route(
    name="plan",
    fields={
        **_MODEL_FIELDS,
        "engine": choice(*ENGINES),
        "attention": choice(*ATTENTION_CHOICES),
        "compile": choice(*COMPILE_MODES),
        "offload": choice(*OFFLOAD_MODES),
        "vram_budget_gib": number(float, 0, MAX_GIB),
        "vae_tiling": choice(*TILING_MODES),
        "gpus": plain_name,
        "width": number(int, 1, MAX_SIZE),
        "height": number(int, 1, MAX_SIZE),
        "frames": number(int, 1, MAX_FRAMES),
        "batch": number(int, 1, 4096),
        "steps": number(int, 1, MAX_STEPS),
        "shift": number(float, *SHIFTS),
        "high_steps": number(int, 0, MAX_STEPS),
        "has_own_sampler": choice("0", "1"),
        "has_picture": choice("0", "1"),
        **{f"uses_{part}": choice("0", "1") for part in _PARTS},
        **dict.fromkeys(_LORAS, plain_name),
        **{f"{name}_expert": choice(*EXPERT_CHOICES) for name in _LORAS},
    },
    answer=answer_plan,
)
LORA = routes.Route(
    name="lora",
    fields={**_MODEL_FIELDS, "lora": plain_name, "lora_expert": choice(*EXPERT_CHOICES)},
    answer=answer_lora,
)
DOCTOR = routes.Route(name="doctor", fields={}, answer=answer_doctor)
MEASURE_AGAIN = routes.Route(name="measure_again", method="POST", fields={}, answer=measure_again)
_VARIANT_FIELDS: dict[str, routes.Check] = {"variant": choice("", *ALL_PUBLISHED), "parts": str}
DOWNLOADS = routes.Route(
    name="downloads", fields={**dict.fromkeys(_WANTED, str), **_VARIANT_FIELDS}, answer=answer_downloads
)
DOWNLOAD = routes.Route(name="download", method="POST", fields=_VARIANT_FIELDS, answer=start_download)
VERIFICATION = routes.Route(name="verification", fields={}, answer=answer_verification)
VERIFY = routes.Route(name="verify", method="POST", fields={"checkpoint": plain_name}, answer=start_verification)
LANGUAGE = routes.Route(
    name="language", method="POST", fields={"client": str, "language": routes.language}, answer=remember_language
)


def register_routes() -> None:
    """Add the routes to ComfyUI's server."""
    routes.register(PLAN, LORA, DOCTOR, MEASURE_AGAIN, DOWNLOADS, DOWNLOAD, VERIFICATION, VERIFY, LANGUAGE)
