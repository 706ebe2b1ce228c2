"""The tiny autoencoder on the portable engine against the same layers written down plainly, whole clip at once."""

import pytest
import torch
from lightx2v_pack.engine.checkpoints.header import TensorInfo
from lightx2v_pack.engine.checkpoints.tae import TaeFormat, detect_tae
from lightx2v_pack.engine.errors import CheckpointError
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.latent_space import normalize
from lightx2v_pack.engine.memory.tiles import Tile
from lightx2v_pack.engine.stages.decode import decode_video
from safetensors.torch import save_file
from support.decoders import load_decoder
from support.tensors import normal
from torch.nn import functional

FORMAT = TaeFormat(widths=(32, 16, 8, 8))
BLOCKS = {3: 32, 4: 32, 5: 32, 9: 16, 10: 16, 11: 16, 15: 8, 16: 8, 17: 8}


def draw(shapes, gain=1.15):
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(shape, generator=generator) * gain / max(shape[1:].numel(), 50) ** 0.5
        for name, shape in ((name, torch.Size(shape)) for name, shape in shapes.items())
    }


# The last bias moves the picture into its range.
WEIGHTS = draw(FORMAT.shapes()) | {"decoder.22.bias": torch.full((3,), 0.5)}


def clip(frames, height=4, width=6):
    return normal(16, frames, height, width, seed=5)


def reference(latents):
    """Decode [16, T, h, w] layer by layer with all frames, in upstream's order of layers."""

    def conv(name, x, padding=1):
        return functional.conv2d(x, WEIGHTS[f"{name}.weight"], WEIGHTS.get(f"{name}.bias"), padding=padding)

    x = conv("decoder.1", torch.tanh(latents.transpose(0, 1) / 3) * 3).relu()
    for first, grow in ((3, 7), (9, 13), (15, 19)):
        for block in range(first, first + 3):
            before = torch.cat([torch.zeros_like(x[:1]), x])[:-1]
            y = conv(f"decoder.{block}.conv.0", torch.cat([x, before], 1)).relu()
            y = conv(f"decoder.{block}.conv.4", conv(f"decoder.{block}.conv.2", y).relu())
            x = (x + y).relu()
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        grown = conv(f"decoder.{grow}.conv", x, padding=0)
        x = conv(f"decoder.{grow + 1}", grown.reshape(-1, x.shape[1], *x.shape[2:]))
    return conv("decoder.22", x.relu())[3:].clamp(0, 1).permute(0, 2, 3, 1)


def write(path, weights=WEIGHTS):
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    return path


@pytest.mark.parametrize("name", ["taew2_1", "lighttaew2_1"])
def test_frames_equal_the_plain_layers(name, tmp_path):
    """Published files differ in the latents they were trained on, which only the name says."""
    latents = clip(4)
    expected = reference(latents if "light" in name else normalize(latents))
    found = decode_video(load_decoder(write(tmp_path / f"{name}.safetensors")), latents, tile=None, hooks=Hooks())
    assert found.shape == (13, 32, 48, 3) and expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_file_with_an_encoder_and_more_frames_than_used_decodes_the_same(tmp_path):
    """Older files make two frames in the first stage too; the last one counts."""
    grow = "decoder.7.conv.weight"
    more = WEIGHTS | {"encoder.0.weight": torch.zeros(8, 3, 3, 3), grow: torch.randn(32, 32, 1, 1)}
    more[grow] = torch.cat([more[grow], WEIGHTS[grow]])
    torch.save(more, tmp_path / "taew2_1.pth")
    found = decode_video(load_decoder(tmp_path / "taew2_1.pth"), clip(2), tile=None, hooks=Hooks())
    torch.testing.assert_close(found, reference(normalize(clip(2))), rtol=0, atol=1e-5)


def test_tiles_change_the_picture_little(tmp_path):
    """Random weights see 20 cells far, more than tiles overlap."""
    decoder, latents = load_decoder(write(tmp_path / "taew2_1.safetensors")), clip(2, 4, 56)
    whole = decode_video(decoder, latents, tile=None, hooks=Hooks())
    tiled = decode_video(decoder, latents, tile=Tile(size=32, overlap=8), hooks=Hooks())
    assert 0 < (tiled - whole).abs().mean() < 0.02 * whole.std()


def test_describe_names_it_and_unload_gives_it_up(tmp_path):
    decoder = load_decoder(write(tmp_path / "taew2_1.safetensors"))
    assert decoder.describe()["vae_dim"] == "TAE"
    decoder.unload()
    decoder.load(Hooks())
    assert decode_video(decoder, clip(1), tile=None, hooks=Hooks()).shape == (1, 32, 48, 3)


def test_a_missing_tensor_is_refused_by_name(tmp_path):
    weights = {name: tensor for name, tensor in WEIGHTS.items() if name != "decoder.11.conv.2.bias"}
    with pytest.raises(CheckpointError, match=r"decoder\.11\.conv\.2\.bias: found nothing, expected \(16,\)"):
        load_decoder(write(tmp_path / "taew2_1.safetensors", weights))


def test_other_models_are_no_tiny_autoencoder_for_wan21():
    header = {name: TensorInfo("F16", shape) for name, shape in FORMAT.shapes().items()}
    assert detect_tae(header) == FORMAT
    assert detect_tae(header | {"decoder.1.weight": TensorInfo("F16", (32, 48, 3, 3))}) is None, "Wan2.2's"
    assert detect_tae({"decoder.1.weight": header["decoder.1.weight"]}) is None
