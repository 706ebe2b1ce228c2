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
    MEASURING = Sentence("measuring {task}")
    FOUND_VERSION = Sentence("{reason}; found {package} {version}")
    NEEDS_CAPABILITY = Sentence("needs compute capability {wanted}; this GPU has {found}")
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
    # backends/choose.py
    BLOCKS = Sentence("blocks")
    ATTENTION = Sentence("attention")
    ATTENTION_IN_PLACE = Sentence("attention in place")
    LORAS_JOINED = Sentence("LoRAs in the matmul")
    MATMUL = Sentence("{precision} matmul")
    ATTENTION_OF = Sentence("{num_tokens} tokens, {num_heads} heads of {width}, in {blocks} blocks")
    LINEARS_OF = Sentence("{num_tokens} tokens, {rows} x {columns} in {inputs}")
    FILE_AND_COMPUTE = Sentence("{precision} file, {inputs} compute")
    REQUANTIZED = Sentence("requantized by rows where they arrive on the card")
    WIDENED = Sentence("widened for each product")
    WEIGHTS_ARE = Sentence("{numbers}: weights are {how}")
    WIDENS = Sentence(
        "{numbers}: each product widens its weights, which is several times slower than this card is. Update torch, "
        "install Triton ({install}), or take engine auto; why nothing better runs: {matmul}."
    )
    CARD_TOO_OLD = Sentence(
        "This card has compute capability {major}.{minor}; an RTX 30 or newer is needed (8.0). PyTorch's attention "
        "for older cards holds all scores at once, 80 GiB at 832x480 and 81 frames. Use another card; very small "
        "clips run on the CPU (ComfyUI's --cpu)."
    )
    NOT_FUSED = Sentence("compile is 'on', but the fused kernels cannot run here: {problem}.")
    FUSED_INSTALL = Sentence("{sentence} Install Triton with `{install}`, or set compile to 'auto'.")
    FUSED_AUTO = Sentence("{sentence} Set compile to 'auto'.")
    # backends/table.py
    MEASURED_HERE = Sentence("measured here, {problem}: {seconds}")
    NOT_TAKEN = Sentence("not {names}: {reason}")
    CHOSEN = Sentence("{task}: {name}")
    LIGHTX2V_TRIAL = Sentence("LightX2V {chosen}")
    CHOSEN_AS = Sentence("{chosen} ({reasons})")
    SLOWER_HERE = Sentence("slower here")
    OTHER_DTYPE = Sentence("computes on {dtypes}, not on {dtype}")
    OTHER_SYSTEM = Sentence("does not run on this system ({system})")
    NO_CUDA = Sentence("there is no CUDA device")
    OR_HIGHER = Sentence("{low} or higher")
    FROM_TO = Sentence("{low} to {high}")
    NOT_INSTALLED = Sentence("package {package} is not installed")
    TOO_OLD_PACKAGE = Sentence("needs {package} {min_version} or newer; found {version}")
    CANNOT_RUN = Sentence("The {task} back end {name!r} was chosen, but cannot run here: {problem}.")
    INSTALL_OR_AUTO = Sentence("{sentence} Install it with `{install}`, or choose 'auto'.")
    CHOOSE_AUTO = Sentence("{sentence} Choose 'auto'.")
    # backends/trials.py
    VAE_KERNELS = Sentence("VAE kernels")
    ENDED_PROCESS = Sentence("its first trial run ended the process that was made for it ({died})")
    NO_IMPORT = Sentence("{name} does not import: {error}")
    FAILED_TRIAL = Sentence("{task}: not {name}: {problem}.")
    IN_PLACE = Sentence("{name} runs in place.")
    VAE_DECODER = Sentence("VAE decoder: {choice}.")
    FIRST_TRIALS = Sentence("first trials on this card with these versions, in a process of their own: {names}.")
    ENDED_AND_LEFT = Sentence("{named} ended the process of its trial run and is not used: {died}.")
    TRIED_HERE = Sentence("kernels are tried in this process, as another cannot be had: {error}.")
    TRIAL_FAILED = Sentence("its trial run failed ({kind}: {first_line})")
    TRIAL_OFF = Sentence("its trial run is {relative:.0%} off the plain torch result")
    # backends/trial_process.py
    TRYING_KERNELS = Sentence("trying kernels")
    ENDED_EARLY = Sentence("it ended before its first trial ({how})")
    NOT_BACK = Sentence("it did not come back within {patience:.0f} s")
    OUTPUT_ENDED = Sentence("its output ended")
    SIGNAL = Sentence("signal {number}")
    EXIT_CODE = Sentence("exit code {code}")
    WITH_LAST_WORDS = Sentence("{how}: {words}")
    NO_EXECUTABLE = Sentence("no executable")
    PART_OF_PROGRAM = Sentence("Python is part of a program here ({name})")
