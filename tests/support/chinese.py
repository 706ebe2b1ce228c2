"""Whether a text is Chinese throughout, but for names."""

import re

from lightx2v_pack.engine.backends import table
from support.node_schemas import read_golden

CHINESE_CHARACTER = re.compile("[\u4e00-\u9fff]")
# Programs, packages and what stays as it is: Chinese has no other word that users know.
PROGRAMS = {
    "torch", "triton", "Triton", "Python", "python", "Linux", "Wan", "Transformer", "Latent", "token", "shift",
    "noise", "sdpa", "dequantize", "tokenizers", "sentencepiece", "safetensors", "ftfy", "portable", "lcm", "euler",
    "cpu", "gpu", "samples", "batch", "alpha", "rank", "frames", "off", "on", "git", "wan", "tiny", "plan", "diff",
    "sgl-kernel", "Markdown", "fps",
}  # fmt: skip


def names_that_stay():
    """Return names of inputs and their choices, of kernels and programs."""
    nodes = [field for node in read_golden().values() for field in node["inputs"]]
    rows = (table.ATTENTION_BACKENDS, table.BLOCK_BACKENDS, table.MATMUL_BACKENDS)
    return PROGRAMS.union(
        (field["id"] for field in nodes),
        (word for field in nodes for option in field.get("options") or () for word in str(option).split()),
        (row.name for each in rows for row in each),
    )


def english_in(text):
    """Return the words of a text that are no names, files, units, commands, links, or quoted."""
    plain = re.sub(r"`[^`]*`|'[^']*'|https?://\S+|(?:python|pip|docker|git) [!-~ ]*", " ", text)
    words = re.findall(r"[^\s\u3000-\uffef,;:()\[\]=]+", plain)
    # With digits, underlines, dots, slashes or capitals within, it is a name or a unit.
    words = [word.strip(".") for word in words]
    return {word for word in words if re.fullmatch("[A-Za-z][a-z-]{2,}", word)} - names_that_stay()
