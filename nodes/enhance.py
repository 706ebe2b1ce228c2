"""The prompt enhancer node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..engine import prompting
from ..engine.adapters.comfy import progress
from ..engine.errors import check_choice
from ..engine.inputs import check_image
from ..engine.prompting.composing import LANGUAGES, TASKS
from ._api import graph_inputs_of, io, node_id_of, output_shown, refuse, schema

_MAX_SEED = 2**31 - 1

# How often no answer came, by the widget values of a node.
_failures: Counter[str] = Counter()


class LightX2VEnhancePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LightX2VEnhancePrompt",
            display_name="LightX2V Enhance Prompt",
            description=(
                "Turns a short prompt into a detailed one, as Wan was trained on, with a language model that runs on "
                "this computer or in its network (Ollama, llama.cpp, LM Studio ...). If that does not answer, your own "
                "text is used, with a warning."
            ),
            search_aliases=["prompt enhancer", "prompt extend", "rewrite", "llm", "ollama", "llama.cpp", "lm studio"],
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    placeholder="What the video shows, in a few words",
                    tooltip="Your prompt, in English or Chinese.",
                ),
                io.Combo.Input(
                    "task",
                    options=list(TASKS),
                    default="t2v",
                    tooltip=(
                        "Which of Wan's instructions the language model gets. t2v: text to video. i2v: image to video, "
                        "where the prompt says what moves."
                    ),
                ),
                io.Combo.Input(
                    "language",
                    options=list(LANGUAGES),
                    default="auto",
                    tooltip="Of the enhanced prompt. auto: Chinese where your text is Chinese, else English.",
                ),
                io.String.Input(
                    "url",
                    default="http://127.0.0.1:11434",
                    tooltip=(
                        "An OpenAI-style server on this computer or in its network. Ollama: http://127.0.0.1:11434, "
                        "LM Studio: http://127.0.0.1:1234, llama.cpp: http://127.0.0.1:8080. Empty: nobody is asked, "
                        "and the output is Wan's instructions with your text, for ComfyUI's own text generation node."
                    ),
                ),
                io.String.Input(
                    "model",
                    default="",
                    placeholder="first one of the server",
                    tooltip="The model's name on the server, such as qwen3:8b. Empty: the first that the server lists.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=_MAX_SEED,
                    control_after_generate=True,
                    tooltip="Another seed, another wording. The server is asked again only when an input changes.",
                ),
                io.Int.Input(
                    "timeout",
                    default=120,
                    min=1,
                    max=600,
                    tooltip="Seconds until your own text is used instead. The first answer includes loading the model.",
                ),
                io.String.Input(
                    "instructions",
                    optional=True,
                    multiline=True,
                    default="",
                    placeholder="Wan's instructions",
                    tooltip=(
                        "What the language model is told instead of Wan's instructions. Empty: Wan's, which also tell "
                        "it to replace some content, see the help page."
                    ),
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="For i2v, with a model that can see: the first frame. Your text may then be empty.",
                ),
            ],
            outputs=[io.String.Output(display_name="text", tooltip="The enhanced prompt, or your own text.")],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def validate_inputs(cls, task: str | None = None, language: str | None = None) -> bool:
        return refuse(_check_choices, task, language)

    @classmethod
    def fingerprint_inputs(cls, **inputs: object) -> int:
        """Ask again after a failure: the server may be there by now. An answer stays in ComfyUI's cache."""
        return _failures[_key(inputs)]

    @classmethod
    def execute(
        cls,
        text: str,
        task: str,
        language: str,
        url: str,
        model: str,
        seed: int,
        timeout: int,
        instructions: str = "",
        image: Any = None,
    ) -> io.NodeOutput:
        picture = ""
        if image is not None and task == "i2v":
            check_image(image, "image")
            picture = prompting.make_data_url(image)
        question = prompting.Question(
            text=text, task=task, language=language, instructions=instructions, picture=picture
        )
        server = prompting.Server(url=url, model=model, seed=seed, seconds=timeout)
        with progress.reporting(node_id_of(cls)) as hooks:
            found = prompting.enhance(question, server, hooks=hooks)
        if found.warning:
            _failures[_key(graph_inputs_of(cls))] += 1
        return output_shown(found.text, text=found.text, warning=found.warning)


def _check_choices(task: str, language: str) -> None:
    check_choice("task", task, TASKS)
    check_choice("language", language, LANGUAGES)


def _key(inputs: Mapping[str, object]) -> str:
    """Return the widget values among a node's inputs; linked inputs are None or a list."""
    return repr(sorted((name, value) for name, value in inputs.items() if isinstance(value, str | int)))
