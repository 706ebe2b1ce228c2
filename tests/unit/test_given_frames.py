"""Pictures to given frames: their size, how they are fitted, the frames of a clip and the mask."""

import math

import pytest
import torch
from lightx2v_pack.engine.stages.given_frames import fit_pictures, lay_out, size_of_area
from torch.nn import functional

AREA = 832 * 480


def official_size(height, width, area):
    """As Wan2.1's wan/image2video.py writes it."""
    aspect = height / width
    rows = round(math.sqrt(area * aspect) // 8 // 2 * 2)
    columns = round(math.sqrt(area / aspect) // 8 // 2 * 2)
    return columns * 8, rows * 8


@pytest.mark.parametrize("size", [(480, 832), (832, 480), (1080, 1920), (1000, 1000), (333, 777), (3000, 4000)])
@pytest.mark.parametrize("area", [AREA, 1280 * 720])
def test_the_size_has_the_pictures_aspect_as_in_wans_code(size, area):
    width, height = size_of_area(*size, area)
    assert (width, height) == official_size(*size, area)
    assert width % 16 == height % 16 == 0 and width * height <= area


def test_the_longest_picture_still_has_a_size():
    assert size_of_area(10, 100_000, AREA) == (63184, 16)


def test_a_picture_is_resized_as_in_wans_code():
    picture = torch.rand(1, 60, 90, 3, generator=torch.Generator().manual_seed(0))
    fitted = fit_pictures(picture, 64, 48, crops=False)
    signed = picture[0].permute(2, 0, 1).sub(0.5).div(0.5)
    official = functional.interpolate(signed[None], size=(48, 64), mode="bicubic")[0].permute(1, 2, 0)
    torch.testing.assert_close(fitted[0] * 2 - 1, official, rtol=1e-5, atol=1e-5)
    assert torch.equal(fit_pictures(fitted, 64, 48, crops=False), fitted)


def test_another_aspect_is_cut_to_its_middle():
    picture = torch.zeros(1, 48, 200, 3)
    picture[:, :, 60:140] = 1
    assert fit_pictures(picture, 80, 48, crops=True).eq(1).all()
    assert fit_pictures(picture, 80, 48, crops=False).mean() < 0.5
    tall = fit_pictures(picture.transpose(1, 2), 48, 80, crops=True)
    assert tall.shape == (1, 80, 48, 3) and tall.eq(1).all()


def test_a_large_picture_leaves_no_pixels_out():
    """Columns of black and white, four a pixel of the result: they are grey there."""
    picture = torch.zeros(1, 192, 256, 3)
    picture[:, :, ::2] = 1
    torch.testing.assert_close(fit_pictures(picture, 64, 48, crops=False), torch.full((1, 48, 64, 3), 0.5))


def test_alpha_is_left_out():
    picture = torch.rand(1, 48, 64, 4)
    assert torch.equal(fit_pictures(picture, 64, 48, crops=True), picture[..., :3])


def none():
    return torch.zeros(0, 32, 48, 3)


def pictures(count):
    return torch.rand(count, 32, 48, 3, generator=torch.Generator().manual_seed(count))


def test_one_picture_is_the_first_frame_and_the_rest_is_grey():
    frames, mask = lay_out(pictures(1), none(), 9)
    assert frames.shape == (9, 32, 48, 3) and torch.equal(frames[:1], pictures(1)) and frames[1:].eq(0.5).all()
    assert mask.shape == (1, 4, 3, 4, 6)
    assert mask[0, :, :, 0, 0].tolist() == [[0, 1, 1]] * 4


def test_a_last_frame_is_the_last_of_its_latent_frame():
    frames, mask = lay_out(pictures(1), pictures(2)[1:], 9)
    assert torch.equal(frames[8], pictures(2)[1]) and frames[1:8].eq(0.5).all()
    assert mask[0, :, :, 0, 0].tolist() == [[0, 1, 1], [0, 1, 1], [0, 1, 1], [0, 1, 0]]
    _, alone = lay_out(none(), pictures(1), 9)
    assert alone[0, :, :, 0, 0].tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]]


def test_several_pictures_are_frames_in_their_order():
    frames, mask = lay_out(pictures(3), pictures(2), 9)
    assert torch.equal(frames[:3], pictures(3)) and torch.equal(frames[7:], pictures(2))
    assert mask[0, :, :, 0, 0].tolist() == [[0, 0, 1], [0, 0, 1], [0, 1, 0], [0, 1, 0]]
    assert not lay_out(pictures(9), none(), 9)[1].any() and not lay_out(pictures(1), none(), 1)[1].any()


@pytest.mark.parametrize(("start", "end"), [(10, 0), (5, 5), (0, 0)])
def test_more_pictures_than_frames_are_refused(start, end):
    with pytest.raises(ValueError, match=f"{start} first and {end} last frames are given, and the video has 9"):
        lay_out(pictures(start), pictures(end), 9)
