"""What a MODEL of this pack holds: ComfyUI's Wan2.1 model, with the engine where its transformer would be.

Samplers, guiders and schedulers find what they know. There are no weights of ComfyUI's, only their names and shapes
(for LoRA loaders); each condition of each clip goes to the loaded transformer, one after the other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.conds
import comfy.ldm.common_dit
import comfy.model_base
import comfy.model_management as mm
import comfy.patcher_extension
import comfy.supported_models
import torch

from ... import pipeline, shapes
from ...checkpoints.formats import WanArchitecture
from ...checkpoints.source import list_specs
from ...constants import DISTILL_SHIFT, DISTILL_STEPS, LATENT_CHANNELS, PATCH_SIZE
from ...handles import TransformerHandle
from ...inputs import describe
from ...interfaces import Conditioning, Hooks, Transformer
from ...memory.clip import Clip
from ...report import attach, noting, records_of
from ...sentences.sampling import Sampling
from ...stages.conditioning import check_rows, of_rows
from ...stages.given import NO_IMAGE, check_given
from ...stages.schedule import build_schedule, experts_of
from . import formats, memory, progress, refusals
from .carried import HIGH_STEPS, view_of
from .host import find_host

logger = logging.getLogger(__name__)

# Of prompts that a sampler alternates between: positive, negative, those of Conditioning Combine and of areas.
_PROMPTS_KEPT = 8
_SIGMA_TOLERANCE = 1e-3


class WanModel(comfy.model_base.WAN21):  # type: ignore[misc]
    """ComfyUI's Wan2.1 model around a handle; `lightx2v_handle` marks it, whatever patcher another pack puts around."""

    def __init__(self, handle: TransformerHandle) -> None:
        architecture = handle.architecture
        # Wan2.2's image to video is a t2v of 36 channels there.
        has_branch = bool(architecture.image_dim)
        kind = comfy.supported_models.WAN21_I2V if has_branch else comfy.supported_models.WAN21_T2V
        config = kind(
            {
                "image_model": "wan2.1",
                "model_type": "i2v" if has_branch else "t2v",
                "in_dim": architecture.in_dim,
                "dim": architecture.dim,
                "disable_unet_model_creation": True,
            }
        )
        config.unet_config = _UnetConfig(config.unet_config)
        # ComfyUI's default is 8, for the model before distillation.
        config.sampling_settings = {**config.sampling_settings, "shift": DISTILL_SHIFT}
        # What latents and text arrive as; the engine rounds them itself.
        config.set_inference_dtype(torch.float32, None)
        super().__init__(config, image_to_video=has_branch, device=torch.device("cpu"))
        self.lightx2v_handle = handle
        self.diffusion_model = Diffusion(handle)
        self.planned_bytes = 0
        """VRAM that the weights are going to take, by the last plan."""
        self.activation_bytes = 0
        """VRAM that a pass takes beside them."""

    def memory_required(self, *_: Any, **__: Any) -> int:
        """Return what a pass takes of one clip: a batch's clips, and conditions, run one after the other."""
        return self.activation_bytes

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """Return ComfyUI's conditions, of which none is joined with another in one pass."""
        conds: dict[str, Any] = super().extra_conds(**kwargs)
        for name, cond in conds.items():
            if type(cond) is comfy.conds.CONDRegular:
                conds[name] = _Alone(cond.cond)
        return conds

    def state_dict_for_saving(self, *_: Any, **__: Any) -> Any:
        raise refusals.cannot_be_saved()


class _UnetConfig(dict[str, Any]):
    """What ComfyUI knows of the architecture; some nodes ask it for parts of Stable Diffusion's UNet."""

    def __missing__(self, name: str) -> Any:
        raise KeyError(refusals.missing_in_config(name))


class _Alone(comfy.conds.CONDRegular):  # type: ignore[misc]
    """A condition that is not batched with another."""

    def can_concat(self, other: Any) -> bool:
        return False


_Parts = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""Of one clip's condition: text rows [n, text_dim]; mask and image [20, T, h, w]; rows of CLIP Vision."""


