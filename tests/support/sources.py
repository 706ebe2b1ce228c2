"""Tensors in files as the offload machinery reads them."""

from lightx2v_pack.engine.checkpoints.weights import TensorSpec, open_weights


class FileSource:
    """Tensors of safetensors files, each wanted in the dtype that `dtypes` has for what is stored, or as it is."""

    def __init__(self, paths, dtypes):
        self.weights = open_weights(paths)
        self.specs = [TensorSpec(n, dtypes.get(t.dtype, t.dtype), t.shape) for n, t in self.weights.items()]

    def read(self, spec, elements=None):
        stored = self.weights[spec.name]
        return stored.to(spec.dtype) if elements is None else stored.flatten()[elements]

    def location(self, spec):
        return self.weights.location(spec.name, spec.dtype)

    def close(self):
        self.weights.close()
