"""The VAE encoder against diffusers' own, whole and in tiles, and what it takes."""

import re

import pytest
import torch
from lightx2v_pack.engine.checkpoints.companions import resolve_vae
from lightx2v_pack.engine.checkpoints.weights import PthWeights
from lightx2v_pack.engine.errors import CheckpointError
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.kernels.vae_ops import TorchOps
from lightx2v_pack.engine.memory.encoder import encode_bytes
from lightx2v_pack.engine.memory.tiles import Tile
from lightx2v_pack.engine.stages.encode_video import crop_to_cells, encode_video
from lightx2v_pack.engine.wan.vae_encoder import WanEncoder
from lightx2v_pack.tools.make_tiny_checkpoint import TinySizes
from safetensors.torch import save_file
from support.cancel import CancelAfter, Cancelled
from support.checkpoints import vae, vae_weights
from support.decoders import in_one_buffer, load_encoder
from support.peak_bytes import PeakBytes
from support.tensors import relative_error
from support.wan_vae_reference import reference_means, reference_vae

CPU = torch.device("cpu")
SMALL_TILES = [Tile(size=8, overlap=2), Tile(size=9, overlap=1), Tile(size=20, overlap=5)]


def draw(frames, height, width):
    """Frames [F, H, W, 3] in [0, 1]."""
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(3))


def encode(encoder, frames, tile=None, hooks=None):
    return encode_video(encoder, crop_to_cells(frames), tile=tile, hooks=hooks or Hooks())


@pytest.mark.parametrize(
    ("suffix", "dtype", "dim"),
    [
        (".pth", torch.float32, 8),
        (".safetensors", torch.bfloat16, 8),
        (".pth", torch.float16, 8),
        (".safetensors", torch.bfloat16, 24),
    ],
    ids=str,
)
@pytest.mark.parametrize(("given", "used"), [(1, 1), (4, 1), (9, 9), (12, 9)])
def test_latents_are_the_means_of_diffusers(suffix, dtype, dim, given, used):
    """Of frames beyond the last 4n+1 there is no latent frame, as in ComfyUI's VAE."""
    sizes, frames = TinySizes(vae_dim=dim), draw(given, 16, 32)
    stored = {name: tensor.to(dtype).float() for name, tensor in vae_weights(sizes).items()}
    expected = reference_means(reference_vae(stored), frames[:used])
    found = encode(load_encoder(vae(suffix, dtype, sizes)), frames)
    assert found.shape == (16, (used + 3) // 4, 2, 4) and found.dtype == torch.float32 and found.is_contiguous()
    assert expected.std() > 0.2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_16_bits_round_no_more_than_diffusers():
    """Both against diffusers in float32, with the same weights."""
    stored, frames = {name: tensor.bfloat16() for name, tensor in vae_weights().items()}, draw(5, 16, 32)
    exact = reference_means(reference_vae({name: tensor.float() for name, tensor in stored.items()}), frames)
    theirs = reference_means(reference_vae(stored).bfloat16(), frames)
    encoder = WanEncoder(stored, resolve_vae(vae()).format, TorchOps())
    features = encoder.encode(frame.mul(2).sub(1).bfloat16() for frame in frames)
    ours = torch.stack(list(encoder.finish(features))).permute(3, 0, 1, 2)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert 0 < relative_error(ours, exact) < 1.1 * relative_error(theirs, exact) < 0.05


@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae."])
def test_a_file_with_a_prefix_encodes_the_same(prefix, tmp_path):
    save_file({f"{prefix}{name}": tensor for name, tensor in vae_weights().items()}, tmp_path / "vae.safetensors")
    frames = draw(5, 16, 16)
    assert torch.equal(encode(load_encoder(tmp_path / "vae.safetensors"), frames), encode(load_encoder(vae()), frames))


def test_a_file_without_an_encoder_says_so(tmp_path):
    decoder_only = {name: tensor for name, tensor in vae_weights().items() if name.startswith(("decoder.", "conv2."))}
    save_file(decoder_only, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match=r"decodes only.*vae\.safetensors holds no encoder.*Wan2\.1_VAE\.pth"):
        load_encoder(tmp_path / "vae.safetensors")


@pytest.mark.parametrize(
    ("name", "tensor", "found"),
    [
        ("encoder.downsamples.5.time_conv.bias", None, ": found nothing, expected (16,)."),
        ("encoder.middle.1.proj.weight", torch.zeros(32, 32), ": found (32, 32), expected (32, 32, 1, 1)."),
        ("encoder.downsamples.1.extra", torch.zeros(1), ": found (1,), expected nothing."),
        ("conv1.weight", None, ""),
    ],
    ids=["missing", "shape", "superfluous", "missing conv1"],
)
def test_an_encoder_with_wrong_tensors_is_refused_by_name(name, tensor, found, tmp_path):
    changed = vae_weights() | {name: tensor}
    path = tmp_path / "wrong.safetensors"
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, path)
    with pytest.raises(CheckpointError, match=re.escape(name + found)) as error:
        load_encoder(path)
    assert str(path) in str(error.value) and "The encoder" in str(error.value)


