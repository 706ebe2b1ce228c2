import pytest
import torch
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
