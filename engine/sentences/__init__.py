"""Every sentence that a user can meet: an id, parameters and the English text, in one place by subject.

A sentence says what failed (the file's name first), what was found, and what to do. Its fields are its parameters:
one with a format (`{size:d}`, `{share:.1f}`) takes a number, any other a text, a path or another sentence. What is said
is a `str` in English, so that errors, the log, the plan line, the doctor and JSON take it as it is; it still knows its
sentence and values, by which `translated` says it again in another language where it is shown. The other languages are
in <language>.json here, by id. A text that is put together from what is said, by an f-string or by "".join, has
forgotten it: give one sentence to another as a value, or use `joined`.
"""

from __future__ import annotations

import functools
import json
import re
import string
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, overload

ENGLISH = "en"
LANGUAGES = (ENGLISH, "zh")


class Said(str):
    """A sentence with its values filled in."""

    sentence: Sentence
    values: Mapping[str, Any]

    def __new__(cls, text: str, sentence: Sentence, values: Mapping[str, Any]) -> Said:
        said = super().__new__(cls, text)
        said.sentence = sentence
        said.values = values
        return said

    def __str__(self) -> str:
        # So that str(error) still knows what its error says.
        return self

    def __deepcopy__(self, memory: dict[int, Any]) -> Said:
        return self

    def __reduce__(self) -> Any:
        # To another process goes all of it, so that what failed there can be said in any language here.
        return Said, (str.__str__(self), self.sentence, self.values)


class Sentence:
    """One entry of the catalogue: an attribute of a class of this package, which gives it its id."""

    def __init__(self, text: str) -> None:
        self.id = ""
        """<class>.<name> in lower case, e.g. `disk.missing`."""
        self.text = text
        self.fields = fields_of(text)
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

    def read(self, text: str) -> Said | None:
        """Return what was said, from its English text as it comes back from a file; None where it is another's."""
        match = self._pattern.fullmatch(text)
        if match is None:
            return None
        return self(**{name: float(value) if self.fields[name] else value for name, value in match.groupdict().items()})

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        parts = string.Formatter().parse(self.text)
        groups = ((re.escape(text), "" if name is None else f"(?P<{name}>.+?)") for text, name, _, _ in parts)
        return re.compile("".join(text + group for text, group in groups), re.DOTALL)


def fields_of(text: str) -> dict[str, str]:
    """Return the name of each parameter of a sentence's text -> its format."""
    return {name: spec or "" for _, name, spec, _ in string.Formatter().parse(text) if name is not None}


def shortened(text: object, length: int) -> str:
    """Return a text of others cut to so many characters; what is said here stays whole."""
    shown = str(text)
    return shown if isinstance(shown, Said) else shown[:length]


def read_again(text: str, *sentences: Sentence) -> str:
    """Return a text that comes back from a file as what was said, by the first of `sentences` that it is of, and so its
    values; else as it is.
    """
    for sentence in sentences:
        try:
            said = sentence.read(text)
        except ValueError:
            continue
        if said is not None:
            values = said.values.items()
            return sentence(
                **{name: read_again(value, *sentences) if isinstance(value, str) else value for name, value in values}
            )
    return text


def joined(parts: Iterable[str], between: Sentence) -> str:
    """Return parts as one text, each joined to the next by a sentence of `Between`; "" for none."""
    listed = list(parts)
    return functools.reduce(lambda first, second: between(first=first, second=second), listed) if listed else ""


@overload
def translated(data: str, language: str) -> str: ...
@overload
def translated(data: Any, language: str) -> Any: ...
def translated(data: Any, language: str) -> Any:
    """Return a text as it is said in a language; of JSON data (mappings, lists, tuples) every text in it.

    What is no sentence stays as it is, and so does, in English, one that the language lacks.

    Args:
        language: one of LANGUAGES.
    """
    if language == ENGLISH:
        return data
    if isinstance(data, Said):
        return _say_again(data, language)
    if isinstance(data, Mapping):
        return {name: translated(value, language) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [translated(value, language) for value in data]
    return data


def _say_again(said: Said, language: str) -> str:
    """Return a sentence in another language, with a blank between Chinese and what else a value begins or ends with.

    A text cannot know what its values are: names, numbers, or Chinese.
    """
    whole = ""
    for text, name, spec, conversion in string.Formatter().parse(
        _texts(language).get(said.sentence.id, said.sentence.text)
    ):
        parts = [text]
        if name is not None:
            value = translated(said.values[name], language)
            parts.append(format(_CONVERSIONS[conversion](value), spec or ""))
        for part in parts:
            if _CHINESE.match(whole[-2:-1]) and whole.endswith(" ") and _CHINESE.match(part):
                whole = whole[:-1]
            elif _MEETS.match(whole[-1:] + part[:1]):
                whole += " "
            whole += part
    return whole


_CONVERSIONS: Mapping[str | None, Callable[[Any], Any]] = {None: lambda value: value, "r": repr, "a": ascii, "s": str}
_CHINESE = re.compile("[\\u4e00-\\u9fff]")
# A Chinese character beside a letter, a digit or a quote.
_MEETS = re.compile("[\\u4e00-\\u9fff][A-Za-z0-9'/]|[A-Za-z0-9'%][\\u4e00-\\u9fff]")


@functools.cache
def _texts(language: str) -> Mapping[str, str]:
    """Return the texts of a language by id."""
    texts: dict[str, str] = json.loads((Path(__file__).parent / f"{language}.json").read_text(encoding="utf-8"))
    return texts
