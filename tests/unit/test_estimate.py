"""Predicted seconds, against what was measured (docs/benchmarks.md) and what others published."""

from dataclasses import replace

import pytest
from lightx2v_pack.engine.backends.choose import Wanted, choose
from lightx2v_pack.engine.backends.table import ATTENTION_BACKENDS, Machine, why_not
from lightx2v_pack.engine.memory.clip import Clip
from lightx2v_pack.engine.panel import speed
from lightx2v_pack.engine.panel.speed import History, Setup
from support.wan_14b import WAN_14B

TOKENS_480P, TOKENS_720P = 32_760, 75_600
CLIP_480P = Clip(width=832, height=480, num_frames=81)
CLIP_720P = Clip(width=1280, height=720, num_frames=81)
H200, RTX_4090 = "NVIDIA H200", "NVIDIA GeForce RTX 4090"


def setup(card=H200, precision="fp8", attention="sage_attn2", matmul=None, ops="triton", offload="none"):
    return Setup(
        card=card,
        architecture=WAN_14B,
        engine="lightx2v" if ops == "lightx2v" else "portable",
        compute="bf16" if matmul == "dequantize" else precision,
        attention=attention,
        matmul=matmul or {"fp8": "scaled_mm", "int8": "int_mm", "bf16": "bf16"}[precision],
        ops=ops,
        offload=offload,
    )


@pytest.mark.parametrize(
    ("what", "tokens", "measured"),
    [
        (setup(), TOKENS_480P, 1.785),
        (setup(), 7_800, 0.232),
        (setup(), 18_000, 0.724),
        (setup(), 75_600, 7.36),
        (setup(attention="triton"), TOKENS_480P, 1.767),
        (setup(precision="int8", matmul="int_triton"), TOKENS_480P, 1.837),
        (setup(precision="bf16"), TOKENS_480P, 2.244),
        (setup(attention="sdpa_cudnn"), TOKENS_480P, 2.28),
        (setup(ops="lightx2v"), TOKENS_480P, 2.29),
        (setup(ops="lightx2v", attention="sdpa"), TOKENS_480P, 2.70),
        (setup(ops="lightx2v", precision="int8"), TOKENS_480P, 3.48),
        (setup(ops="lightx2v", precision="bf16"), TOKENS_480P, 2.57),
        (setup(ops="torch"), TOKENS_480P, 2.79),
        (setup(ops="torch", precision="bf16", attention="sdpa"), TOKENS_480P, 3.73),
    ],
)
def test_an_h200_is_predicted_within_a_tenth_of_what_was_measured(what, tokens, measured):
    assert speed.step_seconds(what, tokens) == pytest.approx(measured, rel=0.1)


GEFORCE = [name for name in speed.CARDS if name.startswith("RTX ") and name[4:6] in ("30", "40", "50")]
CAPABILITY = {"30": (8, 6), "40": (8, 9), "50": (12, 0)}


@pytest.mark.parametrize("system", ["linux", "win32"])
@pytest.mark.parametrize("packages", [{}, {"triton": "3.6.0"}, {"sageattention": "2.2.0"}], ids=str)
def test_no_attention_that_runs_has_a_shorter_estimate_than_the_one_that_auto_takes(system, packages):
    """On GeForce cards, none of which was measured, auto follows the same figures that users are shown."""
    for name in GEFORCE:
        machine = Machine(capability=CAPABILITY[name[4:6]], system=system, torch="2.11.0", packages=packages)
        chosen = choose(machine, Wanted(precision="int8", dim=5120, ffn_dim=13824)).attention.name
        runs = [row.name for row in ATTENTION_BACKENDS if why_not(row, machine, "bf16") is None]
        of = {
            each: speed.step_seconds(replace(setup(name, "int8", attention=each), system=system), TOKENS_480P)
            for each in runs
        }
        assert of[chosen] == min(of.values()), name


def test_every_attention_back_end_has_an_estimate():
    for backend in ATTENTION_BACKENDS:
        assert speed.step_seconds(setup(attention=backend.name), TOKENS_480P) < 4


@pytest.mark.parametrize(
    ("clip", "tiled", "measured"),
    [(CLIP_480P, False, 0.74), (CLIP_480P, True, 0.91), (CLIP_720P, False, 1.67), (CLIP_720P, True, 2.63)],
)
def test_a_decode_is_predicted_within_a_sixth_of_what_was_measured(clip, tiled, measured):
    found = speed.decode_seconds(H200, clip, is_tiled=tiled)
    assert found == pytest.approx(measured, rel=0.16)


