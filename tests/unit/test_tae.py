"""The tiny autoencoder on the portable engine against the same layers written down plainly, whole clip at once."""

import pytest
import torch
from lightx2v_pack.engine.checkpoints.header import TensorInfo
from lightx2v_pack.engine.checkpoints.tae import TaeFormat, detect_tae
from lightx2v_pack.engine.errors import CheckpointError
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.latent_space import denormalize, normalize
from lightx2v_pack.engine.memory.encoder import tae_encode_bytes
from lightx2v_pack.engine.memory.tiles import Tile
from lightx2v_pack.engine.stages.decode import decode_video
from lightx2v_pack.engine.stages.encode_video import crop_to_cells, encode_video
from safetensors.torch import save_file
from support.decoders import in_one_buffer, load_decoder, load_encoder
from support.peak_bytes import PeakBytes
from support.tensors import normal
from torch.nn import functional

FORMAT = TaeFormat(widths=(32, 16, 8, 8))
WITH_ENCODER = TaeFormat(widths=(32, 16, 8, 8), encoder_width=16)
BLOCKS = {3: 32, 4: 32, 5: 32, 9: 16, 10: 16, 11: 16, 15: 8, 16: 8, 17: 8}


def draw(shapes, gain=1.15):
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(shape, generator=generator) * gain / max(shape[1:].numel(), 50) ** 0.5
        for name, shape in ((name, torch.Size(shape)) for name, shape in shapes.items())
    }


# The last bias moves the picture into its range.
WEIGHTS = draw(FORMAT.shapes()) | {"decoder.22.bias": torch.full((3,), 0.5)}
ENCODER_WEIGHTS = draw(WITH_ENCODER.encoder_shapes())


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


def reference_latents(frames):
    """Encode [4n, H, W, 3] layer by layer with all frames."""

    def conv(name, x, padding=1, stride=1):
        weights = ENCODER_WEIGHTS
        bias = weights.get(f"{name}.bias")
        return functional.conv2d(x, weights[f"{name}.weight"], bias, padding=padding, stride=stride)

    x = conv("encoder.0", frames.permute(0, 3, 1, 2)).relu()
    for pool, joined in ((2, 2), (7, 2), (12, 1)):
        x = torch.cat([x[index::joined] for index in range(joined)], dim=1)
        x = conv(f"encoder.{pool + 1}", conv(f"encoder.{pool}.conv", x, padding=0), stride=2)
        for block in range(pool + 2, pool + 5):
            before = torch.cat([torch.zeros_like(x[:1]), x])[:-1]
            y = conv(f"encoder.{block}.conv.0", torch.cat([x, before], 1)).relu()
            y = conv(f"encoder.{block}.conv.4", conv(f"encoder.{block}.conv.2", y).relu())
            x = (x + y).relu()
    return conv("encoder.17", x).transpose(0, 1)


def video(frames, height=32, width=48):
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(6))


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


@pytest.mark.parametrize("name", ["taew2_1", "lighttaew2_1"])
@pytest.mark.parametrize(("given", "used"), [(1, 1), (9, 9), (11, 9)])
def test_latents_equal_the_plain_layers(name, given, used, tmp_path):
    """It looks ahead to the end of each four frames; behind the end of a clip its last frame stands still."""
    path = write(tmp_path / f"{name}.safetensors", WEIGHTS | ENCODER_WEIGHTS)
    frames = video(given)
    padded = torch.cat([frames[:used], frames[used - 1 : used].expand(3, -1, -1, -1)])
    expected = reference_latents(padded)
    found = encode_video(load_encoder(path), crop_to_cells(frames), tile=None, hooks=Hooks())
    assert found.shape == (16, (used + 3) // 4, 4, 6) and expected.std() > 0.1
    torch.testing.assert_close(found, expected if "light" in name else denormalize(expected), rtol=0, atol=1e-5)


def test_a_frame_may_be_overwritten_when_the_next_is_asked_for(tmp_path):
    encoder, frames = load_encoder(write(tmp_path / "taew2_1.safetensors", WEIGHTS | ENCODER_WEIGHTS)), video(9)
    expected = torch.stack(list(encoder.encode_frames(frames)))
    assert torch.equal(torch.stack(list(encoder.encode_frames(in_one_buffer(frames)))), expected)


def test_an_encode_in_tiles_changes_the_latents_little(tmp_path):
    encoder = load_encoder(write(tmp_path / "lighttaew2_1.safetensors", WEIGHTS | ENCODER_WEIGHTS))
    frames = video(5, 32, 56 * 8)
    whole = encode_video(encoder, frames, tile=None, hooks=Hooks())
    tiled = encode_video(encoder, frames, tile=Tile(size=32, overlap=8), hooks=Hooks())
    assert 0 < (tiled - whole).abs().mean() < 0.02 * whole.std()


def test_predicted_bytes_cover_an_encode(tmp_path):
    full = TaeFormat(widths=(32, 16, 8, 8), encoder_width=64)
    encoder = load_encoder(write(tmp_path / "taew2_1.safetensors", WEIGHTS | draw(full.encoder_shapes())))
    peaks = []
    for frames in (video(5, 64, 96), video(17, 64, 96)):
        with PeakBytes() as meter:
            encode_video(encoder, frames, tile=None, hooks=Hooks())
        peaks.append(meter.peak - frames.nbytes)
    predicted = tae_encode_bytes(64, 96, None, 4) - tae_encode_bytes(0, 0, None, 4)
    assert 0.5 * predicted < peaks[0] < peaks[1] < 0.7 * predicted


@pytest.mark.parametrize("lost", ["encoder.9.conv.2.bias", "encoder.12.conv.weight", None], ids=str)
def test_without_a_whole_encoder_it_decodes_only(lost, tmp_path):
    encoder = {name: tensor for name, tensor in ENCODER_WEIGHTS.items() if lost and name != lost}
    path = write(tmp_path / "taew2_1.safetensors", WEIGHTS | encoder)
    assert load_decoder(path).describe()["vae"] == path.name
    with pytest.raises(CheckpointError, match="decodes only"):
        load_encoder(path)


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
    more = {name: TensorInfo("F16", shape) for name, shape in WITH_ENCODER.encoder_shapes().items()}
    assert detect_tae(header | more) == WITH_ENCODER
    assert detect_tae(header | {"decoder.1.weight": TensorInfo("F16", (32, 48, 3, 3))}) is None, "Wan2.2's"
    assert detect_tae({"decoder.1.weight": header["decoder.1.weight"]}) is None
