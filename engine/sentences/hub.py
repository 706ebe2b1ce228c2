"""Sentences of downloads."""

from __future__ import annotations

from . import Sentence


class Hub:
    """What the hub and the network say."""

    # adapters/hub/client.py
    NO_HUB_ADDRESS = Sentence(
        "Set HF_ENDPOINT, or --endpoint, to the address of a hub, such as https://huggingface.co: "
        "{endpoint!r}, which was asked for {what}, is none ({error})."
    )
    ODD_STATUS = Sentence("{endpoint} answered with status {status} when asked for {what}. Try again in a few minutes.")
    ODD_SIZE = Sentence("the size of {path} is {size!r}")
    HASH_OF = Sentence("hash of {path}")
    NO_SUCH_VALUE = Sentence("the {what} is {value!r}")
    FILE_OF = Sentence("{path} of {repository}")
    NO_ACCESS = Sentence(
        "{endpoint} does not give access to {what} (status {status}). If the name is right, set HF_TOKEN to a token "
        "that may read it, or remove a token that has expired."
    )
    NOT_THERE = Sentence("{endpoint} has no {what} (status 404). It was moved or removed.")
    NO_SOCKS = Sentence(
        "Run 'python -m pip install socksio', which a SOCKS proxy needs, or set a proxy that is none (HTTPS_PROXY, "
        "ALL_PROXY). {error}"
    )
    ODD_PROXY = Sentence(
        "Check the proxy of the environment (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY): it has to be an address such as "
        "http://127.0.0.1:7890. {error}"
    )
    NO_CONNECTION = Sentence(
        "The connection to {endpoint} failed while asking for {what}: {error}. Check the network, set "
        "HF_ENDPOINT to a mirror if the hub is blocked where you are, and run it again: what is already here is kept."
    )
    WRONG_SIZE = Sentence("{what} arrived with a wrong size: {error}. Run it again.")
    LOGIN_PAGE = Sentence(
        "Open {endpoint}/{repository} in a browser: if a login page of the network comes, sign in there; if "
        "a mirror is set (HF_ENDPOINT), choose another. What answered there is no listing of {repository}: {kind}: "
        "{answer}."
    )
    DISK_FULL = Sentence("The disk is full while fetching {what}. Make room and run it again: it goes on where it was.")
    # adapters/hub/download.py
    CHECKING = Sentence("checking {path}")
    OTHER_SIZE = Sentence("{target} ({size} bytes, published {published})")
    WRONG_CONTENT = Sentence("{target} (right size, wrong hash)")
    DANGLING = Sentence("{target} (a link to {link_target}, which is not there)")
    NOTHING_KNOWN = Sentence("nothing known")
    NO_LORA = Sentence(
        "{path} arrived as published and is {kind}; expected a LoRA. The repository has changed; look at its page."
    )
    IN_THE_WAY = Sentence(
        "{num_different} files have the place of published ones and other content: {listed}. Nothing was changed. If "
        "they are damaged or outdated, fetch them anew with 'python tools/download.py get {name} --replace'; else "
        "move them away."
    )
    WRONG_HASH = Sentence(
        "{path} arrived with a wrong hash and was dropped. Run it again; if it stays so, the mirror or proxy between "
        "you and the hub changes files."
    )
    NO_ROOM = Sentence(
        "Make room for {missing} more, or choose another models folder: {needed} are to be fetched to {place}, where "
        "{free} are free."
    )
    BUSY = Sentence("Another download to {models_dir} is running. Wait until it is done, or stop it.")
    # panel/downloads.py
    FAILED = Sentence("the download of {name} failed: {error}")
    ENDED = Sentence("The download ended before it was complete; ComfyUI's log says more.")
    STOPPED = Sentence("Stopped. What has arrived is kept; the next time goes on from there.")
    REPORT = Sentence("Please report this with ComfyUI's log: the download ended with {kind}: {error}")
    IS_RUNNING = Sentence("{name} is being downloaded; wait until it is done, or stop it.")
