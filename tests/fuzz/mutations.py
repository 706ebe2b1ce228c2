"""Changes of bytes and of JSON data, drawn from a generator: what damage, editors and malice make of files."""

import json
import random
from typing import Any

_STARTS = (
    b"GGUF",
    b"PK\x03\x04",
    b"<!DOCTYPE html>",
    b"version https://git-lfs",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"",
)
_INTERESTING = (0, 1, 7, 0x7F, 0x80, 0xFE, 0xFF, ord("["), ord("{"), ord('"'), ord("9"))


def change_bytes(draw: random.Random, content: bytes) -> bytes:
    """Return bytes with one to four changes."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(data) + 1)
        # Headers, which decide, are at the beginning.
        if draw.random() < 0.5:
            place = min(place, draw.randrange(4096))
        size = draw.choice((1, 2, 8, 64, 4096))
        kind = draw.randrange(8)
        if kind == 0:
            data[place : place + size] = draw.randbytes(size)
        elif kind == 1:
            del data[place : place + size]
        elif kind == 2:
            data[place:place] = draw.randbytes(size)
        elif kind == 3:
            del data[place:]
        elif kind == 4:
            data[place:place] = data[max(0, place - size) : place]
        elif kind == 5:
            data[place : place + size] = bytes(min(size, len(data) - place))
        elif kind == 6 and place < len(data):
            data[place] = draw.choice(_INTERESTING)
        elif kind == 7:
            start = draw.choice(_STARTS)
            data[: len(start)] = start
    return bytes(data)


def odd_value(draw: random.Random) -> Any:
    """Return a value that is where another kind was expected."""
    number = draw.choice((0, 1, -1, 2**31, 2**53, 2**63, 2**64, 10**30, 10**400, -(2**63)))
    values: tuple[Any, ...] = (
        *(None, True, False, number, number, -0.0, 1.5, 1e308, [], {}, [[]], {"a": {}}),
        *("", "1e999", "(a+)+$", "\ud800", "a\nb\0c", "../../etc", "blocks.0.ffn.0.weight"),
        "a" * draw.choice((1, 300, 9000)),
        [number] * draw.choice((1, 9, 400)),
        _deep(draw.choice((5, 50, 400))),
    )
    return draw.choice(values)


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def change_json(draw: random.Random, value: Any, changes: int | None = None) -> Any:
    """Return JSON data with one to three changes somewhere in it."""
    root = [json.loads(json.dumps(value))]
    for _ in range(changes or draw.randint(1, 3)):
        holder: Any = root
        place: Any = 0
        while isinstance(holder[place], dict | list) and holder[place] and draw.random() < 0.85:
            holder = holder[place]
            place = draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
        kind = draw.randrange(5)
        if kind == 0 and len(holder) > 1:
            del holder[place]
        elif kind == 1 and isinstance(holder, dict):
            holder[str(odd_value(draw))[:9000]] = holder[place]
        elif kind == 2 and isinstance(holder, list):
            holder.append(odd_value(draw))
        else:
            holder[place] = odd_value(draw)
    return root[0]


def write_json(draw: random.Random, value: Any) -> bytes:
    """Return JSON text, now and then with numbers that JSON has not, or nested without an end."""
    text = json.dumps(value)
    if draw.random() < 0.1:
        text = text.replace(draw.choice(("0", "1", '""')), draw.choice(("1e999", "NaN", "-Infinity", "[" * 60_000)), 1)
    return text.encode("utf-8", "surrogatepass")
