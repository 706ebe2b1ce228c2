"""What the stages share: budget, learning rate, CUDA graphs, an average of the weights, and the log of a stage."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import autocast as AutocastMode  # noqa: N812

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a stage trains: until the first of both is used up.

    Steps make a run repeatable; seconds make it end in time on a machine whose speed is not known.
    """

    seconds: float = math.inf
    steps: int | None = None

    def __iter__(self) -> Iterator[tuple[int, float]]:
        """Yield (step, share of the budget that is used)."""
        start, step = time.monotonic(), 0
        while True:
            used = max((time.monotonic() - start) / self.seconds, step / self.steps if self.steps else 0.0)
            if used >= 1:
                return
            yield step, used
            step += 1


class Trainer:
    """AdamW with a learning rate that rises, then falls as a cosine over the budget, and clipped gradients."""

    def __init__(self, modules: Iterable[torch.nn.Module], learning_rate: float) -> None:
        self._parameters = [parameter for module in modules for parameter in module.parameters()]
        device = self._parameters[0].device
        is_gpu = device.type == "cuda"
        self._peak = learning_rate
        # The learning rate is a tensor, so that it can be changed where a step is recorded.
        self._optimizer = torch.optim.AdamW(
            self._parameters,
            lr=torch.tensor(learning_rate, device=device),
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=is_gpu,
            capturable=is_gpu,
        )
        self.set_rate(0.0)

    def set_rate(self, used: float) -> None:
        """Set the learning rate; `used` is the share of the budget that is used."""
        rate = self._peak * min(1.0, used / 0.03 + 0.01) * (0.51 + 0.49 * math.cos(math.pi * used))
        for group in self._optimizer.param_groups:
            group["lr"].fill_(rate)

    def descend(self, loss: torch.Tensor) -> None:
        """Make one step down the gradient of `loss`."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()


class Recorded(Generic[Result]):
    """A step of the training as one CUDA graph.

    A step of a small network is a thousand short kernels, and Python takes longer to launch them than the GPU to run
    them. So the step is done a few times, then recorded, and from then on replayed: one launch, the same kernels on
    the same memory. The step therefore takes no arguments, changes tensors in place, and never waits for the GPU;
    what it returns is overwritten by the next replay.
    """

    def __init__(self, step: Callable[[], Result]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            self._result = step()

    def __call__(self) -> Result:
        self._graph.replay()
        return self._result


class Average:
    """A running average of the weights of modules: less noisy than the last ones, so it is what is kept."""

    def __init__(self, modules: Iterable[torch.nn.Module], decay: float = 0.999) -> None:
        self._parameters = [parameter.detach() for module in modules for parameter in module.parameters()]
        self._averages = [parameter.clone() for parameter in self._parameters]
        self._decay = decay
        self._updates = 0

    def update(self) -> None:
        """Take in the weights as they are now; early ones are forgotten faster."""
        self._updates += 1
        decay = min(self._decay, self._updates / (self._updates + 10))
        torch._foreach_lerp_(self._averages, self._parameters, 1 - decay)

    def apply(self) -> None:
        """Put the averages in place of the weights."""
        torch._foreach_copy_(self._parameters, self._averages)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages in place of the weights for a while."""
        weights = [parameter.clone() for parameter in self._parameters]
        self.apply()
        yield
        torch._foreach_copy_(self._parameters, weights)


class Alarm:
    """Says every so many seconds that it is time to keep what has been learnt, in case the stage is cut off."""

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def rings(self) -> bool:
        if time.monotonic() - self._last < self._seconds:
            return False
        self._last = time.monotonic()
        return True


class Log:
    """The training log: one JSON object a line, and the same as text on standard output."""

    def __init__(self, path: Path, stage: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._stage = path, stage
        self._start = time.monotonic()

    def write(self, **facts: Any) -> None:
        """Add a line: stage, seconds since its start, and `facts`."""
        seconds = round(time.monotonic() - self._start, 1)
        facts = {name: round(value, 5) if isinstance(value, float) else value for name, value in facts.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self._stage, "seconds": seconds, **facts}) + "\n")
        text = "  ".join(f"{name} {value}" for name, value in facts.items())
        print(f"[{self._stage} {seconds:7.1f} s]  {text}", flush=True)


def autocast(device: torch.device, *, enabled: bool = True) -> AutocastMode:
    """Compute in bfloat16 on a GPU, where it is fast; on a CPU or when not enabled, in the dtype of the inputs."""
    return AutocastMode(device.type, torch.bfloat16, enabled=enabled and device.type == "cuda")
