"""Sentences of several GPUs that compute one clip."""

from __future__ import annotations

from . import Sentence


class Gpus:
    """Which there are, what they do together, and how one fails."""

    # parallel/decoder.py
    DECODING = Sentence("Decoding")
    LOADING_VAE = Sentence("Loading the VAE")
    # parallel/transformer.py
    LOADING_TRANSFORMER = Sentence("Loading the transformer")
    SAMPLING = Sentence("Sampling")
    LOADING_LORAS = Sentence("Loading the LoRAs")
    # parallel/split.py
    TOO_FEW_TOKENS = Sentence("Choose fewer GPUs, or a larger clip: {tokens} tokens cannot be shared by {ranks} GPUs.")
    # parallel/members.py
    ONLY_ONE = Sentence("there is one")
    ONE_COMPUTES = Sentence("gpus is auto: one GPU computes ({problem}).")
    HIDDEN = Sentence(" (CUDA_VISIBLE_DEVICES is {visible}, which ComfyUI's --cuda-device sets too)")
    NOT_HERE = Sentence(
        "Set gpus of LightX2V GPUs to what is here: it is {gpus!r}, and this process sees {count}{hidden}."
    )
    NONE = Sentence("no GPU")
    ONE = Sentence("one GPU")
    SOME = Sentence("{number} GPUs")
    # parallel/group.py
    ELSEWHERE = Sentence(
        "To use several GPUs all the same, let each make its own clips: docs/several-gpus.md of the pack says how."
    )
    LINUX_ONLY = Sentence(
        "Set gpus of LightX2V GPUs to 1, or run ComfyUI in Linux or WSL2: PyTorch connects GPUs through NCCL, which "
        "there is for Linux alone. {elsewhere}"
    )
    TOO_MANY = Sentence("Set gpus of LightX2V GPUs to {most} or fewer: it names {size}.")
    NO_BACKEND = Sentence(
        "Set gpus of LightX2V GPUs to 1, or install a PyTorch with {backend}: this one ({torch}) was built without "
        "it. {elsewhere}"
    )
    OF_SEVERAL_KINDS = Sentence(
        "Name GPUs of one kind in LightX2V GPUs: {named} have not the same compute capability, so that they would not "
        "compute alike. {elsewhere}"
    )
    STARTING = Sentence("starting the GPUs")
    COMPUTE_TOGETHER = Sentence("{names} compute together.")
    PLANNING = Sentence("Planning")
    STOPPING = Sentence("Stopping")
    GIVING_BACK = Sentence("Giving back memory")
    CANNOT_START = Sentence("Set gpus of LightX2V GPUs to 1: processes cannot be started here ({error}).")
    DID_NOT_START = Sentence("Set gpus of LightX2V GPUs to 1: the processes of {size} GPUs did not start{words}.")
    ONE_OF_THEM = Sentence("one of the GPUs")
    OTHERS_STOPPED = Sentence("The others were stopped, and all weights were given back.")
    OUT_OF_MEMORY = Sentence("{doing}: {name} ran out of memory ({text}). {rest}")
    SILENT = Sentence(
        "{doing} stopped: {name} has not answered for {time}. {rest} Run it again; if it happens again, set gpus of "
        "LightX2V GPUs to 1."
    )
    FAILED = Sentence(
        "{doing} stopped: {name} failed with {kind}: {text} {rest} Run it again; if it happens again, set gpus of "
        "LightX2V GPUs to 1."
    )
    ENDED = Sentence(
        "{doing} stopped: the process of {name} has ended{how}. {rest} Run it again; if it happens again, set gpus of "
        "LightX2V GPUs to 1{words}."
    )
    HOW = Sentence(" ({how})")
    LAST_WORDS = Sentence("; last words: {line}")
    NO_SOCKET = Sentence(
        "Set gpus of LightX2V GPUs to 1, or TMPDIR to a folder with a shorter name: no socket can be made in {folder} "
        "({error})."
    )
