"""Reports of hooks as one line, on a clock that the tests turn."""

import pytest
import torch
from lightx2v_pack.engine import pipeline
from lightx2v_pack.engine.progress import ProgressLine
from lightx2v_pack.engine.quantities import format_bytes, format_seconds
from support import checkpoints


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def shown():
    return []


@pytest.fixture
def line(clock, shown):
    return ProgressLine(lambda done, total, text: shown.append((done, total, text)), clock)


def test_a_stage_says_how_far_it_is_and_starts_anew(line, shown):
    line.show_progress(40, 40, "loading the transformer")
    line.start_step(1, 4)
    assert shown == [(40, 40, "loading the transformer 40/40"), (0, 4, "step 1/4")]


def test_blocks_move_the_bar_within_a_step_and_tell_the_time_left(line, shown, clock):
    line.start_step(1, 4)
    for block in range(1, 41):
        clock.now += 1
        line.show_block(block, 40)
    assert shown[2] == (2, 160, "step 1/4, block 2/40")
    assert shown[3] == (3, 160, "step 1/4, block 3/40, 2 min 37 s left")
    assert shown[-1] == (40, 160, "step 1/4, block 40/40, 2 min 0 s left")
    line.start_step(2, 4)
    assert shown[-1] == (1, 4, "step 2/4, 2 min 0 s left")


def test_the_time_left_follows_the_last_half_minute(line, shown, clock):
    line.start_step(1, 2)
    clock.now += 600  # compiles
    line.show_block(1, 100)
    for block in range(2, 41):
        clock.now += 1
        line.show_block(block, 100)
    assert shown[-1][2] == "step 1/2, block 40/100, 2 min 40 s left"


def test_fast_blocks_are_not_all_shown_but_the_last_is(line, shown, clock):
    line.start_step(1, 1)
    for block in range(1, 41):
        clock.now += 0.01
        line.show_block(block, 40)
    assert len(shown) < 8 and shown[-1] == (40, 40, "step 1/1, block 40/40")


def test_passes_of_a_step_never_turn_the_bar_back(line, shown, clock):
    """As with cfg above 1, or a batch, under a sampler of ComfyUI."""
    for step in (1, 2, 3):
        line.start_step(step, 3)
        for _ in range(2):
            for block in (1, 2):
                clock.now += 1
                line.show_block(block, 2)
    shares = [done / total for done, total, text in shown if "step 1" not in text]
    assert shares == sorted(shares) and shares[-1] == 1
    assert shown[-1][2] == "step 3/3, pass 2/2, block 2/2"


def test_a_run_that_starts_again_has_another_pace(line, shown, clock):
    line.start_step(1, 2)
    clock.now += 100
    line.show_block(1, 4)
    line.start_step(1, 2)
    clock.now += 4
    line.show_block(1, 4)
    assert shown[-1][2] == "step 1/2, block 1/4, 28 s left"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4.23, "4.2 s"), (42.4, "42 s"), (185, "3 min 5 s"), (3599, "59 min 59 s"), (13860, "3 h 51 min")],
)  # fmt: skip
def test_durations_are_read_as_people_say_them(seconds, words):
    assert format_seconds(seconds) == words


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [
        (2000.4 * 2**30, "2000 GiB"), (145.6 * 2**30, "146 GiB"), (13.4 * 2**30, "13.4 GiB"), (0.2 * 2**30, "0.2 GiB"),
        (80 * 2**20, "80 MiB"), (4.11 * 2**20, "4.1 MiB"), (21 * 2**10, "21 KiB"), (250, "250 B"), (0, "0 B"),
    ],
)  # fmt: skip
def test_sizes_are_read_as_people_say_them(num_bytes, words):
    assert format_bytes(int(num_bytes)) == words


def test_a_run_reports_steps_blocks_and_real_frames(line, shown):
    """Of the pack's own stages, on two clips."""
    loaded = pipeline.load_checkpoint(
        checkpoints.repository(),
        settings=pipeline.EngineSettings(compile="off"),
        offload=pipeline.OffloadSettings(),
    )
    hooks = line.hooks()
    rows = pipeline.encode_text(loaded.text_encoder, "a fox", hooks=hooks)
    conditioning = pipeline.Conditioning(text=rows[0], num_text=3)
    latents = pipeline.sample(
        loaded.transformer, [conditioning], torch.zeros(2, 16, 2, 4, 4), pipeline.SamplingSettings(seed=0), hooks=hooks
    )
    pipeline.decode(loaded.vae, latents, hooks=hooks)
    texts = [text for _, _, text in shown]
    assert "step 8/8, block 2/2" in texts
    assert [text for text in texts if "frames" in text] == [f"decoding frames {done}/10" for done in (1, 5, 6, 10)]
