"""Light handles for checkpoints: what a loader returns. Weights load when a stage first needs them.

A handle says what is to be loaded and how; its owner (memory/owner.py) holds what is. Views of one checkpoint share the
owner, so that one of them loads and the others find it loaded.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from . import engines
from .backends.choose import Backends, Wanted, choose
from .backends.trials import find_machine
from .checkpoints.companions import TextEncoderFiles, VaeFiles
from .checkpoints.formats import WanArchitecture
from .checkpoints.names import distilled_twice, undistilled
from .checkpoints.source import list_specs
from .checkpoints.transformers import TransformerFiles
from .checkpoints.weights import TensorSpec
from .errors import CheckpointError, LightX2VError
from .interfaces import Hooks, Host, Transformer, VideoDecoder, VideoEncoder
from .lora.changes import Lora, Stack
from .lora.compose import Composition
from .lora.experts import ExpertLoras, read_for_experts
from .lora.reader import Patch, lora_of_patches
from .memory.clip import Clip
from .memory.needs import Need, Sizes, encoding_need, resting_need, vae_weight_bytes
from .memory.owner import WeightOwner
from .memory.plan import MemoryPlan
from .memory.room import Room
from .memory.weights import WeightSizes, together
from .offload import weigh
from .parallel.decoder import GroupDecoder, can_be_shared
from .parallel.group import Members, running_group
from .parallel.members import choose_members
from .parallel.room import GroupRoom
from .parallel.transformer import GroupTransformer
from .sentences.sampling import Sampling
from .settings import EngineSettings, GpuSettings, OffloadSettings
from .umt5.encoder import Umt5Encoder
from .wan.layout import FLOAT32, IMAGE_KEYS, PHASES, PHASES_WITH_IMAGE

ONE_GPU = GpuSettings()

_Coder = TypeVar("_Coder", VideoDecoder, VideoEncoder)


class _Handle:
    """What ComfyUI asks of every handle."""

    owner: WeightOwner[Any]

    @property
    def patcher(self) -> Any:
        """The entry of ComfyUI's memory manager; its RAM-pressure cache looks for it in node outputs."""
        return self.owner.patcher

    def unload(self) -> None:
        """Give back all memory; the next stage that needs the weights loads them again."""
        self.owner.unload()


