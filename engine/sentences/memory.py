"""Sentences of memory: what is planned, what it needs, and why it does not fit."""

from __future__ import annotations

from . import Sentence


class Memory:
    """RAM and VRAM."""

    # memory/explain.py
    MODES_NEED = Sentence("  {modes}: {need}")
    USE_OR_CLOSE = Sentence("Use {sizes}, or close other programs.")
    USE_LARGEST_OR_CLOSE = Sentence("Use {sizes}, the largest that fit, or close other programs.")
    NOTHING_FITS = Sentence("No size fits. Close other programs.")
    NOTHING_FITS_IN_BF16 = Sentence("No size fits. Close other programs, or use a checkpoint in FP8 or INT8.")
    ENCODING = Sentence("encoding")
    FRAMES_DO_NOT_FIT = Sentence(
        "{advice}\nThe frames of {clip} do not fit in RAM: {doing} them takes {needed:.1f} GiB, "
        "{free:.1f} GiB are free."
    )
    NO_MODE_FITS = Sentence("No offload mode has room")
    MODE_DOES_NOT_FIT = Sentence("Offload mode {mode!r} has no room")
    FROM_ITS_FILES = Sentence("{mode} with the low-noise expert from its files")
    KEPT = Sentence(" More VRAM is free: {vram_limit} keeps the rest.")
    NEEDED = Sentence("{cause} for {clip} in {precision}. Needed, beside a margin:")
    THERE_ARE = Sentence("There are {there}.{bound}")
    CLOSE_PROGRAMS = Sentence("Close other programs.")
    SET_AUTO = Sentence("Set the offload mode to 'auto': it fits then ({described}).")
    # memory/placement.py
    RESIDENT = Sentence("resident")
    OF_EACH_EXPERT = Sentence(" of each expert")
    LOW_NOISE_FROM_FILES = Sentence(", the low-noise expert from its files")
    PARTLY_RESIDENT = Sentence("{mode}, {resident_blocks} of {num_blocks} blocks{of_each} resident{read}")
    # memory/plan.py
    PLAN = Sentence("plan: {summary}")
    SUMMARY = Sentence("{cards}, {ram}; {decode}")
    OF_CARDS = Sentence("{names}: {plan}")
    TILED = Sentence("{stage} tiled {size}")
    WHOLE = Sentence("{stage} whole")
    RAM_OF_FREE = Sentence("{ram:.1f} GiB RAM of {free:.1f} free")
    WITH_VRAM = Sentence("{where}, {vram:.1f} GiB VRAM of {free:.1f} free")
    # memory/budget.py
    SHARE_OF_TORCH = Sentence("the share that torch was allowed")
    BUDGET_OF_OFFLOAD = Sentence("vram_budget_gib of LightX2V Offload")
    # memory/needs.py
    RAM = Sentence("{ram:.1f} GiB of RAM")
    VRAM = Sentence("{vram:.1f} GiB of VRAM")
    # memory/owner.py
    UNLOADING = Sentence("unloading the {name} to make room.")
    # memory/paging.py
    PAGING = Sentence(
        "Close other programs that use the GPU; else set vram_budget_gib of 'LightX2V Offload' to {budget:.0f}, or "
        "start ComfyUI with --reserve-vram 2: a step took {seconds:.0f} s where {expected:.1f} s are to be expected, "
        "and {free:.1f} GiB of VRAM are free, so that Windows puts VRAM into RAM. With 'CUDA - Sysmem Fallback "
        "Policy' on 'Prefer No Sysmem Fallback' in the NVIDIA Control Panel such a run ends in a lack of memory "
        "instead, and is tried again with less."
    )
    # memory/room.py
    ADVICE = Sentence(
        "Close other programs that use the GPU, choose a smaller size or fewer frames, or set vram_budget_gib of "
        "'LightX2V Offload' to less than what is free."
    )
    NO_RETRY = Sentence("{error}\nThere is no room for a retry. {reason}")
    RETRY = Sentence("{stage} ran out of GPU memory ({said}). Trying once more: {plan}.")
    WAS_RETRY = Sentence("{error}\nThis was the retry ({plan}). {advice}")
    # memory/tiles.py
    ODD_TILE = Sentence(
        "tile size is {size} and overlap {overlap} latent cells; expected an overlap of at least 1 and a size of at "
        "least 4 overlaps, so that no cell lies in more than two tiles of a row."
    )
