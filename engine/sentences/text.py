"""Sentences of the text encoder and its tokenizer."""

from __future__ import annotations

from . import Sentence


class Text:
    """From a prompt to its rows."""

    # umt5/tokenizer.py
    NO_TOKENIZER = Sentence(
        "No tokenizer in {path}: found neither {names}; {expected}. Download that folder from the model page and put "
        "it beside the text encoder, or choose another tokenizer."
    )
    EXPECTED = Sentence("expected {tokenizer}")
    ENDLESS_RULES = Sentence("its rules make a text many times as long")
    OTHER_END_TOKEN = Sentence(
        "{source} is not the tokenizer of UMT5: its end token </s> has the id {found}, expected {end_token}; "
        "{expected}."
    )
    NO_FTFY = Sentence(
        "The text encoder needs the package ftfy, which is not installed. Install this pack's requirements.txt, or "
        "run: pip install ftfy"
    )
    # umt5/encoder.py
    ENCODING = Sentence("encoding text")
    NO_GPU = Sentence("The text encoder's device is 'gpu', but no CUDA device was found. Set device to 'cpu'.")
    EMBEDDING = Sentence("the embedding")
    ZERO_ROWS = Sentence("is zero for tokens of the prompt")
    UNKNOWN_TOKEN = Sentence(
        "The tokenizer gives the token id {token_id}, but {path} has only {num_tokens} tokens: they belong to "
        "different models. Choose the google/umt5-xxl tokenizer."
    )
    LOADING = Sentence("loading the text encoder")
    # pipeline.py
    ENCODING_PROMPT = Sentence("encoding the prompt")
