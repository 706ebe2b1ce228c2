"""Run the real LightX2V on a CPU: a device plug-in of the kind LightX2V allows, for tests only.

`import_lightx2v` finds a checkout through LIGHTX2V_DIR (or an installed package), imports it through the pack's own
bootstrap, and teaches it that weights on a CPU are where they are computed with, not an offload home to pin. Packages
that its modules import but that nothing on this path calls get stand-ins while it is imported, where they are missing.
"""

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import types
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from lightx2v_pack.engine.adapters.lightx2v import bootstrap
from safetensors.torch import load_file, save_file

# Imported at module level by LightX2V, called by nothing that runs here.
STAND_INS = ("imageio", "imageio_ffmpeg", "torchvision", "triton")


def source_folder() -> Path:
    """Return the folder that holds `lightx2v`, or skip the test."""
    if os.environ.get("LIGHTX2V_DIR"):
        return Path(os.environ["LIGHTX2V_DIR"])
    spec = importlib.util.find_spec("lightx2v")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("LightX2V is not here: set LIGHTX2V_DIR to a checkout of it, or install it")
    return Path(spec.submodule_search_locations[0]).parent


def import_for_cuda() -> None:
    """Import LightX2V as users do, for the GPU, once a process; skips the test where that cannot be."""
    folder = source_folder()
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    reason = bootstrap.unavailable_reason()
    if reason is not None:
        pytest.skip(reason)
    bootstrap.import_lightx2v()


def source_folder_for_cpu() -> Path:
    """Return the folder that holds `lightx2v`, or skip the test where it cannot be imported for the CPU."""
    folder = source_folder()
    if torch.cuda.is_available():
        pytest.skip(
            "LightX2V computes on one device a process, and this machine has a GPU: set CUDA_VISIBLE_DEVICES=''"
        )
    missing = [name for name in ("loguru", "gguf", "einops") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"LightX2V needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed")
    return folder


def import_lightx2v() -> None:
    """Import LightX2V for the CPU, once a process; skips the test where that cannot be."""
    _import(source_folder_for_cpu())


@cache
def _import(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    with stand_ins():
        registry = importlib.import_module("lightx2v_platform.registry_factory").PLATFORM_DEVICE_REGISTER
        registry["cpu"] = CpuDevice
        bootstrap.PLATFORM = "cpu"
        bootstrap.import_lightx2v()
    _compute_where_weights_are()


class CpuDevice:
    """A device class of LightX2V; see lightx2v_platform/base/nvidia.py."""

    name = "cpu"

    @staticmethod
    def init_device_env() -> None:
        """Nothing to set."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def get_device() -> str:
        return "cpu"


def _compute_where_weights_are() -> None:
    def keep(base_attrs, weight_dict):
        tensors = {}
        for name, attribute, transpose in base_attrs:
            tensors[attribute] = weight_dict[name].t() if transpose else weight_dict[name]
        return tensors, {}

    for name, module in list(sys.modules.items()):
        if name.startswith("lightx2v.") and hasattr(module, "create_default_tensors"):
            module.create_default_tensors = keep

    def keep_tensor(self, weight_dict):
        if not self.lazy_load:
            self.tensor = weight_dict[self.tensor_name]

    importlib.import_module("lightx2v.common.ops.tensor.tensor").DefaultTensor._load_default_tensors = keep_tensor


@contextmanager
def stand_ins():
    """Let missing packages of STAND_INS import as empty shells, and forget them afterwards."""
    finder = _StandInFinder([name for name in STAND_INS if importlib.util.find_spec(name) is None])
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _StandIn)]:
            del sys.modules[name]


class _StandIn(types.ModuleType):
    """A module in which every name is a mock; triton's Config keeps its values, which LightX2V sorts by."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _TritonConfig if name == "Config" else MagicMock(name=name)


class _TritonConfig(SimpleNamespace):
    def __init__(self, kwargs, num_stages=1, num_warps=1, **_):
        super().__init__(kwargs=kwargs, num_stages=num_stages, num_warps=num_warps)


class _StandInFinder:
    def __init__(self, names):
        self._names = names

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self._names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _StandIn(spec.name)

    def exec_module(self, module):
        """Nothing to run."""


def with_bfloat16_scales(path, folder):
    """Copy a checkpoint with scales that upstream's loader, which rounds them to bfloat16, leaves as they are."""
    tensors = load_file(path)
    tensors = {n: t.bfloat16().float() if n.endswith("weight_scale") else t for n, t in tensors.items()}
    save_file(tensors, folder / path.name)
    return folder / path.name


def build_upstream(path, config, device):
    """Return (WanDistillModel, WanStepDistillScheduler) of LightX2V itself, weights read by its own loader."""
    from lightx2v.models.networks.wan.distill_model import WanDistillModel
    from lightx2v.models.schedulers.wan.step_distill.scheduler import WanStepDistillScheduler
    from lightx2v.utils.set_config import get_default_config

    config = {**get_default_config(), **config}
    model = WanDistillModel(str(path), config, torch.device(device))
    scheduler = WanStepDistillScheduler(config)
    model.set_scheduler(scheduler)
    return model, scheduler


def sample_upstream(model, scheduler, context, noise, image=None):
    """Run LightX2V's own four steps from `noise` [16, T, h, w] and return its latents as float32.

    Args: image: what its image encoder and its VAE gave, by its names.
    """
    scheduler.generator = None
    scheduler.prepare(0, list(noise.shape))
    scheduler.latents = noise.clone()
    inputs = {"text_encoder_output": {"context": context[None], "context_null": None}, "image_encoder_output": image}
    for index in range(scheduler.infer_steps):
        scheduler.step_pre(index)
        model.infer(inputs)
        scheduler.step_post()
    return scheduler.latents.float()
