"""Numbers the whole pack shares, each with its unit and source. No functions."""

# Wan2.1 VAE: (frames, height, width) pixels per latent cell; the first latent frame is one pixel frame.
# Source: Wan2.1 wan/configs/shared_config.py, vae_stride = (4, 8, 8).
VAE_STRIDE = (4, 8, 8)
LATENT_CHANNELS = 16
# What image-to-video has beside the noise: a mask of the 4 frames of a latent frame, and the image's latents.
# Source: Wan2.1 wan/image2video.py.
MASK_CHANNELS = 4
IMAGE_CHANNELS = MASK_CHANNELS + LATENT_CHANNELS
# Rows that CLIP Vision (ViT-H/14 at 224 pixels) makes of an image: 16x16 patches and the class.
CLIP_VISION_ROWS = 257
# The transformer joins 1x2x2 latent cells to a token. Source: Wan2.1 wan/configs, patch_size.
PATCH_SIZE = (1, 2, 2)
# Width and height must be a multiple of VAE stride times patch size.
SIZE_MULTIPLE = 16

# Rows of text conditioning the transformer was trained with; unused rows are exactly zero.
TEXT_ROWS = 512

# Defaults of Wan2.1-T2V-14B at 480p. Source: Wan2.1 README and the distill checkpoint's model card.
DEFAULT_WIDTH = 832
DEFAULT_HEIGHT = 480
DEFAULT_NUM_FRAMES = 81
FRAME_RATE = 16

# The most that can be asked for: of pixels a side, frames, clips of a batch, steps, and GiB of a limit.
MAX_SIZE = 8192
MAX_FRAMES = 4097
MAX_BATCH = 64
MAX_STEPS = 50
MAX_GIB = 1024

# The distillation's schedule. Source: model card of
# lightx2v/Wan2.1-T2V-14B-StepDistill-CfgDistill-Lightx2v (4 steps, shift 5.0, no CFG).
NUM_TRAIN_TIMESTEPS = 1000
DISTILL_STEP_LIST = (1000, 750, 500, 250)
DISTILL_STEPS = len(DISTILL_STEP_LIST)
DISTILL_SHIFT = 5.0
# Of Wan2.2 A14B, the steps of the high-noise expert; by index, not by noise level. Source: LightX2V
# configs/distill/wan22, boundary_step_index.
DISTILL_HIGH_STEPS = 2

# Per-channel mean and standard deviation of Wan2.1 VAE latents: normalized = (latent - mean) / std.
# Source: Wan2.1 wan/modules/vae.py (WanVAE.__init__).
LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip

# Precisions of the blocks' linears that checkpoints come in; auto takes what is there.
PRECISIONS = ("auto", "fp8", "int8", "bf16")

GIB = 1024**3
# Columns that a LoRA in the product of an FP8 layer takes for each of its rank, see kernels/joined.py.
FP8_BRANCH_PARTS = 3
