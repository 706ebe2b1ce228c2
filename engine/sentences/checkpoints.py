"""Sentences about files: what the system and the formats refuse, and what a model's files are."""

from __future__ import annotations

from . import Sentence


class Reading:
    """Files as they turn up on a drive."""

    # checkpoints/disk.py
    DOWNLOAD_AGAIN = Sentence("Download the file again; its size should match the one on the model page.")
    PTH_OR_ZIP = Sentence("a PyTorch .pth or .zip file")
    USE_SAFETENSORS = Sentence("Use the safetensors version.")
    GGUF = Sentence("a GGUF file")
    IS_OTHER = Sentence("{advice} {path} is {kind}; expected {expected}.")
    USE_EIGHT_BIT = Sentence("Use the FP8 or INT8 version in safetensors, or load GGUF with ComfyUI-GGUF.")
    GIT_LFS = Sentence("a git-lfs pointer, not the file itself")
    GIT_LFS_PULL = Sentence("Run `git lfs pull`, or download the file.")
    RENAME = Sentence("Give it a name that ends in .safetensors.")
    WEB_PAGE = Sentence("a web page")
    LOG_IN = Sentence("Log in or accept the licence on the model page, then download the file again.")
    UNREADABLE = Sentence("{path} cannot be read: {reason}. Check the drive and the file.")
    NO_MEMORY = Sentence(
        "{path} could not be mapped: RAM or the page file is short ({said}). The file is fine. Close other programs; "
        "on Windows, enlarge the page file."
    )
    MISSING = Sentence("{path} is missing. It was moved, renamed or deleted: check the name.")
    FORBIDDEN = Sentence(
        "{path} cannot be read: permission denied. Give the user who runs this program the right to read it, or "
        "close the program that holds it open."
    )
    DRIVE = Sentence("{path} cannot be read: {reason}. Check the drive, or the connection to the network share.")
    NO_FILE = Sentence("{path} is missing or not a file; expected {expected}. Check the name.")
    TOO_LONG = Sentence(
        "{path} is {size} bytes long; expected {expected}, of {limit} bytes at most. It is another file: download it "
        "again."
    )
    CHANGED = Sentence(
        "{path} has changed since its loader looked at it (from {before} to {now} bytes). Run the loader again; "
        "where the file is still being copied or downloaded, when that has ended."
    )
    NOT_UTF8 = Sentence(
        "Rename the file or its folder: the name {name} is not in UTF-8 (a question mark stands for what is not), and "
        "neither PyTorch nor safetensors opens it."
    )
    NO_NAME = Sentence("{path!r} is no name of a file ({error}); expected {expected}.")
    # checkpoints/header.py
    SAFETENSORS_FILE = Sentence("a safetensors file")
    HEADER_CORRUPT = Sentence("{download_again} The header of {path} is corrupt ({problem}).")
    TRUNCATED = Sentence("truncated")
    OTHER_LENGTH = Sentence("{download_again} {path} is {state}: found {size} bytes, expected {expected}.")
    ODD_DTYPE = Sentence("a dtype {dtype!r}")
    ODD_BYTES = Sentence("{dtype} {shape} takes {num_bytes} bytes, not {found}")
    LONGER_THAN_HEADER = Sentence("longer than its header says")
    ODD_METADATA = Sentence("its __metadata__ holds something else than texts by name")
    NO_TABLE = Sentence("no table")
    LONG_NAME = Sentence("a name of {num_name} characters, {name!r}")
    ODD_SHAPE = Sentence("{name} of shape {shape} at {end}")
    NO_SAFETENSORS = Sentence(
        "{download_again} {path} is not a safetensors file, or cut off in its header: its first 8 bytes do not give a "
        "header length that fits its {size} bytes."
    )
    HEADER_TOO_LONG = Sentence(
        "{download_again} {path} is not read: its header is of {length} bytes, where the largest of a real model are "
        "below {max_header_bytes}."
    )
    TOO_MANY_TENSORS = Sentence(
        "{download_again} {path} is not read: its header names {num_tensors} tensors, where a real model has fewer "
        "than {most}."
    )
    HOLE_IN_FILE = Sentence("{name} begins at byte {begin}, expected {reached}")
    # checkpoints/pth.py
    PTH_FILE = Sentence("a PyTorch file")
    OBJECTS = Sentence(
        "Use the original file or a .safetensors version of it: {path} is not loaded, as it is not a file of plain "
        "tensors (a pickle may run code, so nothing else is accepted). Detail: {detail}"
    )
    HOLDS_OBJECT = Sentence("it holds code or a whole module, {name}, where a state dict holds tensors alone")
    HOLDS_OBJECTS = Sentence("it holds code or whole modules, where a state dict holds tensors alone, or is damaged")
    LACKS_RECORD = Sentence("it lacks {name}, which PyTorch writes")
    NOT_READ_BY_TORCH = Sentence("PyTorch does not read its parts")
    NO_ARCHIVE = Sentence("it is no archive as torch.save writes it since PyTorch 1.6")
    NESTED = Sentence("nested data")
    NO_STATE_DICT = Sentence(
        "{path} holds {kind}; expected a flat dict of tensors (a state dict). Use the original file."
    )
    NO_PTH = Sentence(
        "Download {path} again, or use a .safetensors version of it: it cannot be read as a PyTorch file, and is "
        "probably truncated or an old pickle ({said})."
    )
    NO_PLAIN_TENSOR = Sentence(
        "{path} holds {name} of shape {shape} in another form than numbers one after the other; expected a flat dict "
        "of tensors (a state dict). Use the original file."
    )
    COMPRESSED = Sentence(
        "{path} is a compressed archive ({filename}), and no file that PyTorch wrote. Unpack it where it holds the "
        "model, or download the model again."
    )
    LONG_TABLE = Sentence("its table of tensors is of {file_size} bytes")
    DEEP_TABLE = Sentence("values in values, more than {max_depth} deep or again and again")
    # checkpoints/weights.py
    CHANGED_WHILE_OPEN = Sentence(
        "Run the loader again, and where that does not help, download the file again: {path} is another file than when "
        "it was looked at, or one that safetensors does not read."
    )
    # checkpoints/content.py
    ALL_ZEROS = Sentence("is all zeros")
    NO_NUMBERS = Sentence("holds values that are NaN or infinite")
    DAMAGED = Sentence(
        "Run `python tools/download.py get NAME --replace` in the pack's folder, which checks every file and fetches "
        "what is damaged anew, or download the file again: {path} is damaged: {name} {fault}, as an interrupted "
        "download or a conversion that went wrong leaves it."
    )
    HOLE = Sentence("has {hole} bytes of zeros in a row")


