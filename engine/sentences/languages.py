"""Which of LANGUAGES somebody is spoken to in: the one place that reads language tags, headers and environments."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping

from . import ENGLISH, LANGUAGES

# What a tag begins with, and Windows' names: zh-CN, zh_Hans, zh_CN.UTF-8, cmn-Hans, Chinese_China.936.
_FIRST = re.compile(r"[A-Za-z]+")
_OTHER_NAMES = {"cmn": "zh", "zho": "zh", "chi": "zh", "chinese": "zh", "eng": ENGLISH, "english": ENGLISH}
# Locales that are nobody's language.
_NONE = {"", "c", "posix"}


def language_of(tag: str) -> str | None:
    """Return the one of LANGUAGES that a language tag or the name of a locale is of; None for any other."""
    match = _FIRST.match(tag.strip())
    first = match[0].lower() if match else ""
    language = _OTHER_NAMES.get(first, first)
    return language if language in LANGUAGES else None


def language_of_header(accepted: str) -> str:
    """Return the one of LANGUAGES that an Accept-Language header likes best, English where it names none.

    Of equals the first one; q=0 is not wanted. Source: RFC 9110, 12.5.4.
    """
    best, most = ENGLISH, 0.0
    for entry in accepted.split(","):
        tag, _, parameters = entry.partition(";")
        language = language_of(tag)
        quality = _quality(parameters)
        if language is not None and quality > most:
            best, most = language, quality
    return best


def language_of_environment(environment: Mapping[str, str]) -> str:
    """Return the one of LANGUAGES that programs on this machine speak, English where that is another.

    LC_ALL, LC_MESSAGES or LANG says so, the first that is set; unless that is C, LANGUAGE goes before it, several
    languages with colons between them. On Windows, where nobody sets these, it is the language of its own windows.
    Source: GNU gettext manual, 2.3.

    Args: environment: such as os.environ.
    """
    locale = next(filter(None, map(environment.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), None)
    if locale is not None and locale.partition(".")[0].lower() in _NONE:
        return ENGLISH
    wanted = [*environment.get("LANGUAGE", "").split(":"), _of_windows() if locale is None else locale]
    return next(filter(None, map(language_of, wanted)), ENGLISH)


def _quality(parameters: str) -> float:
    """Return what a header's entry says after its tag: from 0 to 1."""
    name, _, value = parameters.strip().partition("=")
    if name.strip().lower() != "q":
        return 1.0
    try:
        quality = float(value)
    except ValueError:
        return 0.0
    # NaN is not above 0.
    return min(quality, 1.0) if quality > 0 else 0.0


def _of_windows() -> str:
    """Return the name of the locale of Windows' own windows, such as zh_CN; "" elsewhere."""
    if sys.platform != "win32":
        return ""
    import ctypes
    import locale

    return locale.windows_locale.get(ctypes.windll.kernel32.GetUserDefaultUILanguage(), "")
