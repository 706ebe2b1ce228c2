import pytest
from lightx2v_pack.engine import shapes


def test_default_clip():
    shape = shapes.latent_shape(832, 480, 81)
    assert shape == (16, 21, 60, 104)
    assert shapes.num_tokens(shape) == 32_760
    assert shapes.video_shape(shape) == (81, 480, 832)


def test_720p_tokens():
    assert shapes.num_tokens(shapes.latent_shape(1280, 720, 81)) == 75_600


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ((830, 480, 81), "width is 830; expected a multiple of 16. Use 816 or 832."),
        ((832, 481, 81), "height is 481; expected a multiple of 16. Use 480 or 496."),
        ((832, 8, 81), "height is 8; expected a multiple of 16. Use 16."),
        ((832, 480, 80), "num_frames is 80; expected 4n+1 (1, 5, 9, ... 81). Use 77 or 81."),
        ((832, 480, 0), "num_frames is 0; expected 4n+1 (1, 5, 9, ... 81). Use 1."),
    ],
)
def test_a_wrong_size_gets_a_sentence_with_the_nearest_right_ones(size, sentence):
    assert shapes.size_problem(*size) == sentence
    with pytest.raises(ValueError, match="expected"):
        shapes.latent_shape(*size)


@pytest.mark.parametrize(
    ("shape", "part"),
    [
        ((1, 4, 60, 104), "4 dimensions"),
        ((1, 4, 21, 60, 104), "4 channels belong to another model"),
        ((1, 16, 21, 61, 104), "multiples of 16"),
        ((0, 16, 21, 60, 104), "expected [batch, 16"),
    ],
)
def test_a_wrong_latent_gets_a_sentence(shape, part):
    assert part in shapes.latent_problem(shape)


def test_a_right_latent_has_no_problem():
    assert shapes.latent_problem((2, 16, 1, 2, 2)) is None


def test_a_vae_takes_odd_numbers_of_cells_that_the_transformer_does_not():
    assert "multiples of 16" in shapes.latent_problem((1, 16, 2, 5, 4))
    assert shapes.decoding_problem((1, 16, 2, 5, 3)) is None
    for shape, part in (
        ((16, 2, 4, 4), "4 dimensions"),
        ((1, 48, 1, 4, 4), "48 channels"),
        ((1, 16, 0, 4, 4), "none of them 0"),
    ):
        assert part in shapes.decoding_problem(shape) and part in shapes.latent_problem(shape)


def test_frames_are_images_of_three_channels_and_at_least_a_cell():
    assert shapes.frames_problem((1, 8, 8, 3)) is None and shapes.frames_problem((2, 5, 30, 20, 4)) is None
    for shape in ((8, 8, 3), (1, 8, 8, 1), (0, 8, 8, 3), (1, 1, 5, 8, 8, 3)):
        assert str(list(shape)) in shapes.frames_problem(shape)
    assert "at least 8x8" in shapes.frames_problem((1, 7, 80, 3))


def test_a_videos_latents_are_of_its_first_4n_plus_1_frames_and_of_whole_cells():
    assert shapes.cells((1, 16, 24)) == shapes.cells((4, 23, 31)) == (1, 2, 3)
    assert shapes.cells((5, 480, 832)) == (2, 60, 104) and shapes.cells((84, 480, 832)) == (21, 60, 104)
