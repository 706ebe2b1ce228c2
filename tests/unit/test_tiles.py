"""Tile geometry: every split covers the axis, overlaps enough, and wastes nothing."""

from itertools import pairwise

import pytest
from lightx2v_pack.engine.memory.tiles import Span, Tile, split_axis

TILES = [Tile(), Tile(size=32, overlap=8), Tile(size=41, overlap=10), Tile(size=9, overlap=2), Tile(size=4, overlap=1)]


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_spans_cover_every_axis_with_enough_overlap(tile):
    for length in range(1, 200):
        spans = split_axis(length, tile)
        assert spans[0].start == 0 and spans[-1].stop == length
        assert len({span.stop - span.start for span in spans}) == 1
        assert spans[0].stop <= tile.size
        for left, right in pairwise(spans):
            shared = left.stop - right.start
            assert tile.overlap <= shared == left.fade_out == right.fade_in, (length, spans)
        assert spans[0].fade_in == spans[-1].fade_out == 0
        assert all(first.stop <= third.start for first, third in zip(spans, spans[2:], strict=False)), (length, spans)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_there_are_no_more_and_no_larger_spans_than_needed(tile):
    def reach(count, size):
        return count * size - (count - 1) * tile.overlap

    for length in range(tile.size + 1, 200):
        spans = split_axis(length, tile)
        count, size = len(spans), spans[0].stop
        assert reach(count, size) >= length > reach(count, size - 1), (length, spans)
        assert length > reach(count - 1, tile.size), (length, spans)


def test_sizes_of_the_usual_videos():
    assert [(span.start, span.stop) for span in split_axis(60, Tile())] == [(0, 60)]
    assert [(span.start, span.stop) for span in split_axis(104, Tile())] == [(0, 56), (48, 104)]
    assert [(span.start, span.stop) for span in split_axis(90, Tile())] == [(0, 49), (41, 90)]
    assert [(span.start, span.stop) for span in split_axis(160, Tile())] == [(0, 59), (50, 109), (101, 160)]


@pytest.mark.parametrize(("length", "tile"), [(500, None), (64, Tile()), (1, Tile())])
def test_one_span_where_no_tiling_is_needed(length, tile):
    assert split_axis(length, tile) == (Span(start=0, stop=length),)


@pytest.mark.parametrize(("size", "overlap"), [(48, 0), (31, 8), (0, 0)])
def test_a_tile_that_cannot_be_blended_is_refused(size, overlap):
    with pytest.raises(ValueError, match=f"tile size is {size} and overlap {overlap}.*at least 4 overlaps"):
        Tile(size=size, overlap=overlap)