class Content:
    """Numbers that no model of this family has, or hardly."""

    # checkpoints/content.py
    TOO_LARGE = Sentence("holds numbers up to {size:.3g}, where those of a model are below 65504")
    TOO_SMALL = Sentence("holds no number above {size:.3g}")
    LARGE = Sentence("holds numbers up to {size:.3g}, where those of known models are below 100")
    NO_SCALE = Sentence("holds scales down to {least:.3g}, where every scale is above 0")
    OTHER_FORMAT = Sentence("is said to be {said}, and what it holds is {found}")
    NO_WEIGHTS = Sentence("makes the weights of its layer {rms:.3g} on average, where those of a model are 0.001 to 1")
    ODD_SCALE = Sentence("holds a scale of {most:.3g}, where its others are {level:.3g}")
    LOST_SCALES = Sentence(
        "holds FP8 numbers of {rms:.3g} on average without a scale, where those of a plain cast are 0.001 to 1: its "
        "scales got lost"
    )
    ODD_WEIGHTS = Sentence(
        "makes the weights of its layer {rms:.3g} on average, where those of known models are 0.005 to 0.15"
    )
    BY_CHANCE = Sentence("holds numbers as bytes by chance are")
    ODD_FORM = Sentence("holds numbers of one sign or of one size, as no trained layer does")
    NO_MODULATION = Sentence("is all zeros, and so is that of every other block")
    DOUBTFUL = Sentence(
        "Check the file in full in the doctor, or fetch it anew with `python tools/download.py get NAME --replace`: "
        "{path} may be damaged or converted wrongly, as {name} {doubt}."
    )


