"""What the name of a file promises about its content, where nothing inside it tells."""

from __future__ import annotations

import re
from pathlib import Path

from ..sentences.checkpoints import Models

# Names of the methods, models and tools by which few-step models are made.
_DISTILLED = re.compile(
    r"distill|lightx2v|lightning|turbo|causvid|accvid|fastwan|self[ _-]?forcing|\bdmd|rcm\b|\d[ _-]?steps?(?![a-z])",
    re.IGNORECASE,
)
# The pack's own folder below models/ says nothing of what is put there.
_OWN_FOLDER = "lightx2v"


def promises_distilled(name: str) -> bool:
    """Say whether the name of a model or a LoRA says that it works in a few steps without CFG."""
    return _DISTILLED.search(name) is not None


def path_promises_distilled(path: Path) -> bool:
    """Say the same of a file or a folder, or of one of the two folders that it is in."""
    return any(promises_distilled(part) for part in path.parts[-3:] if part.lower() != _OWN_FOLDER)


def undistilled(title: str) -> str:
    """Return the sentence about a model that is sampled in a few steps, without saying that it is for that."""
    return Models.UNDISTILLED(title=title)


def distilled_twice(title: str, lora: str) -> str:
    """Return the sentence about a LoRA that distills, on a model that is distilled."""
    return Models.DISTILLED_TWICE(title=title, lora=lora)
