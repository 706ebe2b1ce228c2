"""Import LightX2V's Wan components, and nothing else of it.

`import lightx2v` runs its `__init__`, which imports every model runner and fails without flash-attn, decord and
others. The components work on their own once `lightx2v_platform.set_ai_device` has run and the name `lightx2v` is
an empty package with the real `__path__`. Nothing happens at our own import time; environment variables that
LightX2V reads are set for the duration of its first import only (it keeps what it read) and put back.
Source: https://github.com/ModelTC/LightX2V, commit below.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from types import ModuleType

import torch

from ...errors import LightX2VError, MissingDependencyError
from ...sentences.lightx2v import LightX2V

logger = logging.getLogger(__name__)

# The device backend that LightX2V is told to use.
PLATFORM = "cuda"
KNOWN_COMMIT = "f8aee98b5462cca8d7288888146ebd95592bf266"
INSTALL = f"pip install --no-deps git+https://github.com/ModelTC/LightX2V@{KNOWN_COMMIT}"
# What the Wan components import beyond what ComfyUI brings: module name to the name pip knows.
DEPENDENCIES = {
    "loguru": "loguru",
    "gguf": "gguf",
    "imageio": "imageio",
    "imageio_ffmpeg": "imageio-ffmpeg",
    "triton": "triton-windows" if sys.platform == "win32" else "triton",
}
# Every upstream module, name and method that this adapter uses or overrides; a version without them is refused.
NEEDED = {
    "lightx2v.common.ops.attn.template": ("AttnWeightTemplate",),
    "lightx2v.common.ops.mm.mm_weight": ("MMWeightQuantTemplate",),
    "lightx2v.models.networks.wan.distill_model": (
        "WanDistillModel._apply_weights",
        "WanDistillModel._check_dit_quantized",
        "WanDistillModel._infer_cond_uncond",
        "WanDistillModel._init_infer_class",
        "WanDistillModel._load_ckpt",
        "WanDistillModel._load_quant_ckpt",
    ),
    "lightx2v.models.networks.wan.infer.offload.transformer_infer": ("WanOffloadTransformerInfer.run_phase",),
    "lightx2v.models.networks.wan.infer.transformer_infer": (
        "WanTransformerInfer.infer_cross_attn",
        "WanTransformerInfer.infer_main_blocks",
        "WanTransformerInfer.run_block",
    ),
    "lightx2v.models.schedulers.wan.step_distill.scheduler": (
        "WanStepDistillScheduler.clear",
        "WanStepDistillScheduler.step_pre",
    ),
    "lightx2v.models.video_encoders.hf.tae": ("TAEHV.decode_video", "TAEHV.patch_tgrow_layers"),
    "lightx2v.models.video_encoders.hf.wan.vae": ("WanVAE_.clear_decode_cache", "WanVAE_.decode_stream"),
    "lightx2v.utils.envs": ("GET_DTYPE", "GET_SENSITIVE_DTYPE"),
    "lightx2v.utils.registry_factory": ("ATTN_WEIGHT_REGISTER", "MM_WEIGHT_REGISTER"),
    "lightx2v.utils.set_config": ("get_default_config",),
}

_lock = threading.Lock()


def missing_packages() -> list[str]:
    """Return which of LightX2V's two packages are not installed. Runs nothing of them."""
    if "lightx2v" in sys.modules:
        return []
    return [name for name in ("lightx2v", "lightx2v_platform") if importlib.util.find_spec(name) is None]


def unavailable_reason() -> str | None:
    """Return a sentence that says why LightX2V cannot be imported here and what to do, or None. Runs nothing of it."""
    missing = missing_packages()
    if missing:
        return LightX2V.NOT_INSTALLED(name=missing[0], install=INSTALL)
    packages = [
        pip_name
        for name, pip_name in DEPENDENCIES.items()
        if name not in sys.modules and importlib.util.find_spec(name) is None
    ]
    if packages:
        return LightX2V.NEEDS_PACKAGES(packages=", ".join(packages), to_install=" ".join(packages))
    return None


def import_lightx2v() -> None:
    """Make `lightx2v.*` importable and check that it has what this adapter needs; later calls do nothing.

    Raises:
        MissingDependencyError: LightX2V or a package that it imports is not installed.
        LightX2VError: the installed version lacks what is needed.
    """
    with _lock:
        _import_once()


@functools.cache
def _import_once() -> None:
    reason = unavailable_reason()
    if reason is not None:
        raise MissingDependencyError(reason)
    with _restored_modules(), _environment():
        _import_components()
    logger.info("LightX2V: %s", LightX2V.IMPORTED(path=sys.modules["lightx2v"].__path__[0]))


def _import_components() -> None:
    try:
        for name in ("lightx2v", "lightx2v_platform"):
            # Dozens of lines about packages that nobody asked for.
            importlib.import_module("loguru").logger.disable(name)
        importlib.import_module("lightx2v_platform.set_ai_device")
        if "lightx2v" not in sys.modules:
            sys.modules["lightx2v"] = _empty_package("lightx2v")
        for module_name, names in NEEDED.items():
            module = importlib.import_module(module_name)
            for name in names:
                attrgetter(name)(module)
        # Both are cached at first use; read them while the environment says what we need.
        envs = sys.modules["lightx2v.utils.envs"]
        dtypes = envs.GET_DTYPE(), envs.GET_SENSITIVE_DTYPE()
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] not in sys.modules:
            raise MissingDependencyError(LightX2V.NEEDS_PACKAGE(name=error.name)) from error
        raise _unknown_version(error) from error
    except (ImportError, AttributeError) as error:
        raise _unknown_version(error) from error
    if set(dtypes) != {torch.bfloat16}:
        raise LightX2VError(LightX2V.OTHER_DTYPE(dtype=dtypes[0], sensitive=dtypes[1]))


def _unknown_version(error: Exception) -> LightX2VError:
    return LightX2VError(
        LightX2V.OTHER_VERSION(torch=torch.__version__, error=error, commit=KNOWN_COMMIT, install=INSTALL)
    )


def _empty_package(name: str) -> ModuleType:
    """Return a package with the installed one's folder as its path, whose `__init__` has not run."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(LightX2V.NO_PACKAGE(name=name))
    package = ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = importlib.util.spec_from_loader(name, loader=None, is_package=True)
    return package


@contextmanager
def _restored_modules() -> Iterator[None]:
    """Forget LightX2V's modules again when the import fails, so that a repaired install works without a restart."""
    before = set(sys.modules)
    try:
        yield
    except BaseException:
        for name in set(sys.modules) - before:
            if name.split(".")[0] in ("lightx2v", "lightx2v_platform"):
                del sys.modules[name]
        raise


@contextmanager
def _environment() -> Iterator[None]:
    """Set the variables that LightX2V reads while it is imported."""
    wanted = {"DTYPE": "BF16", "SENSITIVE_LAYER_DTYPE": "None", "PLATFORM": PLATFORM}
    if not torch.cuda.is_available():
        wanted["SKIP_PLATFORM_CHECK"] = "1"
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
