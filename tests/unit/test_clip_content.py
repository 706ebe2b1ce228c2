"""What tools/clip_content.py measures, against clips whose content is known because they were drawn from it."""

import random
from dataclasses import replace

import pytest
import torch
from lightx2v_pack.demo.train.captions import draw_content
from lightx2v_pack.demo.train.clips import draw_clips
from lightx2v_pack.tools.clip_content import (
    ATTRIBUTES,
    COLOURS,
    Content,
    Thing,
    compare,
    measure_clarity,
    measure_content,
)

RIGHT = dict.fromkeys(ATTRIBUTES, True)


def draw(contents, size=64, num_frames=17, seed=0):
    """Return clips [F, H, W, 3] in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    clips = draw_clips(contents, size=size, num_frames=num_frames, generator=generator, device=torch.device("cpu"))
    return [(clip.permute(1, 2, 3, 0) + 1) / 2 for clip in clips]


def draw_contents(count, seed=0):
    generator = random.Random(seed)
    return [draw_content(generator) for _ in range(count)]


def single(colour="red", shape="circle", background="black", motion="left"):
    return Content(background=background, things=(Thing(colour=colour, shape=shape, motion=motion),))


def test_measures_every_drawn_clip_right():
    contents = draw_contents(40)
    wrong = [
        (content, measured)
        for content, clip in zip(contents, draw(contents), strict=True)
        if compare(measured := measure_content(clip), content) != RIGHT
    ]
    assert not wrong


def test_measures_right_under_noise():
    contents = draw_contents(20, seed=1)
    noise = torch.Generator().manual_seed(0)
    for content, clip in zip(contents, draw(contents), strict=True):
        noisy = (clip + 0.08 * torch.randn(clip.shape, generator=noise)).clamp(0, 1)
        assert compare(measure_content(noisy), content) == RIGHT, content


def test_colours_are_measured_from_pixels_not_from_the_order_of_drawing():
    clip = draw([single(colour="yellow", background="purple")])[0]
    swapped = clip[..., [2, 1, 0]]  # purple turns to another purple, yellow to a light blue
    assert measure_content(swapped) != measure_content(clip)


@pytest.mark.parametrize(
    "attribute, other",
    [
        ("colour", single(colour="blue")),
        ("shape", single(shape="triangle")),
        ("background", single(background="gray")),
        ("motion", single(motion="right")),
        ("motion", single(motion="still")),
        ("motion", single(motion="growing")),
    ],
)
def test_compare_finds_what_differs_and_only_that(attribute, other):
    measured = measure_content(draw([other])[0])
    assert compare(measured, single()) == {**RIGHT, attribute: False}


def test_reversed_clip_moves_the_other_way():
    for motion, reverse in {"left": "right", "up": "down", "growing": "shrinking", "still": "still"}.items():
        clip = draw([single(motion=motion)])[0]
        assert measure_content(clip.flip(0)).things[0].motion == reverse


def test_missing_or_additional_things_are_wrong():
    one = single()
    two = replace(one, things=(*one.things, Thing(colour="white", shape="square", motion="left")))
    wrong = {"colour": False, "shape": False, "background": True, "motion": False}
    assert compare(measure_content(draw([one])[0]), two) == wrong
    assert compare(measure_content(draw([two])[0]), one) == wrong


def test_nothing_but_background():
    colour = torch.tensor(COLOURS["green"]) / 255
    assert measure_content(colour.expand(5, 64, 64, 3)) == Content(background="green", things=())


def test_clarity_falls_with_blur():
    clip = draw([single(shape="square", motion="still")])[0]
    images = clip.permute(0, 3, 1, 2)
    blurred = torch.nn.functional.avg_pool2d(images, 15, stride=1, padding=7, count_include_pad=False)
    assert measure_clarity(clip) > 0.95
    assert measure_clarity(blurred.permute(0, 2, 3, 1)) < 0.8