class TransformerHandle(_Handle):
    """A transformer checkpoint and how to run it."""

    def __init__(
        self,
        files: TransformerFiles,
        settings: EngineSettings,
        offload: OffloadSettings,
        gpus: GpuSettings = ONE_GPU,
    ) -> None:
        self.files = files
        self.settings = settings
        self.offload = offload
        self.gpus = gpus
        self.owner: WeightOwner[Transformer] = WeightOwner("transformer")
        self.stacks = tuple(Stack() for _ in files.experts)
        """LoRAs of each expert."""

    def view(self) -> TransformerHandle:
        """Return a handle of its own on the same weights, loaded or not."""
        return copy.copy(self)

    def read_lora(self, path: Path, expert: str = "both") -> ExpertLoras:
        """Read a LoRA file for this checkpoint; see lora/experts.py.

        Raises:
            CheckpointError: the file cannot be used, is for another model, or there is no such expert here.
        """
        return read_for_experts(path, self.files.header, self.files.names, expert)

    def read_patches(self, patches: Sequence[Patch], *, title: str, identity: Hashable) -> Lora:
        """Return what a host's own LoRA loader has read as a LoRA for this checkpoint; see lora/reader.py.

        Raises:
            CheckpointError: a patch cannot be applied exactly.
        """
        return lora_of_patches(patches, self.files.header, title=title, identity=identity)

    def with_lora(self, lora: Lora | ExpertLoras, strength: float = 1.0) -> TransformerHandle:
        """Return a view of the same weights that computes with one LoRA more, on all experts or on those it is for.

        Raises:
            ValueError: the strength is no number.
            LightX2VError: the engine cannot compute with LoRAs.
        """
        view = self.view()
        each = lora.each if isinstance(lora, ExpertLoras) else (lora,) * len(self.stacks)
        pairs = zip(self.stacks, each, strict=True)
        view.stacks = tuple(stack if one is None else stack.add(one, strength) for stack, one in pairs)
        if any(view.stacks):
            engines.check_loras(self.settings.engine)
        return view

    @property
    def architecture(self) -> WanArchitecture:
        return self.files.format.architecture

    @property
    def text_dim(self) -> int:
        return self.architecture.text_dim

    @property
    def doubts(self) -> str:
        """Why four steps without CFG may be wrong for it, by the names of files; "" where nothing says so."""
        used = [lora for stack in self.stacks for lora, strength in stack.entries if strength > 0]
        if not self.files.promises_distilled:
            return "" if any(lora.may_distill for lora in used) else undistilled(self.files.title)
        second = next((lora.title for lora in used if lora.says_it_distills), "")
        return distilled_twice(self.files.title, second) if second else ""

    @property
    def moved_bytes(self) -> int:
        """Bytes copied to the GPU since the engine was made."""
        return self.owner.engine.moved_bytes if self.owner.engine else 0

    def room(self, host: Host) -> Room:
        """Return the memory that a run on the host can have."""
        members = self.members(host.device)
        if members is None:
            return Room(host, self.offload, self.owner)
        return GroupRoom(host, self.offload, self.owner, members)

    def members(self, device: torch.device) -> Members | None:
        """Return the devices that compute together with the host's, or None where it computes alone.

        Raises:
            UnsupportedHardwareError, MissingDependencyError: those that were named cannot.
        """
        members = choose_members(self.gpus, device)
        if members is not None and self.settings.engine == "lightx2v":
            raise LightX2VError(Sampling.ONE_GPU())
        return members

    def wanted(self, device: torch.device, clip: Clip | None = None) -> Wanted:
        """Return what decides the kernels, of a clip where it is known.

        Raises:
            MissingDependencyError, UnsupportedHardwareError: the engine that was chosen cannot run here.
        """
        architecture = self.architecture
        return Wanted(
            precision=self.files.format.precision,
            dim=architecture.dim,
            ffn_dim=architecture.ffn_dim,
            engine=engines.choose_engine(self.settings.engine, device),
            attention=self.settings.attention,
            fused_kernels=self.settings.compile,
            num_heads=architecture.num_heads,
            tokens=clip.tokens if clip else 0,
        )

    def sizes(self, clip: Clip, backends: Backends) -> Sizes:
        """Return what a plan is made of, where one device computes."""
        compositions = self._compositions(backends)
        return Sizes(
            clip=clip,
            architecture=self.architecture,
            weights=self._weight_sizes(compositions),
            backends=backends,
            lora_columns=max(each.num_columns for each in compositions),
            lora_rank=max(each.rank for each in compositions),
        )

    def sizes_now(self, clip: Clip, device: torch.device) -> Sizes:
        """Return the same with the kernels that this machine will run, by what is known of it yet."""
        machine, wanted = find_machine(device), self.wanted(device, clip)
        backends, unmeasured = choose(machine, wanted), choose(replace(machine, measured={}), wanted)
        is_leaner = unmeasured.attention_bytes < backends.attention_bytes
        members = self.members(device)
        ranks = members.size if members is not None else 1
        return replace(self.sizes(clip, backends), leaner=unmeasured if is_leaner else None, ranks=ranks)

    def is_loaded_as(self, plan: MemoryPlan) -> bool:
        """Say whether the weights are where the plan wants them, for its kernels."""
        return self.owner.is_loaded and self.owner.key == self._key(plan)

    def load(self, plan: MemoryPlan, device: torch.device, hooks: Hooks) -> Transformer:
        """Return the transformer, loaded as planned, with this view's LoRAs and no others.

        Where LoRAs cannot be loaded, or that is cancelled, the other weights stay loaded.

        Raises:
            CheckpointError: a file has changed since it was looked at, or cannot be read.
        """
        self.files.check_unchanged()
        for lora in {id(lora): lora for stack in self.stacks for lora, _ in stack.entries}.values():
            lora.check_unchanged()
        sizes = self._weight_sizes(self._compositions(plan.backends))
        members = self.members(device)
        ranks = members.size if members else 1
        need = resting_need(sizes, plan.placement, on_gpu=device.type == "cuda", ranks=ranks)
        if members is not None:
            need = replace(need, vram=plan.claimed[0])
        if device.type != "cuda":
            # On a CPU its weights are mapped from their files, which the system can take back.
            need = Need(vram=0, ram=sizes.num_experts * sizes.num_blocks * sizes.lora_block)

        def build() -> Transformer:
            if members is not None:
                return GroupTransformer(self.files, plan.backends, plan.placements, members)
            return engines.build_transformer(self.files, plan.backends, plan.placement, device)

        self.owner.is_elsewhere = members is not None
        transformer = self.owner.load(
            self._key(plan),
            build,
            lambda transformer: transformer.load(hooks),
            need,
            plan.placement,
        )
        for expert, stack in enumerate(self.stacks):
            transformer.use_loras(stack, hooks, expert)
        return transformer

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Give back afterwards what only sampling needs, so that a decode has room beside the weights."""
        try:
            yield
        finally:
            if self.owner.engine is not None:
                self.owner.engine.release_workspace()

    def _compositions(self, backends: Backends) -> list[Composition]:
        """Return each expert's LoRAs."""
        pairs = zip(self.stacks, self.files.experts, strict=True)
        return [Composition(stack, _specs(files), backends.inputs) for stack, files in pairs]

    def _weight_sizes(self, compositions: Sequence[Composition]) -> WeightSizes:
        """Return the bytes of the weights in memory, LoRAs included."""
        if not any(each.specs for each in compositions):
            return weight_sizes(self.files, self.settings.engine)
        pairs = zip(self.files.experts, compositions, strict=True)
        return together([weigh(_specs(files), PHASES, IMAGE_KEYS, loras.specs) for files, loras in pairs])

    def _key(self, plan: MemoryPlan) -> tuple[Any, ...]:
        return self.files, plan.backends.names, plan.placements


