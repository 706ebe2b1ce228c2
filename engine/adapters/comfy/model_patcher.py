"""The entry of a transformer in ComfyUI's memory manager, and what nodes clone and put patches on.

ComfyUI moves no weights of it: the engine loads them for the size of a clip, as planned. The base class does the rest,
so that clones, object patches (ModelSamplingSD3), wrappers and callbacks are ComfyUI's own.
"""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import comfy.utils

from . import refusals


class TransformerPatcher(comfy.model_patcher.ModelPatcher):  # type: ignore[misc]
    """A ModelPatcher without weights of ComfyUI's: see native method names for what each is asked.

    Overridden methods take whatever newer versions pass on.
    """

    def model_size(self) -> int:
        """Return the bytes that the weights take on the compute device, or are going to take by the last plan."""
        owner = self.model.lightx2v_handle.owner
        held = owner.num_bytes if owner.is_loaded else getattr(self.model, "planned_bytes", 0)
        return max(int(held), 1)

    def loaded_size(self) -> int:
        return self.model_size() if self.model.lightx2v_handle.owner.is_loaded else 0

    def current_loaded_device(self) -> Any:
        return self.load_device if self.model.lightx2v_handle.owner.is_loaded else self.offload_device

    def lowvram_patch_counter(self) -> int:
        return 0

    def partially_load(
        self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False, *_: Any, **__: Any
    ) -> int:
        """Put this clone's objects on the shared model; load nothing, which the run does.

        Raises:
            ValueError: the weights are wanted with their patches, to be saved.
        """
        if force_patch_weights:
            # ComfyUI has taken the model from its list, and would not unload it any more.
            self.model.lightx2v_handle.unload()
            raise refusals.cannot_be_saved()
        with self.use_ejected(skip_and_inject_on_exit_only=True):
            self._restore_objects()
            self.patch_model(load_weights=False)
        self.model.current_weight_patches_uuid = self.patches_uuid
        return 0

    def partially_unload(self, device_to: Any, memory_to_free: float = 0, *_: Any, **__: Any) -> int:
        """Free nothing, upon which ComfyUI calls `detach`."""
        return 0

    def detach(self, unpatch_all: bool = True) -> Any:
        """Drop the weights. With False, ComfyUI only re-registers the model and means to keep them."""
        self.eject_model()
        self.model_patches_to(self.offload_device)
        if unpatch_all:
            self.unpatch_model(self.offload_device, unpatch_weights=True)
        for callback in self.get_all_callbacks(comfy.patcher_extension.CallbacksMP.ON_DETACH):
            callback(self, unpatch_all)
        return self.model

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True, *_: Any, **__: Any) -> None:
        self.eject_model()
        self._restore_objects()
        if unpatch_weights:
            self.model.lightx2v_handle.unload()

    def load(self, *_: Any, **__: Any) -> None:
        raise AssertionError("the engine loads the weights, see pipeline.run_planned")

    def add_patches(self, patches: Any, strength_patch: float = 1.0, strength_model: float = 1.0) -> Any:
        """Note a LoRA's patches.

        Raises:
            ValueError: they merge another model into this one.
        """
        refusals.check_patches(patches, strength_model)
        return super().add_patches(patches, strength_patch, strength_model)

    def get_key_patches(self, *_: Any, **__: Any) -> Any:
        raise refusals.cannot_be_merged()

    def register_all_hook_patches(self, hooks: Any, *args: Any, **kwargs: Any) -> Any:
        refusals.check_hooks(hooks)
        return super().register_all_hook_patches(hooks, *args, **kwargs)

    def _restore_objects(self) -> None:
        """Take from the shared model what this or another clone has put there."""
        for name, value in list(self.object_patches_backup.items()):
            comfy.utils.set_attr(self.model, name, value)
        self.object_patches_backup.clear()

    def __del__(self) -> None:
        """Do not detach, as the base class would: other clones may be in use."""