def test_only_the_encoder_is_read_from_the_file(monkeypatch):
    read = []
    get = PthWeights.__getitem__
    monkeypatch.setattr(PthWeights, "__getitem__", lambda self, name: (read.append(name), get(self, name))[1])
    load_encoder(vae(".pth"))
    assert {name.split(".")[0] for name in read} == {"encoder", "conv1"}


def test_a_latent_frame_comes_with_the_first_frame_and_each_fourth_after_it():
    encoder, given, when = load_encoder(vae()), [], []

    def frames():
        for frame in draw(11, 16, 16):
            given.append(frame)
            yield frame

    for _ in encoder.encode_frames(frames()):
        when.append(len(given))
    assert when == [1, 5, 9]


def test_encodes_do_not_share_state():
    """Two clips encoded in turns, frame by frame, are what they are alone."""
    encoder, first = load_encoder(vae()), draw(9, 16, 32)
    second = first.flip(0)
    pairs = list(zip(*(encoder.encode_frames(clip) for clip in (first, second)), strict=True))
    for clip, found in ((first, [one for one, _ in pairs]), (second, [two for _, two in pairs])):
        assert torch.equal(torch.stack(found), torch.stack(list(encoder.encode_frames(clip))))


def test_a_frame_may_be_overwritten_when_the_next_is_asked_for():
    encoder, frames = load_encoder(vae()), draw(9, 16, 16)
    expected = torch.stack(list(encoder.encode_frames(frames)))
    assert torch.equal(torch.stack(list(encoder.encode_frames(in_one_buffer(frames)))), expected)


def test_memory_does_not_grow_with_the_clip_but_for_features_at_the_latents_size():
    encoder, reference = load_encoder(vae()), reference_vae(vae_weights())

    def growth(encode_all):
        peaks = []
        for frames in (draw(5, 16, 32), draw(13, 16, 32)):
            with PeakBytes() as meter:
                encode_all(frames)
            peaks.append(meter.peak - frames.nbytes)
        return peaks[1] - peaks[0]

    cells = 2 * 2 * 4
    feature_bytes, latent_bytes, video_bytes = cells * 4 * 8 * 4, cells * 16 * 4, 8 * 16 * 32 * 3 * 4
    assert growth(lambda frames: encode(encoder, frames)) <= feature_bytes + 2 * latent_bytes
    assert growth(lambda frames: reference_means(reference, frames)) > video_bytes


@pytest.mark.parametrize(
    ("cells", "dim", "tile"),
    [((8, 12), 8, None), ((6, 10), 24, None), ((6, 20), 24, Tile(size=12, overlap=3)), ((4, 80), 8, SMALL_TILES[0])],
    ids=str,
)
def test_predicted_bytes_cover_what_is_alive(cells, dim, tile):
    """The plan's prediction holds what copies take on a GPU, and a bit for its allocator."""
    encoder, frames = load_encoder(vae(sizes=TinySizes(vae_dim=dim))), draw(5, cells[0] * 8, cells[1] * 8)
    with PeakBytes() as meter:
        encode(encoder, frames, tile)
    weights = encode_bytes(0, 0, None, dim, 4)
    predicted = encode_bytes(cells[0] * 8, cells[1] * 8, tile, dim, 4, num_frames=5) - weights
    assert 0.8 * predicted < meter.peak - frames.nbytes < 0.95 * predicted


