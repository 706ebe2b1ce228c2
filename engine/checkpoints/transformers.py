"""The files of a transformer, alone or as the two experts of Wan2.2 A14B; which expert is which, by their names.

Experts have the same tensors of the same shapes, so that only the name tells them apart; text to video is not told from
Wan2.1 either.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import CheckpointError
from ..sentences import joined
from ..sentences.between import Between
from ..sentences.folders import Folders
from .disk import Stamp, check_unchanged
from .formats import TransformerFormat
from .header import Header
from .names import path_promises_distilled

# In the order in which they compute.
EXPERTS = ("high", "low")

# As files and folders are called: high_noise_model, HighNoise, wan2.2_t2v_high_noise_14B, t2v-high-lightx2v.
# Words begin after what is no letter, or with a capital after a small one.
_START = r"(?:(?<![A-Za-z])|(?<=[a-z])(?=[HL]))"
_SAID = re.compile(rf"{_START}((?i:high|low))(?i:[ _.-]?noise)")
_WORD = re.compile(rf"{_START}((?i:high|low))(?=(?i:noise)|[^a-z]|$)")
# Where it is said which Wan a file is.
_NO_EXPERT, _HAS_EXPERTS = re.compile(r"(?i)wan[ ._-]?2[._]?1(?!\d)"), re.compile(r"(?i)wan[ ._-]?2[._]?2(?!\d)|a14b")
# Of two files of one size so much is compared, in so many places: every weight of two experts differs.
_PROBES, _PROBE_BYTES = 64, 4096


@dataclass(frozen=True, kw_only=True)
class TransformerFiles:
    """The files of a transformer and how they store it."""

    files: tuple[Path, ...]
    """Layout blocks: non_block.safetensors, then block_<i>.safetensors by number."""
    layout: str
    """blocks | single | sharded."""
    format: TransformerFormat
    num_bytes: int
    """Bytes of all tensors."""
    header: Header = field(repr=False, compare=False)
    """Of all files together, without the prefix and without tensors that nothing reads."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What a user should know of the files, one sentence each."""
    stamps: tuple[Stamp, ...] = ()
    """Of the files, when they were looked at."""
    noise: str = ""
    """high | low: the expert of Wan2.2 that it is; "" where it is none, or its name does not say."""
    second: TransformerFiles | None = None
    """The low-noise expert, where this is the high-noise one of a pair."""

    @property
    def experts(self) -> tuple[TransformerFiles, ...]:
        """This one, and the other of a pair, in the order in which they compute."""
        return (self,) if self.second is None else (self, self.second)

    def check_unchanged(self) -> None:
        """Raise CheckpointError where a file is not as it was."""
        for each in self.experts:
            for file, before in zip(each.files, each.stamps, strict=True):
                check_unchanged(file, before)

    @property
    def promises_distilled(self) -> bool:
        """Whether a name says that it works in four steps; nothing inside the files does."""
        return path_promises_distilled(self.files[0])

    @property
    def names(self) -> tuple[str, ...]:
        """What the experts are called in logs and reports: high and low of a pair; of a single one high, low or ""."""
        return EXPERTS if self.second is not None else (self.noise,)

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors of all experts."""
        return sum(each.num_bytes for each in self.experts)

    @property
    def every_file(self) -> tuple[Path, ...]:
        """The files of all experts."""
        return tuple(file for each in self.experts for file in each.files)

    @property
    def folder(self) -> Path:
        """Where it lies; where that is the folder of an expert, the one above."""
        folder = self.files[0].parent
        return folder.parent if _said(folder.name) else folder

    @property
    def title(self) -> str:
        """The file's name, or the folder's with the one above it; both of a pair."""
        file = self.files[0]
        own = file.name if self.layout == "single" else "/".join(file.parent.parts[-2:])
        if self.layout == "single" and not _said(file.name) and _said(file.parent.name):
            own = f"{file.parent.name}/{file.name}"
        return own if self.second is None else Folders.BOTH_TITLES(title=own, other=self.second.title)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know of them, one sentence each: notes of all, and that an expert is used alone."""
        notes = tuple(dict.fromkeys(note for each in self.experts for note in each.notes))
        return (*notes, self._alone()) if self.second is None and self.noise else notes

    def _alone(self) -> str:
        other = EXPERTS[1 - EXPERTS.index(self.noise)]
        return Folders.ONE_EXPERT(title=self.title, noise=self.noise, half=_PART[self.noise], other=other)


_PART = {"high": Folders.FIRST_HALF(), "low": Folders.SECOND_HALF()}


def noise_of(path: Path) -> str:
    """Return which expert of Wan2.2 a file or folder is by its name or its folder's: high | low, or "" where these do
    not say."""
    return _said(path.name) or _said(path.parent.name)


def word_of(path: Path) -> str:
    """Return the same where only one of the words high and low is there, of something of which there are two."""
    for name in (path.name, path.parent.name):
        words = {match[1].lower() for match in _WORD.finditer(name)}
        if _said(name) or len(words) == 1:
            return _said(name) or words.pop()
    return ""


