"""Tensors in files as the offload machinery reads them."""

from lightx2v_pack.engine.checkpoints.weights import FileRange, TensorSpec, open_weights
from lightx2v_pack.engine.offload.reader import Piece


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


def before_every_read(monkeypatch, call):
    """Call `call` with each piece (offload/reader.py) before it is read from its file, on the thread that reads it.

    What has to be converted on its way is not read as a piece of a file.
    """
    write = Piece.write

    def write_after_call(piece, source, memory, home=None):
        if isinstance(piece.place, FileRange):
            call(piece)
        write(piece, source, memory, home)

    monkeypatch.setattr(Piece, "write", write_after_call)
