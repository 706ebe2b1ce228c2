"""Frames as an mp4 file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch


def write_mp4(
    path: Path,
    images: torch.Tensor,
    rate: Fraction | int,
    *,
    metadata: Mapping[str, str] | None = None,
    check_interrupt: Callable[[], None] = lambda: None,
) -> None:
    """Write frames [F, H, W, 3] in [0, 1] as h264; width and height are even.

    `metadata` is stored as ComfyUI stores it; `check_interrupt` is called before every frame and may raise.
    """
    with av.open(str(path), mode="w", options={"movflags": "use_metadata_tags"}) as container:
        for key, value in (metadata or {}).items():
            container.metadata[key] = value
        stream = container.add_stream("h264", rate=rate)
        _, stream.height, stream.width, _ = images.shape
        stream.pix_fmt = "yuv420p"
        for image in images:
            check_interrupt()
            frame = av.VideoFrame.from_ndarray(to_bytes(image), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))


def to_bytes(image: torch.Tensor) -> Any:
    """Return an image [H, W, 3] in [0, 1] as an array of bytes."""
    return (image * 255).clamp(0, 255).byte().cpu().numpy()
