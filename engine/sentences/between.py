"""What stands between parts of a list or a text; see `joined`."""

from __future__ import annotations

from . import Sentence


class Between:
    """Joins a first and a second part."""

    COMMA = Sentence("{first}, {second}")
    SEMICOLON = Sentence("{first}; {second}")
    AND = Sentence("{first} and {second}")
    OR = Sentence("{first} or {second}")
    NOR = Sentence("{first} nor {second}")
    THEN = Sentence("{first}, then {second}")
    BLANK = Sentence("{first} {second}")
    LINES = Sentence("{first}\n{second}")
