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


def test_a_videos_latents_are_of_its_first_4n_plus_1_frames_and_of_whole_cells():
    assert shapes.cells((1, 16, 24)) == shapes.cells((4, 23, 31)) == (1, 2, 3)
    assert shapes.cells((5, 480, 832)) == (2, 60, 104) and shapes.cells((84, 480, 832)) == (21, 60, 104)
