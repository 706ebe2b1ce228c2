"""Sentences of the doctor, the plan line's advice and the editor's routes."""

from __future__ import annotations

from . import Sentence


class Doctor:
    """What this machine has and lacks."""

    # panel/doctor.py
    INSTALL_REQUIREMENTS = Sentence("Run in the pack's folder: python -m pip install -r requirements.txt")
    CLIPS_ON_EACH = Sentence("Or let each GPU make its own clips: docs/several-gpus.md.")
    CARD = Sentence("Card")
    DRIVER = Sentence("Driver")
    KERNELS = Sentence("Kernels")
    MEASURED = Sentence("Measured")
    GPUS = Sentence("GPUs")
    BETWEEN_GPUS = Sentence("Between GPUs")
    RAM = Sentence("RAM")
    DISK = Sentence("Disk")
    CHECKPOINTS = Sentence("Checkpoints")
    CARD_IS = Sentence("{name}, {total:.1f} GiB ({free:.1f} free), compute capability {major}.{minor}")
    NOT_USED = Sentence("{version}; not used: {problem}")
    GAINS_LESS = Sentence(
        "Two cards of the RTX 30 series or newer gain less this way; docs/several-gpus.md has figures."
    )
    SHARED_MEMORY = Sentence("Shared memory")
    BEST_FILE = Sentence("{best}, {size} with its companions; {rest}")
    NOT_HERE = Sentence("not here: {what}")
    FILE_NOT_HERE = Sentence("{found}; not here")
    DISTILLING_LORAS = Sentence(
        "{listed}; for a Wan model that is not distilled, with LightX2V LoRA; distilled checkpoints need none"
    )
    READY = Sentence("Ready.")
    ONE_TO_DO = Sentence("1 thing to do.")
    TO_DO = Sentence("{count} things to do.")
    USE_NVIDIA = Sentence("Use a machine with an NVIDIA card of the RTX 30 series or newer for videos of useful size.")
    UPDATE_TORCH = Sentence("Update ComfyUI with its torch: 2.4 or newer is needed.")
    ONLY_LIGHTX2V_USES_IT = Sentence("only LightX2V's own compute (engine lightx2v) uses it")
    OWN_ATTENTION_RUNS = Sentence("the pack's own attention runs on this card")
    NOT_MEASURED = Sentence("not measured yet; the first run with attention auto does it")
    UPDATE_DRIVER = Sentence("Update the driver, torch and the package; new versions are tried by themselves.")
    ENDED_THEIR_TRIAL = Sentence("not used, as they ended the process of their trial run: {died}")
    INSTALL_CUDA_BUILD_OR = Sentence(
        "Install the CUDA build of torch: https://pytorch.org/get-started/locally. {many_clips}"
    )
    THROUGH_RAM = Sentence("through the RAM; they cannot reach each other's memory")
    OTHER_PYTHON = Sentence("Use a Python for glibc 2.27 or newer.")
    SHARED_MEMORY_FREE = Sentence("{free:.0f} MiB free in /dev/shm, through which these GPUs are connected")
    AND_SHARED_MEMORY = Sentence(", {free:.0f} MiB free in /dev/shm")
    LIMIT_OF_GROUP = Sentence(" (the limit of this process's control group)")
    CLOSE_PROGRAMS = Sentence("Close other programs; where RAM is short, offload auto reads the blocks from the drive.")
    MAKE_ROOM = Sentence("Make room: the FP8 or INT8 checkpoint with text encoder and VAE takes {size}.")
    DOWNLOAD = Sentence("Run in the pack's folder: python tools/download.py get {name}")
    NO_PART = Sentence("no part of it")
    INSTALL_CUDA_BUILD = Sentence("Install the CUDA build of torch: https://pytorch.org/get-started/locally")
    CARD_NOT_USED = Sentence("not used: everything runs on the CPU (--cpu)")
    START_WITHOUT_CPU = Sentence("Start ComfyUI without --cpu to use the card.")
    NOT_USED_WITHOUT_CARD = Sentence("{version}; not used without a CUDA card")
    INSTALLED = Sentence("installed")
    MEASURED_AS = Sentence("{problem}: {seconds}")
    DIED = Sentence("{trial} ({how})")
    USE_WSL2 = Sentence("Use WSL2. {many_clips}")
    DIRECTLY = Sentence("directly (P2P)")
    RANGE = Sentence("{least:.0f} to {most:.0f}")
    RAM_IS = Sentence("{total:.1f} GiB{limited}, {free:.1f} free")
    OTHER_FILE = Sentence("{name} {seconds:.3g} s")
    WITH_IMAGE_NODE = Sentence("{listed}; with LightX2V Image To Video")
    TO_FETCH = Sentence("{name} ({size})")
    NOT_WHOLE = Sentence("not whole; missing or cut short: {missing}")
    NOT_HERE_YET = Sentence("{name}, to download")
    FETCH_REST = Sentence(
        "Unless you have it under another name, run in the pack's folder: python tools/download.py get {command}"
    )
    NEWER_THAN_TRIED = Sentence("{found}; newer than what was tried ({newest})")
    TRANSFORMER = Sentence("transformer {described}")
    AUTO_DOES_WITHOUT = Sentence("{problem}; engine auto does not need it")
    IS_NOT_INSTALLED = Sentence("{name} is not installed")
    NCCL_FOR_LINUX = Sentence("cannot be connected: PyTorch has NCCL for Linux alone")
    WEIGHTS_ONCE_IN_RAM = Sentence("weights that are streamed are in RAM once{room}")
    CHECK_MODELS_FOLDER = Sentence("Check the models folder, {models_dir}.")
    DISK_FREE = Sentence("{free} free for models")
    IMAGE_TO_VIDEO = Sentence("Image to video")
    LORAS = Sentence("LoRAs for 4 steps")
    TEXT_ENCODER = Sentence("text encoder {name}")
    NO_CARD = Sentence("no CUDA device; everything runs on the CPU")
    NOT_INSTALLED = Sentence("not installed")
    NOT_NEEDED_WITHOUT_CARD = Sentence("not installed; not needed without a CUDA card")
    ONLY_ENGINE_LIGHTX2V = Sentence("not installed; only engine lightx2v needs it")
    FASTER_WITH_IT = Sentence("not installed; this card would be faster with it")
    NAME_ONE_KIND = Sentence("Name those of one kind in LightX2V GPUs. {many_clips}")
    CANNOT_SHARE_MEMORY = Sentence("processes cannot share memory here (memfd_create)")
    DOCKER_SHM_SIZE = Sentence("In Docker: docker run --shm-size 1g")
    FILE_FOR_CARD = Sentence("File for this card")
    VERSION_UNKNOWN = Sentence("version unknown")
    NOT_NEEDED = Sentence("not installed; not needed: {reason}")
    BUILT_WITHOUT_NCCL = Sentence("this torch was built without it")
    LINK_SPEED = Sentence("Link speed")
    COPIES_PER_SECOND = Sentence("{range_of} GB/s, copies from each GPU to each other")
    NOT_LOOKED_AT = Sentence("cannot be looked at ({error})")
    NO_CHECKPOINTS = Sentence("none in {models_dir}")
    CANNOT_BE_USED = Sentence("cannot be used")
    # panel/advice.py
    SECONDS_OF_STEP = Sentence("{name}{computed}: about {seconds} s a step at {size} ({how})")
    KERNELS_MEASURED_HERE = Sentence("kernels measured here")
    ESTIMATE = Sentence("an estimate")
    FILE_WITH = Sentence("{name}: {numbers}")
    SIZE = Sentence("{width}x{height}, {num_frames} frames")
    COMPUTED = Sentence(" ({numbers})")
    # panel/background.py
    RESTART = Sentence("Restart ComfyUI: {error}.")
    # panel/editor.py
    LORA_NEEDS_NAME = Sentence("lora needs lora, a name that the node offers.")
    DELETE_YOURSELF = Sentence("Delete {path} yourself: {error}.")
    NEITHER = Sentence("neither")
    NEEDS_ONE_MODEL = Sentence("{route} needs one of checkpoint and transformer; found {kinds}.")
    LANGUAGE_NEEDS_CLIENT = Sentence("language needs client, the editor's client id, and language.")
    DOWNLOAD_NEEDS_NAME = Sentence("download needs variant, a name of the list, or empty to stop.")
    # panel/forecast.py
    WAITING_FOR_TRANSFORMER = Sentence("Waiting for the transformer: its loader says what is missing or wrong.")
    CHOOSE_ANOTHER = Sentence("Choose another, or fetch {name} again: it cannot be used ({kind}: {error}).")
    FITS = Sentence("Fits.")
    FASTER_PRECISION = Sentence(
        "Faster here: precision {faster}, which is there too: a step about {times} times as fast as in {taken}."
    )
    BLOCKS = Sentence("{num_layers} blocks, {size}")
    ONE_TRANSFORMER = Sentence("{numbers}, {size}")
    TWO_EXPERTS = Sentence("{numbers}, two experts of {num_layers} blocks each, {size} together")
    # panel/speed.py
    SPEEDS_UNKNOWN = Sentence("speeds of earlier runs are not known: {path} cannot be read ({error}).")
    SPEEDS_FORGOTTEN = Sentence("speeds are forgotten with this process: {path} cannot be written ({error}).")
    NO_TOKENS = Sentence("{text!r} is no number of tokens")
    NO_DURATION = Sentence("{number!r} is no duration")