@dataclass(eq=False)
class _Run:
    """A loaded transformer in the hands of a sampler."""

    transformer: Transformer
    hooks: Hooks
    architecture: WanArchitecture
    times: Sequence[float] = ()
    """Model time of each noise level of the sampler, the last one, which no step starts from, included."""
    cfg: float | None = None
    """What the sampler's cfg is, where it has one."""
    is_guided: bool = False
    """It computes conditions beside the positive one."""
    experts: Sequence[int] = (0,)
    """The expert of each of its steps."""
    prompts: list[tuple[_Parts, Conditioning]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of each pass."""
    step: int = 0
    """The last that was begun, counted from 1."""

    def predict_flow(
        self, latents: torch.Tensor, timestep: float, parts: _Parts, *, is_last: bool = True
    ) -> torch.Tensor:
        """Return the flow [16, T, h, w]; see interfaces.Transformer.

        Args:
            is_last: no other clip has this noise level to come.
        """
        index = max(self._note_step(timestep) - 1, 0)
        expert, after = self.experts[index], self.experts[(index + 1) % len(self.experts)]
        start = time.perf_counter()
        flow = self.transformer.predict_flow(
            latents.float(), timestep, self._conditioning(parts), self.hooks, expert, after if is_last else expert
        )
        self.seconds.append(round(time.perf_counter() - start, 4))
        return flow

    def warn_of_guidance(self, conditions: Iterable[int]) -> None:
        """Say so once where a call brings other conditions than the positive, whose number is 0."""
        if self.is_guided or not any(conditions):
            return
        self.is_guided = True
        found = Sampling.SEVERAL_CONDITIONS() if self.cfg in (None, 1) else Sampling.CFG_IS(cfg=self.cfg)
        logger.warning("LightX2V: %s", Sampling.NOT_FOR_CFG(found=found))

    def _note_step(self, timestep: float) -> int:
        """Report a step when its first pass begins, and return its number from 1; samplers of higher order also call
        between two noise levels."""
        steps = len(self.times) - 1
        step = sum(timestep <= time * (1 + _SIGMA_TOLERANCE) for time in self.times[:-1])
        if 0 < step != self.step:
            self.step = step
            self.hooks.on_step_start(step, steps)
        return step

    def _conditioning(self, parts: _Parts) -> Conditioning:
        """Return the same object for the same parts, which samplers copy for each step."""
        for index, (known, conditioning) in enumerate(self.prompts):
            if all(map(_same, known, parts)):
                self.prompts.insert(0, self.prompts.pop(index))
                return conditioning
        rows, image_latents, image_tokens = (None if part is None else part.to("cpu", torch.float32) for part in parts)
        assert rows is not None, "a condition without text"
        (conditioning,) = of_rows(rows, self.architecture.text_dim)
        conditioning = replace(conditioning, image_latents=image_latents, image_tokens=image_tokens)
        self.prompts = [(parts, conditioning), *self.prompts[: _PROMPTS_KEPT - 1]]
        return conditioning


class Diffusion(torch.nn.Module):
    """What ComfyUI calls for the flow, with the signature of its own WanModel (comfy/ldm/wan/model.py)."""

    dtype = torch.float32

    def __init__(self, handle: TransformerHandle) -> None:
        super().__init__()
        self.patch_size = PATCH_SIZE
        self.num_layers = handle.architecture.num_layers
        self.run: _Run | None = None
        self._handle = handle
        _add_names(self, ((spec.name, spec.shape) for spec in list_specs(handle.files)))

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        clip_fea: torch.Tensor | None = None,
        time_dim_concat: torch.Tensor | None = None,
        transformer_options: dict[str, Any] = {},  # noqa: B006 - ComfyUI's signature; read only
        **kwargs: Any,
    ) -> torch.Tensor:
        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options
        )
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        flow: torch.Tensor = executor.execute(
            x, timestep, context, clip_fea, time_dim_concat, transformer_options, **kwargs
        )
        return flow

    def _forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        clip_fea: torch.Tensor | None = None,
        time_dim_concat: torch.Tensor | None = None,
        transformer_options: dict[str, Any] = {},  # noqa: B006 - ComfyUI's signature; read only
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the flow of the latents in `x` [B, 16 or 36, T, h, w], clip after clip.

        Text rows are [B, n, text_dim], those of CLIP Vision [B, n, image_dim]. Odd heights and widths, as areas of a
        condition have them, are filled up as ComfyUI's Wan does.
        """
        architecture = self._handle.architecture
        extra = x if x.shape[1] != architecture.in_dim else None
        # What a model without an image branch gets of CLIP Vision was named when sampling began.
        unknown = None if architecture.takes_image else clip_fea
        refusals.check_call(
            {"clip_fea": unknown, "time_dim_concat": time_dim_concat, "noise_concat": extra, **kwargs},
            transformer_options,
        )
        padded = comfy.ldm.common_dit.pad_to_patch_size(x, PATCH_SIZE)
        times = timestep.flatten().tolist()
        if self.run is None:
            raise RuntimeError(Sampling.NO_SAMPLER(shape=list(x.shape)))
        if not self._handle.owner.is_loaded:
            raise RuntimeError(Sampling.UNLOADED())
        self.run.warn_of_guidance(transformer_options.get("cond_or_uncond", ()))
        clip_fea = clip_fea if architecture.image_dim else None
        flows = [
            self.run.predict_flow(
                latents[:LATENT_CHANNELS],
                times[index % len(times)],
                (
                    context[index % len(context)],
                    latents[LATENT_CHANNELS:] if architecture.takes_image else None,
                    None if clip_fea is None else clip_fea[index % len(clip_fea)],
                ),
                is_last=index == len(padded) - 1,
            )
            for index, latents in enumerate(padded)
        ]
        _, _, frames, height, width = x.shape
        return torch.stack(flows)[:, :, :frames, :height, :width].to(x.dtype)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(refusals.missing_in_model(name)) from None

    @contextmanager
    def lend(
        self,
        transformer: Transformer,
        hooks: Hooks,
        times: Sequence[float],
        cfg: float | None,
        experts: Sequence[int] = (0,),
    ) -> Iterator[_Run]:
        """Let calls within the context use a loaded transformer; see _Run."""
        run = _Run(transformer, hooks, self._handle.architecture, times, cfg, experts=experts)
        before, self.run = self.run, run
        try:
            yield self.run
        finally:
            self.run = before


@noting()
def sample_with(
    executor: Any, noise: torch.Tensor, latent_image: torch.Tensor, sampler: Any, sigmas: torch.Tensor, *args: Any,
    **kwargs: Any,
) -> torch.Tensor:  # fmt: skip
    """Sample as ComfyUI does, with the transformer planned and loaded for this size.

    ComfyUI calls it around CFGGuider.outer_sample. What the model carries and cannot honour is refused before anything
    is loaded; where the GPU's memory runs out, sampling starts again under a cheaper plan.
    """
    guider = executor.class_obj
    model = guider.model_patcher
    refusals.check_model(model)
    handle: TransformerHandle = model.model.lightx2v_handle
    architecture = handle.architecture
    refusals.check_conds(guider.conds, architecture)
    clip = _clip_of(noise.shape)
    rows = _check_given(guider.conds, architecture, clip) if architecture.takes_image else 0
    largest = replace(_clip_of(_shape_of_window(noise.shape, guider.model_options)), image_rows=rows)
    if sigmas.dim() != 1:
        raise ValueError(Sampling.ODD_NOISE_LEVELS(levels=describe(sigmas)))
    levels = [float(sigma) for sigma in sigmas]
    if not all(0 <= level <= 1 + _SIGMA_TOLERANCE for level in levels):
        raise ValueError(Sampling.ODD_NOISE_LEVELS(levels=_listed(levels)))
    _check_conds(guider.conds, handle.text_dim, clip)
    _warn_unusual(levels)
    conds, cfg = guider.conds, getattr(guider, "cfg", None)
    times = [float(time) for time in model.get_model_object("model_sampling").timestep(sigmas)]
    experts = _experts_of(model, levels)
    names = [handle.files.names[expert] for expert in experts]
    if any(names):
        steps = (Sampling.EXPERT_AT(name=name, sigma=sigma) for name, sigma in zip(names, levels, strict=False))
        logger.info("LightX2V: %s.", ", ".join(steps))

    def run(transformer: Transformer) -> tuple[torch.Tensor, dict[str, Any]]:
        guider.conds = {name: [dict(cond) for cond in each] for name, each in conds.items()}
        with model.model.diffusion_model.lend(transformer, hooks, times, cfg, experts) as running:
            samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        return samples, {
            **clip.facts,
            "method": f"{_name_of(sampler)} (ComfyUI)",
            "steps": len(levels) - 1,
            "cfg": cfg,
            "sigmas": [round(level, 6) for level in levels],
            **pipeline.expert_facts(names),
            "pass_seconds": running.seconds,
        }

    host = find_host(memory.claim_with(model))
    with progress.reporting(progress.executing_node()) as hooks:
        samples, records = pipeline.run_planned(view_of(model), largest, run, hooks=hooks, host=host)
    # Here already, so that what ComfyUI passes on is the tensor with the records.
    samples = samples.to(mm.intermediate_device())
    return attach(samples, _records_of(conds), records)


def _experts_of(model: Any, sigmas: Sequence[float]) -> list[int]:
    """Return the expert of each step."""
    if model.model.lightx2v_handle.files.second is None or len(sigmas) < 2:
        return [0] * max(len(sigmas) - 1, 1)
    options = model.model_options.get("transformer_options", {})
    shift = getattr(model.get_model_object("model_sampling"), "shift", DISTILL_SHIFT)
    if sigmas[0] < sigmas[-1]:
        # Towards noise, as a flipped schedule goes: the same experts, from the end.
        return experts_of(sigmas[::-1], shift, options.get(HIGH_STEPS))[::-1]
    return experts_of(sigmas, shift, options.get(HIGH_STEPS))


def _check_conds(conds: Mapping[str, Sequence[Mapping[str, Any]]], text_dim: int, clip: Clip) -> None:
    """Raise where a condition has no text rows of this model's width, or is for no place, before anything is loaded.

    Raises:
        ValueError: see stages/conditioning.py and formats.check_places.
    """
    if "positive" in conds and not conds["positive"]:
        raise ValueError(Sampling.NO_TEXT(name="positive"))
    for name, entries in conds.items():
        for cond in entries or ():
            rows = cond.get("cross_attn")
            if not isinstance(rows, torch.Tensor):
                raise ValueError(Sampling.NO_TEXT(name=name))
            # ComfyUI's samplers take the first axis for clips.
            check_rows(rows, text_dim, ranks=(3,))
            formats.check_places(cond, clip)


def _check_given(conds: dict[str, list[dict[str, Any]]], architecture: WanArchitecture, clip: Clip) -> int:
    """Raise where the positive conditions have no image, or an image does not fit; return the most rows of CLIP Vision.

    A negative one without an image is computed with none, as ComfyUI does.
    """
    given = {name: [formats.read_given(cond) for cond in each or ()] for name, each in conds.items()}
    if any(each.latents is None for each in given.get("positive", ())):
        raise ValueError(NO_IMAGE)
    every = [each for entries in given.values() for each in entries]
    for one in {id(each.latents): each for each in every}.values():
        check_given(one, architecture, clip)
    return max((each.rows.shape[-2] for each in every if each.rows is not None), default=0)


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and torch.equal(one, other)


def _shape_of_window(shape: Sequence[int], options: dict[str, Any]) -> list[int]:
    """Return the shape that a pass has of latents of a shape: shorter where the node Context Windows cuts the clip."""
    windows, found = options.get("context_handler"), list(shape)
    if windows is not None:
        found[windows.dim] = min(found[windows.dim], windows.context_length)
    return found


def _clip_of(latents: Sequence[int]) -> Clip:
    shape = list(latents)
    if len(shape) == 5:
        shape[3:] = [-(-cells // patch) * patch for cells, patch in zip(shape[3:], PATCH_SIZE[1:], strict=True)]
    problem = shapes.latent_problem(shape)
    if problem:
        raise ValueError(problem)
    return Clip.of_latents(shape)


def _records_of(conds: dict[str, list[dict[str, Any]]]) -> tuple[Any, ...]:
    """Return the report's records of the stages that made the prompt and the image."""
    for cond in conds.get("positive") or ():
        parts = [cond.get(key) for key in ("cross_attn", "concat_latent_image")]
        return tuple(record for part in parts if isinstance(part, torch.Tensor) for record in records_of(part))
    return ()


def _warn_unusual(found: Sequence[float]) -> None:
    usual = build_schedule(DISTILL_STEPS, DISTILL_SHIFT).sigmas
    parts = (usual[start : start + len(found)] for start in range(len(usual)))
    if not any(_alike(found, part) for part in parts):
        logger.warning(
            "LightX2V: %s",
            Sampling.OTHER_NOISE_LEVELS(
                levels=_listed(found),
                distilled=_listed(usual),
                distill_steps=DISTILL_STEPS,
                distill_shift=DISTILL_SHIFT,
            ),
        )


def _alike(found: Sequence[float], usual: Sequence[float]) -> bool:
    return len(found) == len(usual) and all(
        abs(one - other) < _SIGMA_TOLERANCE for one, other in zip(found, usual, strict=True)
    )


def _listed(sigmas: Iterable[float]) -> str:
    return ", ".join(f"{sigma:.4g}" for sigma in sigmas)


def _name_of(sampler: Any) -> str:
    function = getattr(sampler, "sampler_function", sampler)
    return str(getattr(function, "__name__", type(function).__name__)).removeprefix("sample_")


def _add_names(root: torch.nn.Module, parameters: Iterable[tuple[str, torch.Size]]) -> None:
    """Give a module parameters of these names and shapes that take no memory."""
    for name, shape in parameters:
        if name.endswith(".weight_scale"):
            continue
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, torch.nn.Module())
            module = module._modules[part]  # type: ignore[assignment]
        empty = torch.empty(shape, dtype=torch.bfloat16, device="meta")
        module.register_parameter(leaf, torch.nn.Parameter(empty, requires_grad=False))
