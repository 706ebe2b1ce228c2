"""Sizes of the published Wan2.1-T2V-14B, for what is planned or predicted without its weights."""

from lightx2v_pack.engine.checkpoints.formats import WanArchitecture

WAN_14B = WanArchitecture(
    dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, in_dim=16, out_dim=16, freq_dim=256, text_dim=4096
)
