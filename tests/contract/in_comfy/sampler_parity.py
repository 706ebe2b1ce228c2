"""Run in a process with ComfyUI: our sampler against ComfyUI's own on the same model, sigmas and noise.

usage: sampler_parity.py PACK_ROOT TRANSFORMER_FILE; prints one line of JSON.
"""

import json
import sys
import types
from pathlib import Path

from start import start

root, file = sys.argv[1:]
start(root)

import comfy.latent_formats  # noqa: E402
import comfy.model_sampling  # noqa: E402
import torch  # noqa: E402
from comfy.k_diffusion import sampling  # noqa: E402
from lightx2v_pack.engine import pipeline  # noqa: E402
from lightx2v_pack.engine.checkpoints.files import resolve_transformer  # noqa: E402
from lightx2v_pack.engine.interfaces import Hooks  # noqa: E402
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings, SamplingSettings  # noqa: E402
from lightx2v_pack.engine.stages.denoise import run_steps  # noqa: E402
from lightx2v_pack.engine.stages.denoise import start as start_clip  # noqa: E402
from lightx2v_pack.engine.stages.schedule import build_schedule  # noqa: E402
from support.engine import conditioning_of, open_transformer  # noqa: E402

SEED, SHAPE = 11, (16, 2, 6, 8)
COMFY_SAMPLERS = {"lcm": sampling.sample_lcm, "euler": sampling.sample_euler}


class Recorder:
    """A transformer, and the (latents, timestep, flow) of every call."""

    def __init__(self, transformer):
        self.transformer, self.calls = transformer, []

    def __getattr__(self, name):
        return getattr(self.transformer, name)

    def predict_flow(self, latents, timestep, conditioning, hooks, *experts):
        flow = self.transformer.predict_flow(latents, timestep, conditioning, hooks, *experts)
        self.calls.append((latents, timestep, flow))
        return flow


class Model:
    """The recorded calls as ComfyUI's samplers call a model: (x, sigma) -> estimate of the clean latents.

    Not the transformer itself: its activations are BF16, where a rounding of float32 becomes one of BF16.
    """

    def __init__(self, calls):
        self.calls, self.difference = iter(calls), 0.0
        model_sampling = types.SimpleNamespace(noise_scaling=comfy.model_sampling.CONST().noise_scaling)
        self.inner_model = types.SimpleNamespace(inner_model=types.SimpleNamespace(model_sampling=model_sampling))

    def __call__(self, x, sigma, **_):
        latents, timestep, flow = next(self.calls)
        self.difference = max(self.difference, float((x[0] - latents).abs().max()))
        self.difference = max(self.difference, abs(float(sigma[0]) - timestep / 1000))
        return x - sigma.view(-1, 1, 1, 1, 1) * flow


SETTINGS = EngineSettings(compile="off")
handle = pipeline.load_transformer(Path(file), settings=SETTINGS, offload=OffloadSettings())
transformer = open_transformer(resolve_transformer(Path(file)), SETTINGS)
transformer.load(Hooks())
conditioning = conditioning_of(torch.randn(512, handle.text_dim, generator=torch.Generator().manual_seed(1)))
schedule = build_schedule(4, 5.0)
result = {}
with torch.inference_mode():
    for method, comfy_sampler in COMFY_SAMPLERS.items():
        recorder = Recorder(transformer)
        state = start_clip(SHAPE, SEED, transformer.device)
        run_steps(recorder, conditioning, state, schedule, range(schedule.steps), method=method, hooks=Hooks())
        ours = state.latents
        generator = torch.Generator("cpu").manual_seed(SEED)
        draw = lambda *_, g=generator: torch.randn(SHAPE, generator=g)[None]  # noqa: E731
        options = {"noise_sampler": draw} if method == "lcm" else {}
        model = Model(recorder.calls)
        theirs = comfy_sampler(model, draw(), torch.tensor(schedule.sigmas), extra_args={}, disable=True, **options)[0]
        result[method] = float((ours - theirs).abs().max())
        result[f"{method}_inputs"] = model.difference
        result[f"{method}_std"] = float(ours.std())
        samples = pipeline.sample(
            handle, [conditioning], torch.zeros(1, *SHAPE), SamplingSettings(seed=SEED, method=method), hooks=Hooks()
        )
        expected = comfy.latent_formats.Wan21().process_out(ours[None])
        result[f"{method}_latent"] = float((samples - expected).abs().max())
print(json.dumps(result))