def test_load_and_unload_repeat():
    encoder, frames = load_encoder(vae()), draw(5, 16, 16)
    before = encode(encoder, frames)
    encoder.load(Hooks())
    encoder.unload()
    encoder.unload()
    # ComfyUI runs nodes in inference mode; what is loaded there must work outside of it too.
    with torch.inference_mode():
        encoder.load(Hooks())
    assert torch.equal(encode(encoder, frames), before)


@pytest.mark.parametrize(("tile", "tiles"), [(None, 1), (Tile(size=8, overlap=2), 2)], ids=str)
def test_progress_runs_once_through_all_tiles_and_a_cancel_passes(tile, tiles):
    encoder, frames, seen = load_encoder(vae()), draw(9, 16, 14 * 8), []
    encode(encoder, frames, tile, Hooks(on_progress=lambda *progress: seen.append(progress)))
    frames_done = [(tile * 9 + frame) // tiles for tile in range(tiles) for frame in (1, 5, 9)]
    assert seen == [(done, 9, "encoding frames") for done in frames_done]
    stop = CancelAfter(4)
    with pytest.raises(Cancelled):
        encode(encoder, frames, tile, Hooks(check_interrupt=stop))
    assert stop.calls == 5
    encoder.unload()
    with pytest.raises(Cancelled):
        encoder.load(Hooks(check_interrupt=CancelAfter(3)))
    encoder.load(Hooks())


class KnownEncoder:
    """An encoder of Wan's shapes whose features are the colours of the first frame's upper left pixels in each cell."""

    device = CPU

    def __init__(self, function, blend_share=1.0):
        self.function = function
        self.blend_share = blend_share
        self.tiles = []

    def encode_frames(self, frames):
        for index, frame in enumerate(frames):
            if index % 4 == 0:
                found = self.function(frame[::8, ::8])
                self.tiles.append(tuple(found.shape[:2]))
                yield found

    def finish(self, features, hooks):
        return features.permute(3, 0, 1, 2)


@pytest.mark.parametrize("tile", [None, *SMALL_TILES], ids=str)
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 8, 8), (9, 13, 30), (7, 21, 9)])
def test_every_frame_and_cell_lands_in_its_place(tile, frames, height, width):
    video = draw(frames, height * 8, width * 8)
    latents = encode(KnownEncoder(lambda cells: cells), video, tile)
    expected = video[::4, ::8, ::8].permute(3, 0, 1, 2)
    torch.testing.assert_close(latents, expected, rtol=0, atol=0 if tile is None else 2e-7)


@pytest.mark.parametrize("share", [1.0, 0.25])
@pytest.mark.parametrize("tile", SMALL_TILES, ids=str)
def test_tiles_that_disagree_leave_no_seam(tile, share):
    """Tiles of one constant each: neighbouring cells may differ by the slope of the ramp, no more."""
    encoder = KnownEncoder(lambda cells: torch.rand(1, 1, 3).expand_as(cells), share)
    latents = encode(encoder, draw(1, 33 * 8, 47 * 8), tile)
    assert len(encoder.tiles) > 4 and len({*encoder.tiles}) == 1 and latents.std() > 0.1
    steepest = min(1 / (tile.overlap * share), 1)
    for axis in (2, 3):
        assert latents.diff(dim=axis).abs().max() <= steepest + 1e-6


def test_a_tiled_encode_differs_little_from_the_whole_one():
    """Latents' standard deviation is 0.5; 0.0007 is a fourth of what BF16 rounds a latent of 1 by."""
    encoder, frames = load_encoder(vae()), draw(5, 96, 480)
    whole = encode(encoder, frames)
    error = (encode(encoder, frames, Tile(size=34, overlap=8)) - whole).abs()
    assert whole.std() > 0.3
    assert 0 < error.max() < 0.0015 and error.mean() < 3e-5


def test_a_tiled_encode_equals_the_whole_one_where_tiles_give_up_what_they_cannot_see():
    """Before what sees the whole picture a cell sees 4.5 cells; of an overlap of 12 a tile gives up 4.5."""
    encoder, frames = load_encoder(vae()), draw(1, 16, 90 * 8)
    tiled = encode(encoder, frames, Tile(size=51, overlap=12))
    torch.testing.assert_close(tiled, encode(encoder, frames), rtol=0, atol=1e-5)