@functools.lru_cache(maxsize=16)
def weight_sizes(files: TransformerFiles, engine: str = "auto") -> WeightSizes:
    """Return the bytes of a transformer's weights in memory, of all experts, from the headers.

    Args: engine: of EngineSettings.
    """
    phases = PHASES_WITH_IMAGE if engine == "lightx2v" else PHASES
    return together([weigh(_specs(each), phases, IMAGE_KEYS) for each in files.experts])


@functools.lru_cache(maxsize=16)
def _specs(files: TransformerFiles) -> tuple[TensorSpec, ...]:
    """Return a transformer's tensors, from its headers; every plan asks for them."""
    return tuple(list_specs(files, FLOAT32))


class VaeHandle(_Handle):
    """A VAE file and how to decode and encode with it, or a part that a checkpoint lacks: `problem` says so when it is
    used.

    Its encoder and its decoder are loaded in turn, never both.
    """

    def __init__(
        self,
        files: VaeFiles | None,
        engine: str,
        offload: OffloadSettings,
        problem: str = "",
        gpus: GpuSettings = ONE_GPU,
    ) -> None:
        self._files = files
        self._problem = problem
        self.engine = engine
        self.offload = offload
        self.gpus = gpus
        self.owner: WeightOwner[VideoDecoder | VideoEncoder] = WeightOwner("VAE")

    @property
    def files(self) -> VaeFiles:
        if self._files is None:
            raise CheckpointError(self._problem)
        return self._files

    def room(self, host: Host) -> Room:
        """Return the memory that a decode or an encode on the host can have."""
        room, members = Room(host, self.offload, self.owner), self.members(host.device)
        # Ranks that a transformer has started do not end where it leaves to make room.
        room.companion = running_group(members) if members is not None else None
        return room

    def load_decoder(
        self, device: torch.device, hooks: Hooks, *, is_whole: bool = False, pins_frames: bool = True
    ) -> VideoDecoder:
        """Return the decoder, loaded.

        Args:
            is_whole: whether it decodes whole pictures alone, which several GPUs can do together.
            pins_frames: let their frames come through page-locked RAM.
        """
        members = self.members(device) if is_whole else None

        def build() -> VideoDecoder:
            if members is not None:
                return GroupDecoder(self.files, members)
            return engines.build_decoder(self.files, self.engine, device)

        decoder = self._load("decode", build, device, hooks, members)
        if isinstance(decoder, GroupDecoder):
            decoder.pins_frames = pins_frames
        return decoder

    def members(self, device: torch.device) -> Members | None:
        """Return the devices that decode whole pictures together with the host's, or None where it does so alone.

        Raises:
            UnsupportedHardwareError, MissingDependencyError: those that were named cannot.
        """
        return choose_members(self.gpus, device) if can_be_shared(self.files, self.engine) else None

    def load_encoder(self, device: torch.device, hooks: Hooks) -> VideoEncoder:
        """Return the encoder, loaded.

        Raises:
            CheckpointError: the file holds a decoder only.
        """
        return self._load("encode", lambda: engines.build_encoder(self.files, device), device, hooks)

    def _load(
        self,
        stage: str,
        build: Callable[[], _Coder],
        device: torch.device,
        hooks: Hooks,
        members: Members | None = None,
    ) -> _Coder:
        self.files.check_unchanged()
        # What is loaded under this key is what `build` makes.
        owner: WeightOwner[Any] = self.owner
        vram = vae_weight_bytes(stage, self.files.base_dim) if device.type == "cuda" else 0
        need = Need(vram=vram, ram=0)
        owner.is_elsewhere = members is not None
        loaded: _Coder = owner.load((stage, self.engine, members), build, lambda coder: coder.load(hooks), need)
        return loaded


class TextEncoderHandle(_Handle):
    """A text encoder file and its tokenizer, or a part that a checkpoint lacks: see VaeHandle."""

    def __init__(self, files: TextEncoderFiles | None, problem: str = "") -> None:
        self._files = files
        self._problem = problem
        self.owner: WeightOwner[Umt5Encoder] = WeightOwner("text encoder")

    @property
    def files(self) -> TextEncoderFiles:
        if self._files is None:
            raise CheckpointError(self._problem)
        return self._files

    def need(self, place: str) -> Need:
        """Return what encoding a prompt takes on "cpu" or "gpu"."""
        return encoding_need(self.files.num_bytes, place)

    def load(self, place: str, device: torch.device, hooks: Hooks) -> Umt5Encoder:
        """Return the text encoder, loaded on "cpu" or "gpu"."""
        self.files.check_unchanged()
        vram = self.need("gpu").vram if device.type == "cuda" else 0
        return self.owner.load(
            None,
            lambda: engines.build_text_encoder(self.files),
            lambda encoder: encoder.load(place, hooks),
            Need(vram=vram, ram=0),
        )
