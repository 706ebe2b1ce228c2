"""Whole and tiled decode: placing and blending on decoders whose frames are known, then on the real one."""

import pytest
import torch
from lightx2v_pack.engine.errors import NonFiniteLatentsError
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.latent_space import denormalize
from lightx2v_pack.engine.memory.tiles import Tile
from lightx2v_pack.engine.stages.decode import decode_video
from support.cancel import Cancelled
from support.checkpoints import vae as vae_file
from support.decoders import load_decoder
from support.tensors import normal

CPU = torch.device("cpu")
SMALL_TILES = [Tile(size=8, overlap=2), Tile(size=9, overlap=1), Tile(size=20, overlap=5)]


def brightness(cells):
    return cells.clamp(0, 1)


class KnownDecoder:
    """A decoder of Wan's shapes whose pixels are `function` of the first three channels' cells."""

    device = CPU

    def __init__(self, function, blend_share=1.0):
        self.function = function
        self.blend_share = blend_share
        self.tiles = []

    def prepare(self, latents, hooks):
        return latents

    def describe(self):
        return {"vae": "my_vae.pth"}

    def decode_chunks(self, latents, hooks):
        self.tiles.append(tuple(latents.shape[-2:]))
        for index in range(latents.shape[1]):
            hooks.check_interrupt()
            cells = self.function(latents[:3, index])
            frame = cells.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2).permute(1, 2, 0)
            yield frame.repeat(1 if index == 0 else 4, 1, 1, 1)


def clip(frames, height, width):
    return normal(16, frames, height, width, seed=1)


@pytest.fixture(scope="module")
def vae():
    return load_decoder(vae_file())


@pytest.mark.parametrize("tile", [None, *SMALL_TILES], ids=str)
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 8, 8), (3, 13, 30), (2, 21, 9)])
def test_every_frame_and_pixel_lands_in_its_place(tile, frames, height, width):
    latents = clip(frames, height, width)
    video = decode_video(KnownDecoder(brightness), latents, tile=tile, hooks=Hooks())
    of_frame = [0, *(index for index in range(1, frames) for _ in range(4))]
    expected = brightness(latents[:3, of_frame]).permute(1, 2, 3, 0)
    expected = expected.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    assert video.dtype == torch.float32 and video.is_contiguous()
    torch.testing.assert_close(video, expected, rtol=0, atol=0 if tile is None else 2e-7)


@pytest.mark.parametrize("share", [1.0, 0.25])
@pytest.mark.parametrize("tile", SMALL_TILES, ids=str)
def test_tiles_that_disagree_leave_no_seam(tile, share):
    """Tiles of one constant colour each: neighbouring pixels may differ by the slope of the ramp, no more."""
    decoder = KnownDecoder(lambda cells: torch.rand(3, 1, 1).expand(3, *cells.shape[1:]), share)
    video = decode_video(decoder, clip(2, 33, 47), tile=tile, hooks=Hooks())
    assert len(decoder.tiles) > 4 and video.std() > 0.1
    steepest = 1 / (8 * tile.overlap * share)
    for axis in (1, 2):
        assert video.diff(dim=axis).abs().max() <= steepest + 1e-6


def test_blended_frames_stay_in_range():
    for value in (0.0, 1.0):
        decoder = KnownDecoder(lambda cells, value=value: torch.full_like(cells, value))
        video = decode_video(decoder, clip(1, 33, 47), tile=SMALL_TILES[0], hooks=Hooks())
        assert video.min() >= 0 and video.max() <= 1
        torch.testing.assert_close(video, torch.full_like(video, value), rtol=0, atol=2e-7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("tile", [None, SMALL_TILES[0]], ids=str)
def test_one_pixel_that_is_no_number_is_an_error_before_it_is_clamped(tile, value):
    latents = clip(2, 13, 30)
    latents[1, 1, 12, 29] = value
    with pytest.raises(NonFiniteLatentsError, match=r"--check my_vae.pth\) and download it again"):
        decode_video(KnownDecoder(lambda cells: cells), latents, tile=tile, hooks=Hooks())


def test_tiles_are_of_one_shape_and_no_larger_than_asked():
    decoder = KnownDecoder(brightness)
    decode_video(decoder, clip(1, 60, 104), tile=Tile(), hooks=Hooks())
    assert decoder.tiles == [(60, 56)] * 2


def test_progress_runs_once_through_all_tiles():
    seen = []
    hooks = Hooks(on_progress=lambda done, total, what: seen.append((done, total, what)))
    decode_video(KnownDecoder(brightness), clip(3, 8, 14), tile=Tile(size=8, overlap=2), hooks=hooks)
    # Of the clip's nine frames, in two tiles.
    assert seen == [(done, 9, "decoding frames") for done in (0, 2, 4, 5, 7, 9)]


@pytest.mark.parametrize("tile", [None, Tile(size=8, overlap=2)], ids=str)
def test_an_interrupt_stops_before_the_next_chunk(tile):
    done = []

    def check_interrupt():
        if len(done) == 2:
            raise Cancelled

    hooks = Hooks(check_interrupt=check_interrupt, on_progress=lambda *progress: done.append(progress))
    with pytest.raises(Cancelled):
        decode_video(KnownDecoder(brightness), clip(5, 14, 14), tile=tile, hooks=hooks)
    assert len(done) == 2


def test_one_tile_over_everything_is_the_whole_decode(vae):
    latents = denormalize(clip(2, 6, 10))
    whole = decode_video(vae, latents, tile=None, hooks=Hooks())
    assert whole.shape == (5, 48, 80, 3)
    assert torch.equal(decode_video(vae, latents, tile=Tile(size=10, overlap=2), hooks=Hooks()), whole)


def test_a_tiled_decode_differs_little_from_the_whole_one(vae):
    """Random weights see far, so this is an upper bound: of a range of 1, the frames' standard deviation is 0.2, the
    tiles' difference at most 0.0007. An 8-bit picture has steps of 0.004.
    """
    latents = denormalize(clip(2, 12, 60))
    whole = decode_video(vae, latents, tile=None, hooks=Hooks())
    error = decode_video(vae, latents, tile=Tile(size=34, overlap=8), hooks=Hooks()) - whole
    assert whole.std() > 0.1
    assert 0 < error.abs().max() < 0.0015


def test_a_tiled_decode_equals_the_whole_one_where_tiles_give_up_what_they_cannot_see(vae):
    """After what has seen the whole picture a pixel sees 6.25 cells; of an overlap of 18 a tile gives up 6.75."""
    latents = denormalize(clip(1, 2, 90))
    whole = decode_video(vae, latents, tile=None, hooks=Hooks())
    tiled = decode_video(vae, latents, tile=Tile(size=72, overlap=18), hooks=Hooks())
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)