@pytest.mark.parametrize(
    ("clip", "published"),
    # I2V-14B on LightX2V's own blocks: 4 steps, text and image encoder, and its decode, which takes three times as long
    # as ours. Source: LightX2V's benchmark page.
    [(CLIP_480P, 63), (CLIP_720P, 171)],
)
def test_an_rtx_4090_is_predicted_below_what_a_longer_run_took(clip, published):
    duration = History().predict(setup(card=RTX_4090, ops="lightx2v", offload="block"), clip, 4, is_tiled=True)
    assert duration.basis == "estimate"
    assert 0.6 * published < duration.seconds < published


def test_a_card_without_fp8_is_slower_with_fp8_weights_than_with_int8():
    ampere = "NVIDIA GeForce RTX 3090"
    fp8 = speed.step_seconds(setup(card=ampere, matmul="dequantize"), TOKENS_480P)
    int8 = speed.step_seconds(setup(card=ampere, precision="int8"), TOKENS_480P)
    assert fp8 > 1.5 * int8


@pytest.mark.parametrize("card", ["CPU", "NVIDIA GeForce RTX 4090 Laptop GPU", "AMD Radeon RX 7900 XTX"])
def test_an_unlisted_card_gets_no_number(card):
    duration = History().predict(setup(card=card), CLIP_480P, 4, is_tiled=False)
    assert (duration.seconds, duration.basis) == (None, "unknown")


@pytest.mark.parametrize("name", speed.CARDS)
def test_listed_rates_are_consistent(name):
    rates = speed.CARDS[name]
    assert rates.int8 == pytest.approx(4 * rates.bf16, rel=0.03) or rates.int8 == pytest.approx(
        2 * rates.bf16, rel=0.03
    )
    assert rates.fp8 is None or rates.bf16 * 1.9 < rates.fp8 <= rates.int8


def test_encoding_a_picture_is_in_the_estimate_where_it_was_measured(tmp_path):
    """Once for a batch, and by the pixels of the clip; a file of an earlier version has none of it."""
    path = tmp_path / "speeds.json"
    history = History(path)
    history.add_steps(setup(), TOKENS_480P, [[5.0, 5.0]])
    history.add_decode(H200, CLIP_480P, 2.5, is_tiled=False)
    known = path.read_text(encoding="utf-8")

    def seconds(history, clip=CLIP_480P, **options):
        return history.predict(setup(), clip, 4, is_tiled=False, **options).seconds

    assert seconds(history, has_picture=True) == seconds(history)
    history.add_encode(H200, CLIP_480P, 1.5)
    for each in (history, History(path)):
        assert seconds(each, has_picture=True) == pytest.approx(seconds(each) + 1.5)
        two = replace(CLIP_480P, batch=2)
        assert seconds(each, two, has_picture=True) == pytest.approx(seconds(each, two) + 1.5)
    path.write_text(known.replace(', "encodes": {}', ""), encoding="utf-8")
    assert seconds(History(path), has_picture=True) == pytest.approx(4 * 5.0 + 2.5)


def test_a_run_of_the_same_kind_goes_before_the_estimate():
    history = History()
    history.add_steps(setup(), TOKENS_480P, [[9.0, 4.0, 5.0, 6.0]])
    history.add_decode(H200, CLIP_480P, 2.5, is_tiled=False)
    same = history.predict(setup(), CLIP_480P, 4, is_tiled=False)
    assert (same.basis, same.step_seconds, same.seconds) == ("measured", 5.0, pytest.approx(4 * 5.0 + 2.5))
    larger = history.predict(setup(), CLIP_720P, 4, is_tiled=False)
    ratio = speed.step_seconds(setup(), TOKENS_720P) / speed.step_seconds(setup(), TOKENS_480P)
    assert (larger.basis, larger.step_seconds) == ("scaled", pytest.approx(5.0 * ratio))
    assert history.predict(setup(offload="block"), CLIP_480P, 4, is_tiled=False).basis == "estimate"


def test_a_first_run_makes_an_unlisted_card_known():
    history = History()
    history.add_steps(setup(card="CPU"), 1000, [[2.0]])
    # Of far more work: a guess, and it says so.
    assert history.predict(setup(card="CPU"), CLIP_480P, 4, is_tiled=False).basis == "rough"
    twice = history.predict(setup(card="CPU"), Clip(width=800, height=640, num_frames=1), 4, is_tiled=False)
    # Attention grows with the square, the rest in proportion.
    assert 2 * 2.0 < twice.step_seconds < 4 * 2.0


