"""Sentences of the doctor, the plan line's advice and the editor's routes."""

from __future__ import annotations

from . import Sentence


class Doctor:
    """What this machine has and lacks."""

    # panel/doctor.py
    INSTALL_REQUIREMENTS = Sentence("Run in the pack's folder: python -m pip install -r requirements.txt")
    CLIPS_ON_EACH = Sentence("Or let each GPU make its own clips: docs/several-gpus.md.")
    CARD = Sentence("{name}, {total:.1f} GiB ({free:.1f} free), compute capability {major}.{minor}")
    NOT_USED = Sentence("{version}; not used: {problem}")
    GAINS_LESS = Sentence(
        "Two cards of the RTX 30 series or newer gain less this way; docs/several-gpus.md has figures."
    )
    SHARED_MEMORY = Sentence("Shared memory")
    BEST_FILE = Sentence("{best}, {size:.3g} GB with its companions; {rest}")
    DISTILLING_LORAS = Sentence(
        "for a Wan model that is not distilled, with LightX2V LoRA: {listed}; distilled checkpoints need none"
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
    MAKE_ROOM = Sentence("Make room: the FP8 or INT8 checkpoint with text encoder and VAE takes {checkpoint_gib} GiB.")
    DOWNLOAD = Sentence("Run in the pack's folder: python tools/download.py get {name}")
    NO_PART = Sentence("no part of it")
    INSTALL_CUDA_BUILD = Sentence("Install the CUDA build of torch: https://pytorch.org/get-started/locally")
    CARD_NOT_USED = Sentence("not used: everything runs on the CPU (--cpu)")
    START_WITHOUT_CPU = Sentence("Start ComfyUI without --cpu to use the card.")
    NOT_USED_WITHOUT_CARD = Sentence("; not used without a CUDA card")
    AUTO_DOES_WITHOUT = Sentence("{problem}; engine auto does not need it")
    IS_NOT_INSTALLED = Sentence("{name} is not installed")
    NCCL_FOR_LINUX = Sentence("cannot be connected: PyTorch has NCCL for Linux alone")
    WEIGHTS_ONCE_IN_RAM = Sentence("weights that are streamed are in RAM once{room}")
    CHECK_MODELS_FOLDER = Sentence("Check the models folder, {models_dir}.")
    DISK_FREE = Sentence("{free:.0f} GiB free for models")
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
    # panel/editor.py
    LORA_NEEDS_NAME = Sentence("lora needs lora, a name that the node offers.")
    NEEDS_ONE_MODEL = Sentence("{route} needs one of checkpoint and transformer; found {kinds}.")
    LANGUAGE_NEEDS_CLIENT = Sentence("language needs client, the editor's client id, and language.")
    DOWNLOAD_NEEDS_NAME = Sentence("download needs variant, a name of the list, or empty to stop.")
    # panel/forecast.py
    NO_TRANSFORMER_YET = Sentence("There is no transformer yet that it could be put on.")
    CHOOSE_ANOTHER = Sentence("Choose another, or fetch {name} again: it cannot be used ({kind}: {error}).")
    BLOCKS = Sentence("{num_layers} blocks, {size}")
    ONE_TRANSFORMER = Sentence("{numbers}, {size}")
    TWO_EXPERTS = Sentence("{numbers}, two experts of {size} together")
    # panel/speed.py
    SPEEDS_UNKNOWN = Sentence("speeds of earlier runs are not known: {path} cannot be read ({error}).")
    SPEEDS_FORGOTTEN = Sentence("speeds are forgotten with this process: {path} cannot be written ({error}).")
    NO_DURATION = Sentence("{number!r} is no duration")
