"""Sentences of kernels and how weights travel."""

from __future__ import annotations

from . import Sentence


class Running:
    """What runs, and what cannot."""

    # backends/remembered.py
    DAMAGED_LINES_IGNORED = Sentence("{num_damaged:d} damaged lines of {path} are ignored.")
    CANNOT_BE_KEPT = Sentence(
        "what is found out about kernels cannot be kept, so that every start of the program finds it out anew: {error}."
    )
    CANNOT_BE_READ = Sentence("what was found out about kernels cannot be read: {error}.")
    # backends/versions.py
    NEEDS_CAPABILITY = Sentence("needs compute capability {wanted}; this GPU has {found}")
    NO_TRITON = Sentence("package triton is not installed")
    TRITON_BEFORE_3_3 = Sentence("Triton before 3.3 ends the process when it compiles for compute capability 12.0")
    TRITON_BEFORE_3_5 = Sentence(
        "Triton before 3.5 multiplies FP8 as FP16 on compute capability 12.0 (triton-lang/triton#7188)"
    )
    TRITON_BEFORE_3_4 = Sentence(
        "Triton before 3.4 keeps part of the attention's registers in memory on compute capability 9.0"
    )
    ATTENTION_NOT_COMPILED = Sentence(
        "the pack's attention was not compiled for compute capability 10 and 11, where cuDNN's is the fast one"
    )
    TRITON_BEFORE_3_2 = Sentence(
        "Triton before 3.2 keeps part of the attention's registers in memory on compute capability 8.6 and 8.9"
    )
    WINDOWS_WITHOUT_ROW_SCALES = Sentence("PyTorch for Windows has no FP8 multiplication with a scale per row")
    PYTORCH_BEFORE_2_7 = Sentence(
        "PyTorch before 2.7 has no FP8 multiplication with a scale per row on compute capability 8.9"
    )
    PYTORCH_BEFORE_2_8 = Sentence(
        "PyTorch before 2.8 has no FP8 multiplication with a scale per row on compute capability 12.0"
    )
    WINDOWS_WITHOUT_FP8 = Sentence("PyTorch for Windows before 2.4 has no FP8 multiplication")
    # kernel_choice.py
    MEASURED = Sentence("measured {num_timed:d} kernels in {time:.1f} s.")
    NOT_MEASURED = Sentence("{task}: {name} is not measured: {reason}.")
    NO_MEMORY_TO_MEASURE = Sentence("{problem}: not measured, for lack of memory; the next run tries it again.")
    # offload/pinned.py
    NOT_PAGE_LOCKED = Sentence("{num_bytes:d} bytes of RAM could not be page-locked (CUDA error {status:d}).")
    # offload/reader.py
    PARTS_PAGE_LOCKED = Sentence("{num_locked:d} of {num_buffers:d} parts of the streamed weights are page-locked.")
    LOADING_TRANSFORMER = Sentence("loading the transformer")
    CUT_SHORT = Sentence(
        "{path} ends at byte {end}; expected weights up to byte {place}. It changed since it was opened; download "
        "it again."
    )
    # engines.py
    NO_LIGHTX2V = Sentence("engine is 'lightx2v', but {problem} Or set engine to 'auto'.")
    LIGHTX2V_WITHOUT_CUDA = Sentence(
        "engine is 'lightx2v', but no CUDA device was found. LightX2V needs one; set engine to 'auto' or 'portable'."
    )
    LIGHTX2V_FOR_TEXT = Sentence(
        "engine is 'lightx2v', which this pack runs for text-to-video models only, and the checkpoint is "
        "image-to-video. Set engine to 'auto'."
    )
