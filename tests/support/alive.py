"""What of an engine's tensors and objects is in memory, seen from outside."""

import gc
import weakref

import torch

PACKAGES = ("lightx2v_pack.engine.", "lightx2v.")


class Snapshot:
    """The tensors, and the objects of the engine and of LightX2V, that there are now."""

    def __init__(self):
        self._refs = {id(thing): weakref.ref(thing) for thing in _things()}

    def made_since(self):
        """Return weak references to those that came after."""
        return [weakref.ref(thing) for thing in _things() if not self._has(thing)]

    def _has(self, thing):
        ref = self._refs.get(id(thing))
        return ref is not None and ref() is thing


def alive(refs):
    """Return what weak references still lead to."""
    return [thing for thing in (ref() for ref in refs) if thing is not None]


def tensors(refs):
    """Return the tensors among what weak references still lead to."""
    return [thing for thing in alive(refs) if isinstance(thing, torch.Tensor)]


def num_bytes(tensors):
    """Return the bytes that tensors show, those that several show once."""
    spans, end, total = sorted((each.data_ptr(), each.data_ptr() + each.nbytes) for each in tensors), 0, 0
    for first, last in spans:
        total += max(0, last - max(first, end))
        end = max(end, last)
    return total


def _things():
    for thing in gc.get_objects():
        kind = type(thing)
        if issubclass(kind, torch.Tensor) or (str(kind.__module__).startswith(PACKAGES) and kind.__weakrefoffset__):
            yield thing
