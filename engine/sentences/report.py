"""Sentences of a run as it goes on, and of its report."""

from __future__ import annotations

from . import Sentence


class Progress:
    """How far it is."""

    # progress.py
    STEP = Sentence("step {step}/{steps}")
    PASS = Sentence("pass {of}/{passes}, ")
    BLOCK = Sentence("step {step}/{steps}, {which}block {block}/{blocks}")
    WITH_TIME_LEFT = Sentence("{text}, {time} left")
    PART = Sentence("{what} {done}/{total}")


class Report:
    """What the run took."""

    # report.py
    CPU = Sentence("CPU, {size}")
    CORES = Sentence("{count} cores, {ram:.1f} GiB RAM")
    SYSTEM_IS = Sentence("{system}, {cpu}, {size}")
    # report_table.py
    STAGE = Sentence("stage")
    TIME = Sentence("time")
    PEAK_RAM = Sentence("peak RAM")
    PEAK_VRAM = Sentence("peak VRAM")
    LOAD_TEXT_ENCODER = Sentence("load text encoder")
    ENCODE_PROMPT = Sentence("encode the prompt")
    LOAD_VAE_ENCODER = Sentence("load VAE encoder")
    ENCODE_FRAMES = Sentence("encode frames")
    LOAD_TRANSFORMER = Sentence("load transformer")
    SAMPLE = Sentence("sample")
    LOAD_VAE = Sentence("load VAE")
    DECODE = Sentence("decode")
    TOTAL = Sentence("total")
    ENCODE = Sentence("encode")
    LOAD = Sentence("load")
    KEPT = Sentence("kept")
    STAGE_TOOK = Sentence("{stage} {time}")
    WITHOUT_DECODING = Sentence("without decoding")
    HEADLINE = Sentence("{took}: {stages}; {facts}")
    SHORT_HEADLINE = Sentence("{took}; {facts}")
    MADE_IN = Sentence("{size} in {time}")
    AT_MOST = Sentence("at most {peak}")
    AND_PLANNED = Sentence("{size} (planned {planned:.1f})")
    FILE = Sentence("file")
    ENGINE = Sentence("engine")
    PRECISION = Sentence("precision")
    MATMUL = Sentence("matmul")
    COMPILE = Sentence("compile")
    OFFLOAD = Sentence("offload")
    SIZE = Sentence("size")
    BATCH = Sentence("batch")
    METHOD = Sentence("method")
    STEPS = Sentence("steps")
    SEED = Sentence("seed")
    SHIFT = Sentence("shift")
    LORA = Sentence("{title} at {strength:g}, {num_matched:d} of {num_tensors:d} tensors apply")
    IDLE_LORA = Sentence(
        "{title} at {strength:g} changes nothing: {num_matched:d} of {num_tensors:d} tensors apply, and add zero"
    )
    PLAN = Sentence("plan")
    MEASURED_HERE = Sentence("measured here, {problem}")
    SECONDS_PER_STEP = Sentence("seconds per step")
    WARNING = Sentence("warning")
    CARD = Sentence("card")
    DRIVER = Sentence("driver")
    SYSTEM = Sentence("system")
    VERSIONS = Sentence("versions")
