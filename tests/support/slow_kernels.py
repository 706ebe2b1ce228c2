"""Kernels whose seconds are made up: a clock that stands still but for what each of them is said to take."""

from types import SimpleNamespace

import torch
from lightx2v_pack.engine.backends import measure
from lightx2v_pack.engine.kernels import attention, matmul


class Clock:
    """Time as engine/backends/measure.py sees it."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.calls = []
        """Names of the kernels that were called."""
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def attention(self, **seconds):
        """Let attention back ends be torch's, and take so long; an exception is raised for more than a few rows."""
        for name, each in seconds.items():
            self._monkeypatch.setitem(attention.KERNELS, name, self._attention(name, each))

    def matmuls(self, **seconds):
        """Let FP8 matmuls be exact, and take so long."""
        for name, each in seconds.items():
            self._monkeypatch.setitem(matmul._KERNELS, name, self._matmul(name, each))

    def take(self, name, seconds):
        """Be called, for so long; an exception is raised."""
        self.calls.append(name)
        if isinstance(seconds, Exception):
            raise seconds
        self.now += seconds

    def _attention(self, name, seconds):
        def attend(q, k, v):
            self.take(name, seconds)
            return attention.sdpa(q, k, v)

        return attend

    def _matmul(self, name, seconds):
        def multiply(x, scale, weights, out):
            self.take(name, seconds)
            product = (x.float() * scale) @ (weights.weight.float() * weights.weight_scale.view(-1, 1)).t()
            out.copy_(torch.add(product, weights.bias))

        return multiply