def test_a_short_clip_does_not_tell_how_long_a_large_one_takes_where_rates_are_known():
    """Weights that stream take as long for five frames as for eighty-one."""
    history = History()
    history.add_steps(setup(), Clip(width=64, height=64, num_frames=5).tokens, [[3.0]])
    found = history.predict(setup(), CLIP_480P, 4, is_tiled=False)
    assert found == History().predict(setup(), CLIP_480P, 4, is_tiled=False) and found.basis == "estimate"


def test_two_sizes_tell_what_is_constant_and_what_grows():
    history, card = History(), setup(card="CPU")
    clips = [Clip(width=512, height=512, num_frames=count) for count in (1, 5, 9, 13)]
    work = [speed._relative_work(card, clip.tokens) for clip in clips]
    for clip, amount in list(zip(clips, work, strict=True))[:3]:
        history.add_steps(card, clip.tokens, [[10 + 1e-6 * amount]])
    found = history.predict(card, clips[3], 4, is_tiled=False)
    assert found.basis == "scaled" and found.step_seconds == pytest.approx(10 + 1e-6 * work[3])


def test_runs_that_disagree_give_no_number_below_zero():
    history, card = History(), setup(card="CPU")
    for tokens, seconds in ((1000, 5.0), (1500, 1.0), (2000, 0.2)):
        history.add_steps(card, tokens, [[seconds]])
    assert history.predict(card, Clip(width=512, height=512, num_frames=9), 4, is_tiled=False).step_seconds > 0


def test_speeds_are_known_after_a_restart(tmp_path):
    file = tmp_path / "user" / "speeds.json"
    first = History(file)
    first.add_steps(setup(), TOKENS_480P, [[9.0, 5.0]])
    first.add_decode(H200, CLIP_480P, 2.5, is_tiled=False)
    again = History(file).predict(setup(), CLIP_480P, 4, is_tiled=False)
    assert (again.basis, again.seconds) == ("measured", pytest.approx(4 * 5.0 + 2.5))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"steps": {"a": {"5": -1}}, "decodes": {}}',
        '{"steps": {"a": 5}}',
        "[" * 9999,
        # No sizes of a clip, and no durations of a step: what is estimated from them is no number either.
        '{"steps": {"a": {"0": 2.5}}, "decodes": {}}',
        '{"steps": {"a": {"-32760": 2.5}}, "decodes": {}}',
        '{"steps": {"a": {"%s": 2.5}}, "decodes": {}}' % ("9" * 400),
        '{"steps": {"a": {"32760": 5e-324}}, "decodes": {}}',
        '{"steps": {}, "decodes": {"a": 1e308}}',
    ],
    ids=lambda text: text[:40],
)
def test_a_damaged_file_of_speeds_is_said_and_written_anew(tmp_path, caplog, text):
    file = tmp_path / "speeds.json"
    file.write_text(text)
    history = History(file)
    assert "speeds.json cannot be read" in caplog.text
    history.add_steps(setup(), TOKENS_480P, [[5.0]])
    assert History(file).predict(setup(), CLIP_480P, 4, is_tiled=False).basis == "measured"


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, caplog):
    (tmp_path / "user").write_text("a file")
    history = History(tmp_path / "user" / "speeds.json")
    for _ in range(2):
        history.add_steps(setup(), TOKENS_480P, [[5.0]])
    assert caplog.text.count("cannot be written") == 1
    assert history.predict(setup(), CLIP_480P, 4, is_tiled=False).basis == "measured"


def test_a_batch_takes_as_often_as_long():
    one, four = (History().predict(setup(), replace(CLIP_480P, batch=count), 4, is_tiled=True) for count in (1, 4))
    assert four.seconds == pytest.approx(4 * one.seconds)


def test_every_step_takes_its_time():
    four, six = (History().predict(setup(), CLIP_480P, steps, is_tiled=False) for steps in (4, 6))
    assert six.step_seconds == four.step_seconds
    assert six.seconds - four.seconds == pytest.approx(2 * four.step_seconds)


def test_what_ran_on_other_operations_does_not_predict():
    history = History()
    history.add_steps(setup(ops="torch"), TOKENS_480P, [[9.0, 9.0]])
    assert history.predict(setup(ops="torch"), CLIP_480P, 4, is_tiled=False).step_seconds == 9.0
    fused = history.predict(setup(), CLIP_480P, 4, is_tiled=False)
    assert fused.basis == "estimate" and fused.step_seconds < 2
