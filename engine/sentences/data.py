"""What is wrong with data that comes from elsewhere, in a few words within other sentences."""

from __future__ import annotations

from . import Sentence


class Data:
    """JSON and its like."""

    # errors.py
    NO_JSON = Sentence("it is no JSON from line {line:d}, column {column:d} on")
    NO_TEXT = Sentence("it is no text in UTF-8")
    TOO_DEEP = Sentence("it is nested too deep")
    LACKS = Sentence("it lacks {name}")
    BUILT_OTHERWISE = Sentence("it holds other data than expected")
