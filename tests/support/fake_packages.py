"""Attention packages that are not installed, as modules on the path of this process and of those that it starts."""

import textwrap

_HEAD = """
import os, sys, time
import torch
from torch.nn import functional


def attend(q, k, v, **options):
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


IS_APART = {process} != os.getpid()
"""


def write_package(folder, name, process, body):
    """Write a module; its code has `attend`, which is right, and IS_APART: whether this is not the given process."""
    text = _HEAD.replace("{process}", str(process)) + textwrap.dedent(body)
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
