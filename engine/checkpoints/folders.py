"""Folders of models, as people keep them: with links, circles of links, and what may not be looked at."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterator
from pathlib import Path


def walk(
    root: Path, leave_out: Callable[[str, OSError], None], *, skip: Collection[str] = (), links_last: bool = False
) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Yield a folder, by its name relative to `root`, and its entries that are no folders; breadth first, sorted.

    Links are followed, and every real folder is yielded once, by its shortest name. Names that begin with a dot are
    left out, as macOS keeps such beside others on foreign drives.

    Args:
        leave_out: told of each path that may not be looked at, and why.
        skip: names of folders that are not entered.
        links_last: a folder goes by its own name before a link's, be that shorter.
    """
    seen = set()
    waiting, links = deque([""]), deque[str]()
    while waiting or links:
        folder = (waiting or links).popleft()
        path = os.path.join(root, folder)
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            leave_out(path, error)
            continue
        others = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if not entry.is_dir():
                    others.append(entry)
                    continue
                is_last = links_last and entry.is_symlink()
            except OSError as error:
                leave_out(entry.path, error)
                continue
            if entry.name not in skip:
                (links if is_last else waiting).append(os.path.join(folder, entry.name))
        yield folder, others