class Models:
    """What the files hold, and what was expected."""

    # checkpoints/companions.py
    SEVERAL_COMPANIONS = Sentence(
        "Give the {part} with --text-encoder or --vae: several files below {models_dir} could be it ({names})."
    )
    # checkpoints/declared.py
    DECLARED_FURTHER = Sentence("{name} with {further}, which this pack does not compute (rotated weights: ConvRot)")
    DECLARED_UNKNOWN = Sentence("{name}; expected {known}")
    LONG_DECLARATION = Sentence("{name} of {num_bytes} bytes")
    DECLARED_OTHERWISE = Sentence("{name}, and stores them as {precision}")
    DECLARED = Sentence(
        "{source} declares {num_layers} of its layers, e.g. {example}, as {problem}. It would give noise. Load it "
        "with ComfyUI's own nodes, or use {usable}."
    )
    NO_DECLARATION = Sentence("{said!r} in place of a table")
    DECLARATION_UNREADABLE = Sentence(
        "{download_again} {file} declares its quantization in a form that cannot be read ({error})."
    )
    # checkpoints/names.py
    UNDISTILLED = Sentence(
        "Check that {title} is distilled: its name does not say so (4-step, lightx2v, lightning), and in four steps "
        "without CFG another model gives mush. Put a distill LoRA on it, or sample it with KSampler, 20 steps or "
        "more and its own cfg."
    )
    DISTILLED_TWICE = Sentence(
        "Take off LoRA {lora}, or put it on a model that is not distilled: by its name it distills, and so is {title} "
        "already; together they overdo it."
    )
    # checkpoints/checks.py
    LEFT_OVER = Sentence(
        "{source} holds {num_others} {what}, e.g. {example}: they are not used, and what they do is missing in the "
        "picture."
    )
    UNMERGED_LORA = Sentence("tensors of a LoRA that was not merged")
    STRANGE_TENSORS = Sentence("tensors that belong to no such model")
    SEVERAL_MODELS = Sentence(
        "{source} holds {num_found} models, under {prefixes}{more}; expected one. Use a file with one of them."
    )
    NO_PREFIX = Sentence("no prefix")
    SEVERAL_TENSORS = Sentence("{num_missing} tensors are")
    ONE_TENSOR = Sentence("a tensor is")
    ONE_BLOCK_IS = Sentence("block {number} is")
    BLOCKS_ARE = Sentence("blocks {numbers} are")
    TENSORS_MISSING = Sentence("{source} is incomplete: {count} missing ({missing}{more}). Download it again.")
    MIXED_DTYPES = Sentence(
        "Use a version of it in BF16, F16 or F32, or FP8 E4M3 (fp8_e4m3fn), or INT8, e.g. {usable}: {source} stores "
        "its linear weights as {dtypes}; expected one of these for all of them."
    )
    NO_SCALES = Sentence(
        "Use a file with scales, {usable}: {source} holds {precision} weights without them. Beside {weight} there is "
        "neither a .weight_scale nor a .scale_weight, so it would give noise."
    )
    ODD_EIGHT_BIT = Sentence(
        "Use {usable}: {source} stores {name} as {dtype}, where 8-bit weights are expected in the blocks' linear "
        "layers only."
    )
    DOES_NOT_FIT = Sentence(
        "{source} does not fit together: {name} has shape {found}, expected [{known}] from the other tensors. Files "
        "of two models may be mixed: download it again."
    )
    SCALE_MISSING = Sentence("{source} is incomplete: the scale {name} is missing. Download it again.")
    ODD_SCALE = Sentence(
        "{source} has a scale {name} of {dtype} {shape}; expected one number or [{rows}, 1] in F32. Block-scaled "
        "files (MXFP8) are not supported: use {usable}."
    )
    # checkpoints/vocabulary.py
    EXPECTED_TOKENIZER = Sentence("the google/umt5-xxl folder that comes with Wan2.1 (tokenizer.json or spiece.model)")
    TOKENIZER_DAMAGED = Sentence(
        "Download the folder google/umt5-xxl again: the tokenizer {source} cannot be read ({detail}); expected "
        "{expected_tokenizer}."
    )
    NO_PIECES = Sentence("no list of pieces")
    LONG_NUMBER = Sentence("a number of more than 64 bits")
    # checkpoints/companions.py
    OTHER_TOKENIZER = Sentence(
        "Choose the google/umt5-xxl tokenizer for {text_encoder}, or put that folder beside it: the embedding has "
        "{num_rows} rows, and {problems}. It belongs to another model, and the video would not be of the prompt."
    )
    HAS_PIECES = Sentence("{candidate} has {num_pieces} pieces")
    NO_TOKENIZER = Sentence(
        "There is no tokenizer for {path}: it holds no spiece_model, and no google/umt5-xxl folder with {names} was "
        "found near it. Download that folder from the model page and put it beside the file, or choose a tokenizer "
        "in the loader."
    )
