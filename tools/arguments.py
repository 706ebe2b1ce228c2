"""Words of a command line: how every command reads numbers, and says what is wrong with a word."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ..engine.sentences import shortened
from ..engine.sentences.tools import Arguments
from . import console

MAX_SEED = 2**64 - 1
# Threads on Windows can wait for some 50 days.
_MOST_SECONDS = 30 * 86400.0
_MOST = 1_000_000
_SHOWN = 40


class Parser(argparse.ArgumentParser):
    """argparse's, which says in the user's language what is wrong with a word, where the pack has a sentence for it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, exit_on_error=False)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        try:
            return super().parse_args(args, namespace)
        except argparse.ArgumentError as error:
            self._refuse(error)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Of commands of a command too, whose usage is another.
        try:
            return super().parse_known_args(args, namespace)
        except argparse.ArgumentError as error:
            self._refuse(error)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        # Path("") is the folder that one is in.
        if action.type is Path and not arg_string.strip():
            raise argparse.ArgumentError(action, Arguments.NO_PATH())
        return super()._get_value(action, arg_string)

    def _refuse(self, error: argparse.ArgumentError) -> NoReturn:
        self.print_usage(sys.stderr)
        said = error.message
        if error.argument_name:
            said = Arguments.OF_ARGUMENT(name=error.argument_name, problem=said)
        console.complain(said, by=self.prog)
        self.exit(2)


def whole(low: int = 1, high: int = _MOST) -> Callable[[str], int]:
    """Return an argparse type that takes whole numbers from `low` to `high`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(Arguments.NO_WHOLE_NUMBER(low=low, high=high, text=_shown(text)))
        return value

    return read


def number(low: float = 0.0, high: float = _MOST) -> Callable[[str], float]:
    """Return an argparse type that takes numbers from `low` to `high`: no NaN, and no infinity."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = None
        # NaN is between no two numbers.
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(
                Arguments.NO_NUMBER(low=f"{low:.10g}", high=f"{high:.10g}", text=_shown(text))
            )
        return value

    return read


def filled(text: str) -> str:
    """Take a text that is not empty, as an argparse type."""
    if not text.strip():
        raise argparse.ArgumentTypeError(Arguments.NO_TEXT())
    return text


seconds = number(0.001, _MOST_SECONDS)
"""A time limit, as an argparse type."""


def _shown(text: str) -> str:
    return shortened(text, _SHOWN)
