"""Sentences of a checkpoint that is looked at in full."""

from __future__ import annotations

from . import Sentence


class Verifying:
    """A file against its hash and its content."""

    # panel/verify.py
    ENDED_BY = Sentence("the check of {name} ended: {error}")
    DOWNLOAD_AGAIN = Sentence("Download the file again, or run: python tools/download.py get NAME --replace")
    FETCH_ANEW = Sentence(
        "Fetch {name} anew: it has the size of the published file and another content. Run: python tools/download.py "
        "get NAME --replace"
    )
    NOT_ASKED = Sentence("the hub was not asked ({unasked})")
    NOT_PUBLISHED = Sentence("no published file of this name has its size")
    STOPPED = Sentence("Stopped.")
    DAMAGED = Sentence("damaged: {fault}; {found}")
    DOUBTFUL = Sentence("maybe damaged or converted wrongly: {doubt}; {found}")
    IN_TENSOR = Sentence("{name} {fault}")
    NOTHING_WRONG = Sentence("nothing wrong inside; {whose}; {found}")
    AS_PUBLISHED = Sentence("as published; {found}")
    NOT_AS_PUBLISHED = Sentence("not as published; {found}")
    ENDED = Sentence("The check ended before it was complete; ComfyUI's log says more.")
    IS_RUNNING = Sentence("{name} is being checked; wait until it is done, or stop it.")
