"""What a language model is told: Wan's own instructions and the user's text.

The instructions are those that Wan's authors give to a language model for this; wan_prompts.json names their source.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import check_choice

TASKS = ("t2v", "i2v")
LANGUAGES = ("auto", "en", "zh")

_FILE = Path(__file__).with_name("wan_prompts.json")
_HAN = re.compile("[\u4e00-\u9fff]")


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt to enhance."""

    text: str
    task: str = "t2v"
    """t2v | i2v (text or image to video)."""
    language: str = "auto"
    """Of the answer: auto (Chinese where the text has Chinese characters, else English) | en | zh."""
    instructions: str = ""
    """Instead of Wan's; empty takes Wan's."""
    picture: str = ""
    """First frame as a data URL, for a model that sees; empty for none. Not looked at for t2v."""

    def __post_init__(self) -> None:
        check_choice("task", self.task, TASKS)
        check_choice("language", self.language, LANGUAGES)

    @property
    def shows_picture(self) -> bool:
        """Whether the model gets to see a picture."""
        return bool(self.picture) and self.task == "i2v"

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to enhance."""
        return not self.text.strip() and not self.shows_picture


def find_instructions(question: Question) -> str:
    """Return the system prompt for a question."""
    if question.instructions.strip():
        return question.instructions
    task = question.task if question.text.strip() or question.task == "t2v" else "i2v_without_text"
    language = question.language
    if language == "auto":
        language = "zh" if _HAN.search(question.text) else "en"
    return _wan_prompts()[task][language]


def compose_text(question: Question) -> str:
    """Return instructions and text as one prompt, for a node that takes no system prompt."""
    return f"{find_instructions(question)}\n\nPrompt:\n{question.text}"


def build_request(question: Question, *, model: str, seed: int) -> dict[str, Any]:
    """Return the body of POST /chat/completions.

    Source: https://platform.openai.com/docs/api-reference/chat. There is no max_tokens: a server refuses one above its
    context, and a model that reasons needs many; the time-out is the limit.
    """
    content: Any = question.text
    if question.shows_picture:
        content = [{"type": "image_url", "image_url": {"url": question.picture}}]
        if question.text.strip():
            content.append({"type": "text", "text": question.text})
    messages = [{"role": "system", "content": find_instructions(question)}, {"role": "user", "content": content}]
    return {"model": model, "messages": messages, "seed": seed, "stream": False}


@functools.cache
def _wan_prompts() -> dict[str, dict[str, str]]:
    prompts: dict[str, dict[str, str]] = json.loads(_FILE.read_text(encoding="utf-8"))["prompts"]
    return prompts
