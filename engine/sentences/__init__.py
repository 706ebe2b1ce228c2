"""Every sentence that a user can meet: an id, parameters and the English text, in one place by subject.

A sentence says what failed (the file's name first), what was found, and what to do. Its fields are its parameters:
one with a format (`{size:d}`, `{share:.1f}`) takes a number, any other a text, a path or another sentence. What is said
is a `str`, so that errors, the log, the plan line, the doctor and JSON take it as it is; it still knows its sentence
and values, by which a language or a test can follow.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any


class Said(str):
    """A sentence with its values filled in."""

    sentence: Sentence
    values: Mapping[str, Any]

    def __new__(cls, text: str, sentence: Sentence, values: Mapping[str, Any]) -> Said:
        said = super().__new__(cls, text)
        said.sentence = sentence
        said.values = values
        return said

    def __deepcopy__(self, memory: dict[int, Any]) -> Said:
        return self

    def __reduce__(self) -> Any:
        # To another process goes the text.
        return str, (str(self),)


class Sentence:
    """One entry of the catalogue: an attribute of a class of this package, which gives it its id."""

    def __init__(self, text: str) -> None:
        self.id = ""
        """<class>.<name> in lower case, e.g. `disk.missing`."""
        self.text = text
        parts = list(string.Formatter().parse(text))
        self.fields = {name: spec or "" for _, name, spec, _ in parts if name is not None}
        """Name of each parameter -> its format; one that has a format is a number."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.id = f"{owner.__name__}.{name}".lower()

    def __call__(self, **values: Any) -> Said:
        """Fill in the values.

        Raises:
            TypeError: a value is missing, or is none of the sentence's.
        """
        if values.keys() != self.fields.keys():
            raise TypeError(f"{self.id} takes {sorted(self.fields)}, not {sorted(values)}")
        kept = {name: each if isinstance(each, Said | int | float) else str(each) for name, each in values.items()}
        return Said(self.text.format(**values), self, kept)
