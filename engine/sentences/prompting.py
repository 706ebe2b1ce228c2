"""Sentences of enhancing prompts."""

from __future__ import annotations

from . import Sentence


class Prompting:
    """What a language model's server and its address are."""

    # prompting/addresses.py
    EXAMPLE = Sentence("expected something like http://127.0.0.1:11434")
    ODD_CHARACTERS = Sentence("the URL has characters that no address has; {example}")
    HAS_KEY = Sentence(
        "the URL holds a user name or a key, which every copy of the workflow would; put a key into the environment "
        "variable {key_variable}"
    )
    ODD_SCHEME = Sentence("the URL starts with {scheme!r}; expected http or https")
    NOT_PLAIN = Sentence("the URL is not the plain address of a server; {example}")
    LISTENS_EVERYWHERE = Sentence("{host} says that a server listens everywhere, not where it is; {example}")
    NOT_LOCAL = Sentence(
        "{host} has the address {addresses}, which is not of this computer or its local network; to allow it, name the "
        "host in the environment variable {hosts_variable} and start ComfyUI again"
    )
    ODD_KEY = Sentence("the environment variable {key_variable} has characters that no key has")
    NO_URL = Sentence("the URL is not one ({error}); {example}")
    # prompting/answers.py
    NO_MODEL = Sentence("the server lists no language model; load one there, or name it in 'model'")
    NO_TEXT = Sentence("the server's answer is no text but a {name}")
    CUT_OFF = Sentence(
        "the language model's answer was cut off at the server's limit of tokens; raise that limit or the context "
        "length there"
    )
    TOO_LONG = Sentence("the answer has {num_text} characters; expected a prompt of at most {max_length}")
    ODD_STATUS = Sentence("the server answered with status {status}{complaint}")
    NO_JSON = Sentence("the server's answer is not a JSON object in UTF-8; is this the address of a language model?")
    SERVER_ERROR = Sentence("the server answered with an error{complaint}")
    UNFINISHED_THOUGHTS = Sentence("the language model's answer ends in the middle of its thoughts")
    EMPTY = Sentence("the language model answered with an empty text")
    NO_COMPLETION = Sentence("the server's answer is no chat completion (it has no choices[0].message.content)")
    # prompting/client.py
    UNREACHABLE = Sentence("{endpoint} cannot be reached ({problem}); check that the server is running")
    NO_WEB_SERVER = Sentence("{endpoint} does not answer as a web server does ({name}: {error})")
    NO_ANSWER = Sentence("{endpoint} had not answered after {seconds:g} s")
    BROKE_OFF_IN_ANSWER = Sentence("the connection to {endpoint} broke off in the middle of its answer")
    BROKE_OFF = Sentence("the connection to {endpoint} broke off ({error})")
    LONG_ANSWER = Sentence("the answer of {endpoint} is longer than {max_bytes} MiB")
    UNKNOWN_NAME = Sentence("the name {host} is not known ({error})")
    REDIRECT = Sentence(
        "{endpoint} answered with a redirect (status {status}), which is not followed; give the URL of the server "
        "itself"
    )
    ABORTED = Sentence("the request was aborted")
    # prompting/enhancing.py
    STILL_LOADED = Sentence("the language model may still be in memory: {error}.")
    NOT_ENHANCED = Sentence("The prompt was not enhanced, your own text is used: {error}.")
    WAITING = Sentence("waiting for the language model, second")
