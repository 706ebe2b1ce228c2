"""Longer prompts from short ones: Wan's instructions to a language model, and asking a server that runs one.

composing.py, answers.py and addresses.py decide on plain values; client.py is the only code that touches the network;
enhancing.py joins them and never loses the user's text.
"""

from .composing import Question
from .enhancing import Enhanced, Server, enhance
from .pictures import make_data_url

__all__ = ["Enhanced", "Question", "Server", "enhance", "make_data_url"]
