"""Sentences of the doctor, the plan line's advice and the editor's routes."""

from __future__ import annotations

from . import Sentence


class Doctor:
    """What this machine has and lacks."""

    # panel/doctor.py
    INSTALL_REQUIREMENTS = Sentence("Run in the pack's folder: python -m pip install -r requirements.txt")
    LET_EACH_GPU_MAKE = Sentence("Or let each GPU make its own clips: docs/several-gpus.md.")
    GIB_FREE_COMPUTE_CAPABILITY = Sentence(
        "{name}, {total:.1f} GiB ({free:.1f} free), compute capability {major}.{minor}"
    )
    NOT_USED = Sentence("{version}; not used: {problem}")
    TWO_CARDS_RTX_30 = Sentence(
        "Two cards of the RTX 30 series or newer gain less this way; docs/several-gpus.md has figures."
    )
    SHARED_MEMORY = Sentence("Shared memory")
    BEST_FILE = Sentence("{best}, {size:.3g} GB with its companions; {rest}")
    WAN_MODEL_DISTILLED_LIGHTX2V = Sentence(
        "for a Wan model that is not distilled, with LightX2V LoRA: {listed}; distilled checkpoints need none"
    )
    TO_DO = Sentence("{count} thing{plural} to do.")
    USE_MACHINE_NVIDIA_CARD = Sentence(
        "Use a machine with an NVIDIA card of the RTX 30 series or newer for videos of useful size."
    )
    UPDATE_TORCH = Sentence("Update ComfyUI with its torch: 2.4 or newer is needed.")
    ONLY_LIGHTX2V_S_OWN = Sentence("only LightX2V's own compute (engine lightx2v) uses it")
    PACK_S_OWN_ATTENTION = Sentence("the pack's own attention runs on this card")
    MEASURED_YET_FIRST_RUN = Sentence("not measured yet; the first run with attention auto does it")
    UPDATE_DRIVER_TORCH_PACKAGE = Sentence(
        "Update the driver, torch and the package; new versions are tried by themselves."
    )
    USED_THEY_ENDED_PROCESS = Sentence("not used, as they ended the process of their trial run: {died}")
    INSTALL_CUDA_BUILD_OR = Sentence(
        "Install the CUDA build of torch: https://pytorch.org/get-started/locally. {many_clips}"
    )
    THROUGH_RAM_THEY_CANNOT = Sentence("through the RAM; they cannot reach each other's memory")
    OTHER_PYTHON = Sentence("Use a Python for glibc 2.27 or newer.")
    SHARED_MEMORY_FREE = Sentence("{free:.0f} MiB free in /dev/shm, through which these GPUs are connected")
    AND_SHARED_MEMORY = Sentence(", {free:.0f} MiB free in /dev/shm")
    LIMIT_PROCESS_S_CONTROL = Sentence(" (the limit of this process's control group)")
    CLOSE_OTHER_PROGRAMS_WHERE = Sentence(
        "Close other programs; where RAM is short, offload auto reads the blocks from the drive."
    )
    MAKE_ROOM_FP8_INT8 = Sentence(
        "Make room: the FP8 or INT8 checkpoint with text encoder and VAE takes {checkpoint_gib} GiB."
    )
    DOWNLOAD = Sentence("Run in the pack's folder: python tools/download.py get {name}")
    PART = Sentence("no part of it")
    INSTALL_CUDA_BUILD = Sentence("Install the CUDA build of torch: https://pytorch.org/get-started/locally")
    USED_EVERYTHING_RUNS_CPU = Sentence("not used: everything runs on the CPU (--cpu)")
    START_COMFYUI_WITHOUT_CPU = Sentence("Start ComfyUI without --cpu to use the card.")
    USED_WITHOUT_CUDA_CARD = Sentence("; not used without a CUDA card")
    ENGINE_AUTO_DOES_NEED = Sentence("{rstrip}; engine auto does not need it")
    IS_NOT_INSTALLED = Sentence("{name} is not installed")
    CANNOT_CONNECTED_PYTORCH_NCCL = Sentence("cannot be connected: PyTorch has NCCL for Linux alone")
    WEIGHTS_STREAMED_RAM_ONCE = Sentence("weights that are streamed are in RAM once{room}")
    CHECK_MODELS_FOLDER = Sentence("Check the models folder, {models_dir}.")
    GIB_FREE_MODELS = Sentence("{free:.0f} GiB free for models")
    IMAGE_VIDEO = Sentence("Image to video")
    LORAS_4_STEPS = Sentence("LoRAs for 4 steps")
    TEXT_ENCODER = Sentence("text encoder {name}")
    CUDA_DEVICE_EVERYTHING_RUNS = Sentence("no CUDA device; everything runs on the CPU")
    NOT_INSTALLED = Sentence("not installed")
    INSTALLED_NEEDED_WITHOUT_CUDA = Sentence("not installed; not needed without a CUDA card")
    INSTALLED_ONLY_ENGINE_LIGHTX2V = Sentence("not installed; only engine lightx2v needs it")
    INSTALLED_CARD_WOULD_FASTER = Sentence("not installed; this card would be faster with it")
    NAME_THOSE_ONE_KIND = Sentence("Name those of one kind in LightX2V GPUs. {many_clips}")
    PROCESSES_CANNOT_SHARE_MEMORY = Sentence("processes cannot share memory here (memfd_create)")
    DOCKER_DOCKER_RUN_SHM = Sentence("In Docker: docker run --shm-size 1g")
    FILE_CARD = Sentence("File for this card")
    VERSION_UNKNOWN = Sentence("version unknown")
    INSTALLED_NEEDED = Sentence("not installed; not needed: {reason}")
    TORCH_BUILT_WITHOUT = Sentence("this torch was built without it")
    LINK_SPEED = Sentence("Link speed")
    GB_S_COPIES_FROM = Sentence("{range_of} GB/s, copies from each GPU to each other")
    CANNOT_LOOKED = Sentence("cannot be looked at ({error})")
    NONE = Sentence("none in {models_dir}")
    CANNOT_USED = Sentence("cannot be used")
    # panel/advice.py
    ABOUT_S_STEP = Sentence("{name}{computed}: about {seconds} s a step at {size} ({how})")
    KERNELS_MEASURED_HERE = Sentence("kernels measured here")
    ESTIMATE = Sentence("an estimate")
    # panel/editor.py
    LORA_NEEDS_LORA_NAME = Sentence("lora needs lora, a name that the node offers.")
    NEEDS_ONE_CHECKPOINT_TRANSFORMER = Sentence("{route} needs one of checkpoint and transformer; found {kinds}.")
    DOWNLOAD_NEEDS_VARIANT_NAME = Sentence("download needs variant, a name of the list, or empty to stop.")