def find_counterpart(path: Path) -> Path | None:
    """Return the other expert of a file or folder: what has the other word in its name, or in its folder's.

    The words high and low count by themselves, as what decides is that there is such a file; but not in names that say
    Wan2.1, which has no experts.
    """
    if not noise_of(path) and _NO_EXPERT.search(f"{path.parent.name}/{path.name}"):
        return None
    names, folders = other_names(path.name), [path.parent.with_name(name) for name in other_names(path.parent.name)]
    places = [path.parent / name for name in names]
    places += [folder / name for folder in folders for name in (*names, path.name)]
    return next((place for place in places if place.exists()), None)


def join(first: TransformerFiles, second: TransformerFiles, first_is: str = "auto") -> TransformerFiles:
    """Return two transformers as the experts of one model.

    Args:
        first_is: high | low: which expert the first one is; auto goes by their names.

    Raises:
        CheckpointError: they are the same, do not fit together, or nothing says which is which.
    """
    _check_apart(first, second)
    _check_fit(first, second)
    noise = first_is if first_is in EXPERTS else _tell(first, second)
    high, low = (first, second) if noise == "high" else (second, first)
    return replace(high, noise="high", second=replace(low, noise="low"))


def is_guess(path: Path) -> bool:
    """Say whether nothing but the word high or low in its name, or its folder's, tells an expert."""
    return not noise_of(path) and not _HAS_EXPERTS.search(f"{path.parent.name}/{path.name}")


def _tell(first: TransformerFiles, second: TransformerFiles) -> str:
    """Return which expert the first one is."""
    names = [word_of(each.files[0] if each.layout == "single" else each.files[0].parent) for each in (first, second)]
    if names[0] and names[0] == names[1]:
        raise CheckpointError(
            Folders.SAME_NOISE(
                other_noise="low" if names[0] == "high" else "high",
                title=first.title,
                other=second.title,
                noise=names[0],
            )
        )
    if not any(names):
        raise CheckpointError(Folders.UNKNOWN_NOISE(title=first.title, other=second.title))
    return names[0] or ("low" if names[1] == "high" else "high")


def _check_apart(first: TransformerFiles, second: TransformerFiles) -> None:
    pairs = list(zip(first.files, second.files, strict=False)) if len(first.files) == len(second.files) else []
    same = [_is_same_file(*pair) for pair in pairs]
    if same and all(same):
        raise CheckpointError(Folders.SAME_EXPERT(title=first.title, other=second.title))
    # Every block of two experts differs; of what is in no block, some may be alike.
    copied = next(
        (pair for pair, is_same in zip(pairs, same, strict=True) if is_same and pair[0].stem != "non_block"), None
    )
    if copied is not None:
        raise CheckpointError(Folders.SAME_PART(path=copied[0], other=copied[1]))


def _check_fit(first: TransformerFiles, second: TransformerFiles) -> None:
    ours, theirs = first.format.architecture, second.format.architecture
    if replace(ours, num_layers=theirs.num_layers) == theirs != ours:
        fewer, more = sorted((first, second), key=lambda each: each.format.architecture.num_layers)
        raise CheckpointError(
            Folders.FEWER_BLOCKS(
                title=fewer.title,
                num_blocks=fewer.format.architecture.num_layers,
                other=more.title,
                num_others=more.format.architecture.num_layers,
            )
        )
    if ours != theirs:
        found = [
            Folders.DIFFERENCE(name=name, value=value, other=getattr(theirs, name))
            for name, value in vars(ours).items()
            if value != getattr(theirs, name)
        ]
        found_in = joined(found, Between.COMMA)
        raise CheckpointError(Folders.OTHER_SIZES(title=first.title, other=second.title, found=found_in))
    if ours.image_dim:
        raise CheckpointError(Folders.WITH_IMAGE_BRANCH(title=first.title, other=second.title))
    if first.format.precision != second.format.precision:
        raise CheckpointError(
            Folders.TWO_PRECISIONS(
                title=first.title,
                precision=first.format.precision,
                other=second.title,
                other_precision=second.format.precision,
            )
        )


def _is_same_file(first: Path, second: Path) -> bool:
    """Say whether two files have the same content, by what lies at many places in them."""
    if os.path.samefile(first, second):
        return True
    size = first.stat().st_size
    if size != second.stat().st_size:
        return False
    step = max(size // _PROBES, _PROBE_BYTES)
    with first.open("rb") as one, second.open("rb") as other:
        for offset in range(0, size, step):
            one.seek(offset)
            other.seek(offset)
            if one.read(_PROBE_BYTES) != other.read(_PROBE_BYTES):
                return False
    return True


def _said(name: str) -> str:
    said = _SAID.search(name)
    return said[1].lower() if said else ""


def other_names(name: str) -> list[str]:
    """Return a name with high for low or low for high, in every place where one of them is."""
    found = []
    for match in _WORD.finditer(name):
        word, other = match[1], {"high": "low", "low": "high"}[match[1].lower()]
        other = other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other
        found.append(name[: match.start()] + other + name[match.end() :])
    return found
