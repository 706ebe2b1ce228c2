"""The pack's socket types: one per engine object that travels between nodes."""

from ._api import io

# TextEncoderHandle: a UMT5 file and its tokenizer.
TextEncoder = io.Custom("LIGHTX2V_TEXT_ENCODER")
# OffloadSettings: where weights rest while they are not needed.
Offload = io.Custom("LIGHTX2V_OFFLOAD")
# GpuSettings: which GPUs compute one clip together.
Gpus = io.Custom("LIGHTX2V_GPUS")
