import math

import pytest
import torch
from lightx2v_pack.engine.settings import SamplingSettings
from lightx2v_pack.engine.stages.schedule import build_schedule


def test_four_steps_at_shift_five_is_the_distillation_schedule():
    schedule = build_schedule(4, 5.0)
    assert schedule.sigmas == pytest.approx((1.0, 0.9375, 0.8333333, 0.625, 0.0))
    assert schedule.timesteps == pytest.approx((1000.0, 937.5, 833.33333, 625.0))
    assert schedule.steps == 4


@pytest.mark.parametrize(("steps", "shift"), [(4, 5.0), (4, 3.0), (1, 5.0), (8, 5.0), (6, 1.0)])
def test_agrees_with_diffusers(steps, shift):
    from diffusers import FlowMatchEulerDiscreteScheduler

    reference = FlowMatchEulerDiscreteScheduler(shift=shift)
    reference.set_timesteps(sigmas=[1 - index / steps for index in range(steps)])
    schedule = build_schedule(steps, shift)
    torch.testing.assert_close(torch.tensor(schedule.sigmas), reference.sigmas, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.tensor(schedule.timesteps), reference.timesteps, rtol=0, atol=1e-3)


@pytest.mark.parametrize("shift", [0, -1, 1e-300, 1e308, float("inf"), float("nan")])
def test_a_shift_of_which_nothing_can_be_made_is_refused(shift):
    with pytest.raises(ValueError, match=r"^Set shift to a number from 0\.001 to 1000, not"):
        SamplingSettings(seed=0, shift=shift)


@pytest.mark.parametrize("shift", [0.001, 1000.0])
def test_the_least_and_the_largest_shift_have_noise_levels_that_fall(shift):
    sigmas = build_schedule(4, shift).sigmas
    assert all(math.isfinite(each) for each in sigmas) and list(sigmas) == sorted(set(sigmas), reverse=True)
