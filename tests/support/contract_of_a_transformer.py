"""What holds of every transformer of an engine (interfaces.Transformer), on every device, checked from outside.

A test file makes classes of it for its engine and devices:

    class TestContract(CpuContract):
        engine = "portable"

Tests of one engine alone, and of how near it is to a reference, stand in the files of the engines.
"""

import functools
import gc
import time
import weakref
from typing import ClassVar

import pytest
import torch
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.interfaces import Conditioning, Hooks
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.offload import streamer
from lightx2v_pack.engine.offload.pinned import locked_bytes
from lightx2v_pack.engine.settings import EngineSettings
from lightx2v_pack.engine.stages.schedule import build_schedule
from lightx2v_pack.tools import make_tiny_checkpoint as tiny

from . import checkpoints
from .alive import Snapshot, alive, num_bytes, tensors
from .attention import ATTENTIONS, attention_or_skip
from .cancel import CancelAfter, Cancelled, CancelledError
from .engine import conditioning_of, open_transformer
from .gpu_memory import peak_of
from .mapped_files import mapped_below, needs_proc
from .slow_gpu import LONG_SLEEP, SHORT_SLEEP, delay_copies, sleep_before_units
from .tensors import normal, relative_error

MODES = ("none", "block", "phase", "disk")
PRECISIONS = ("bf16", "fp8", "int8")
EVERY_MODE = pytest.mark.parametrize("mode", MODES)
EVERY_PRECISION = pytest.mark.parametrize("precision", PRECISIONS)
# Of the first and of the third step; the first one's flow, asked for again, must be the same.
TIMESTEPS = build_schedule(4, 5.0).timesteps[:3:2]


def travel_as_on_a_gpu(monkeypatch):
    """Let weights travel through RAM and buffers, instead of being mapped from their files as on a CPU."""
    monkeypatch.setattr(streamer, "map_units", streamer.load_units)


class TransformerContract:
    """On any device."""

    engine: ClassVar[str]
    settings: ClassVar[dict[str, str]] = {}
    """Fields of EngineSettings beside the engine."""
    sizes = tiny.DEFAULT_SIZES
    shape = (16, 3, 8, 10)
    device = torch.device("cpu")

    @classmethod
    def unloaded(cls, path, mode="none", resident_blocks=0, pinned_limit_bytes=None, **settings):
        """Return the transformer of a checkpoint."""
        placement = Placement(mode=mode, resident_blocks=resident_blocks, pinned_limit_bytes=pinned_limit_bytes)
        settings = EngineSettings(engine=cls.engine, **(cls.settings | settings))
        return open_transformer(resolve_transformer(path), settings, placement, cls.device)

    @classmethod
    def loaded(cls, path, *placement, **settings):
        """Return the same, loaded."""
        transformer = cls.unloaded(path, *placement, **settings)
        transformer.load(Hooks())
        return transformer

    @classmethod
    def path(cls, precision):
        """Return a checkpoint as published: a folder of blocks in 8 bits, one file in bf16."""
        return checkpoints.distilled(precision, cls.sizes)

    def num_units(self, mode):
        return self.sizes.num_layers * (3 if mode == "phase" else 1)

    @pytest.fixture(scope="class")
    @classmethod
    def conditioning(cls):
        return conditioning_of(normal(37, cls.sizes.text_dim, seed=5))

    @pytest.fixture(scope="class")
    @classmethod
    def flow_of(cls, conditioning):
        """flow_of(transformer, timestep) -> its flow for latents and a prompt that are always the same, on the CPU."""
        same = {"latents": normal(*cls.shape, seed=4).to(cls.device), "conditioning": conditioning}

        def flow_of(transformer, timestep=TIMESTEPS[0], hooks=None, **other):
            return transformer.predict_flow(timestep=timestep, hooks=hooks or Hooks(), **(same | other)).cpu()

        return flow_of

    @pytest.fixture(scope="class")
    @classmethod
    def flows_of(cls, flow_of):
        """flows_of(transformer) -> its flows at two timesteps, the first of which is asked for twice."""

        def flows_of(transformer):
            flows = [flow_of(transformer, timestep) for timestep in (*TIMESTEPS, TIMESTEPS[0])]
            assert torch.equal(flows[0], flows[-1])
            return torch.stack(flows[:-1])

        return flows_of

    @pytest.fixture(scope="class")
    @classmethod
    def resident_flows(cls, flows_of):
        """resident_flows(path) -> the flows of a checkpoint whose weights are all on the device, computed once."""
        return functools.cache(lambda path: flows_of(cls.loaded(path)))

    @pytest.fixture(scope="class")
    @classmethod
    def resident_flow(cls, resident_flows):
        """resident_flow(path) -> the first of them."""
        return lambda path: resident_flows(path)[0]

    # Results

    def test_a_flow_is_like_the_latents_and_finite(self, conditioning):
        latents = normal(*self.shape, seed=4).to(self.device)
        flow = self.loaded(self.path("bf16")).predict_flow(latents, 937.5, conditioning, Hooks())
        assert (flow.shape, flow.dtype, flow.device) == (latents.shape, torch.float32, latents.device)
        assert flow.isfinite().all()

    @EVERY_MODE
    @pytest.mark.parametrize(
        ("precision", "files"),
        [*((precision, "as published") for precision in PRECISIONS), ("fp8", "in one file")],
    )
    def test_every_placement_gives_the_same_bits(self, precision, files, mode, flows_of, resident_flows):
        path, blocks = self.path(precision), (0,) if mode == "none" else (0, 2)
        if files == "in one file":
            path, blocks = checkpoints.single_file(precision, sizes=self.sizes), (1,)
        for resident_blocks in blocks:
            transformer = self.loaded(path, mode, resident_blocks)
            assert torch.equal(flows_of(transformer), resident_flows(path)), resident_blocks
            transformer.unload()

    def test_another_size_needs_no_reload(self, flow_of):
        transformer = self.loaded(self.path("bf16"))
        first = flow_of(transformer)
        channels, frames, height, width = self.shape
        larger = normal(channels, frames + 2, height + 4, width - 2, seed=3).to(self.device)
        found = flow_of(transformer, latents=larger)
        assert torch.equal(found, flow_of(self.loaded(self.path("bf16")), latents=larger))
        assert torch.equal(flow_of(transformer), first)

    def test_another_prompt_is_seen(self, flow_of, conditioning):
        transformer = self.loaded(self.path("bf16"))
        first = flow_of(transformer)
        other = conditioning_of(conditioning.text[:37].flip(1))
        assert relative_error(flow_of(transformer, conditioning=other), first) > 0.01
        assert torch.equal(flow_of(transformer), first)

    def test_padding_rows_of_the_text_matter_and_are_seen(self, flow_of, conditioning):
        """Cross-attention sees all 512 rows: cutting the zero rows off gives another picture."""
        transformer = self.loaded(self.path("bf16"))
        cut = Conditioning(text=conditioning.text[:37], num_text=37)
        assert relative_error(flow_of(transformer, conditioning=cut), flow_of(transformer)) > 0.01

    def test_inputs_are_not_kept_or_changed(self, conditioning):
        transformer, latents = self.loaded(self.path("bf16")), normal(*self.shape, seed=4).to(self.device)
        before, text = latents.clone(), conditioning.text.clone()
        kept = weakref.ref(latents)
        transformer.predict_flow(latents, 937.5, conditioning, Hooks())
        assert torch.equal(latents, before)
        assert torch.equal(conditioning.text, text)
        del latents
        assert kept() is None

    @EVERY_MODE
    def test_weights_loaded_in_inference_mode_work_outside_of_it(self, mode, flow_of, resident_flow):
        self.check_inference_mode("fp8", mode, flow_of, resident_flow(self.path("fp8")))

    def check_inference_mode(self, precision, mode, flow_of, expected):
        """ComfyUI loads and samples in inference mode; a script may do one of the two outside."""
        with torch.inference_mode():
            transformer = self.loaded(self.path(precision), mode)
            assert torch.equal(flow_of(transformer), expected)
        assert torch.equal(flow_of(transformer), expected)

    # Loading and unloading

    def test_loading_again_does_nothing(self):
        transformer = self.unloaded(self.path("bf16"))
        start = Snapshot()
        transformer.load(Hooks())
        held, after = start.made_since(), Snapshot()
        assert tensors(held)
        transformer.load(Hooks())
        assert len(alive(held)) == len(held) and not after.made_since()

    @EVERY_MODE
    def test_unloaded_weights_load_again(self, mode, flows_of):
        transformer = self.loaded(self.path("fp8"), mode)
        first = flows_of(transformer)
        transformer.unload()
        transformer.unload()
        transformer.load(Hooks())
        assert torch.equal(flows_of(transformer), first)

    # Cancel

    @EVERY_MODE
    def test_a_cancel_passes_before_every_unit_and_the_next_pass_is_right(self, mode, flow_of, resident_flow):
        expected = resident_flow(self.path("bf16"))
        transformer = self.loaded(self.path("bf16"), mode)
        for checks in range(self.num_units(mode)):
            with pytest.raises(CancelledError):
                flow_of(transformer, hooks=Hooks(check_interrupt=CancelAfter(checks, CancelledError)))
        assert torch.equal(flow_of(transformer), expected)
        for checks in range(self.num_units(mode)):
            with pytest.raises(Cancelled):
                flow_of(transformer, hooks=Hooks(check_interrupt=CancelAfter(checks)))
            assert torch.equal(flow_of(transformer), expected)

    @pytest.mark.slow
    @EVERY_MODE
    def test_a_cancel_while_loading_leaves_an_object_that_loads_again(self, mode, flow_of, resident_flow):
        transformer = self.unloaded(self.path("fp8"), mode)
        # In mode disk only what is in no block is loaded.
        for checks in range(1 if mode == "disk" else 2):
            for error in (Cancelled, CancelledError):
                with pytest.raises(error):
                    transformer.load(Hooks(check_interrupt=CancelAfter(checks, error)))
        transformer.load(Hooks())
        assert torch.equal(flow_of(transformer), resident_flow(self.path("fp8")))


class CpuContract(TransformerContract):
    """What can be seen on a CPU, where weights are mapped from their files."""

    @EVERY_MODE
    @EVERY_PRECISION
    def test_weights_that_travel_give_the_same_bits(self, precision, mode, flows_of, resident_flows, monkeypatch):
        expected = resident_flows(self.path(precision))
        travel_as_on_a_gpu(monkeypatch)
        for resident_blocks in (0, 1):
            assert torch.equal(flows_of(self.loaded(self.path(precision), mode, resident_blocks)), expected)

    @EVERY_MODE
    def test_weights_that_travel_do_so_in_and_out_of_inference_mode(self, mode, flow_of, resident_flow, monkeypatch):
        expected = resident_flow(self.path("fp8"))
        travel_as_on_a_gpu(monkeypatch)
        self.check_inference_mode("fp8", mode, flow_of, expected)

    @EVERY_MODE
    def test_the_host_is_asked_before_every_unit(self, mode, flow_of):
        check = CancelAfter(self.num_units(mode))
        flow_of(self.loaded(self.path("bf16"), mode), hooks=Hooks(check_interrupt=check))
        assert check.calls == self.num_units(mode)

    @pytest.mark.slow
    @pytest.mark.parametrize(("leave", "travels"), [("unload", True), ("drop", False)], ids=["unload", "drop"])
    @EVERY_MODE
    def test_weights_go_at_once(self, mode, leave, travels, flow_of, monkeypatch):
        """Nothing waits for the garbage collector: neither tensors, nor objects of the engine or of LightX2V."""
        if travels:
            travel_as_on_a_gpu(monkeypatch)
        flow_of(self.loaded(self.path("fp8"), mode))  # what is kept for good is there
        gc.collect()
        without = Snapshot()
        transformer = self.unloaded(self.path("fp8"), mode)
        before = Snapshot()
        transformer.load(Hooks())
        flow_of(transformer)
        made = (before if leave == "unload" else without).made_since()
        assert num_bytes(tensors(made)) > transformer.describe()["weight_bytes"] / (20 if mode == "disk" else 1)
        monkeypatch.setattr(gc, "collect", lambda: 0)
        gc.disable()
        try:
            if leave == "unload":
                transformer.unload()
            else:
                del transformer
            assert not alive(made)
        finally:
            gc.enable()

    @needs_proc
    @EVERY_MODE
    def test_unload_unmaps_the_files(self, mode, flow_of):
        transformer = self.loaded(self.path("fp8"), mode)
        flow_of(transformer)
        assert mapped_below(self.path("fp8"))
        transformer.unload()
        assert not mapped_below(self.path("fp8"))

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", ["none", "block", "phase"])
    def test_what_only_a_pass_needs_can_be_given_back(self, mode, flow_of):
        transformer = self.unloaded(self.path("fp8"), mode)
        before = Snapshot()
        transformer.load(Hooks())
        transformer.release_workspace()
        weights, start = before.made_since(), Snapshot()
        addresses = [weight.data_ptr() for weight in tensors(weights)]
        first = flow_of(transformer)
        made = [ref for ref in start.made_since() if ref() is not first]
        # At least the angles of rotary embedding, for 60 tokens and the 64 pairs of a head.
        assert num_bytes(tensors(made)) >= 60 * 64 * 8
        transformer.release_workspace()
        # LightX2V keeps the lengths of its sequences, two numbers each.
        assert num_bytes(tensors(made)) < 100
        assert [weight.data_ptr() for weight in tensors(weights)] == addresses
        assert torch.equal(flow_of(transformer), first)
        transformer.unload()
        transformer.release_workspace()

    # Checkpoints

    @EVERY_PRECISION
    @pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model."])
    def test_prefixes_change_nothing(self, precision, prefix, flow_of, resident_flow):
        prefixed = self.loaded(checkpoints.single_file(precision, prefix=prefix))
        assert torch.equal(flow_of(prefixed), resident_flow(checkpoints.single_file(precision)))

    @pytest.mark.parametrize("precision", ["fp8", "int8"])
    def test_eight_bit_weights_are_used_with_their_scales(self, precision, resident_flow):
        """Without the scales the result is noise: relative error 1 and more."""
        expected = resident_flow(self.path("bf16"))
        for path in (self.path(precision), checkpoints.single_file(precision)):
            assert relative_error(resident_flow(path), expected) < 0.1

    @pytest.mark.parametrize("has_marker", [True, False])
    @pytest.mark.parametrize("mode", ["none", "disk"])
    def test_comfyui_scaled_fp8_with_its_scalar_scales(self, has_marker, mode, flow_of, resident_flow):
        path = checkpoints.comfy_transformer(prefix="model.diffusion_model.", has_marker=has_marker)
        assert relative_error(flow_of(self.loaded(path, mode)), resident_flow(self.path("bf16"))) < 0.1


class GpuContract(TransformerContract):
    """What can be seen on a CUDA device. The model has the width and depth that let copies and compute overlap."""

    sizes = tiny.TinySizes(dim=512, ffn_dim=2048, num_layers=6)
    shape = (16, 5, 32, 32)  # 1280 tokens
    device = torch.device("cuda", 0)

    @pytest.fixture(autouse=True)
    def give_memory_back(self):
        yield
        gc.collect()
        torch.cuda.empty_cache()

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ATTENTIONS)
    @EVERY_PRECISION
    def test_every_mode_gives_the_same_bits_with_every_attention(self, precision, name, flow_of):
        """LightX2V's own block and phase offload give NaN with sage_attn2."""
        attention_or_skip(name, self.device)
        flows = []
        for mode in MODES:
            for resident_blocks in (0, 2):
                transformer = self.loaded(self.path(precision), mode, resident_blocks, attention=name)
                flows += [flow_of(transformer), flow_of(transformer)]
                transformer.unload()
        assert flows[0].isfinite().all()
        assert all(torch.equal(flow, flows[0]) for flow in flows)

    @pytest.mark.parametrize("mode", MODES[1:])
    @pytest.mark.parametrize("slow", ["compute", "copies"])
    def test_streaming_has_no_race(self, mode, slow, flow_of, resident_flow, monkeypatch):
        """Make one side much slower than the other: a missing wait shows as wrong weights."""
        expected, hooks = resident_flow(self.path("bf16")), Hooks()
        if slow == "compute":
            hooks = Hooks(check_interrupt=sleep_before_units(SHORT_SLEEP))
        else:
            delay_copies(monkeypatch, SHORT_SLEEP)
        transformer = self.loaded(self.path("bf16"), mode)
        for _ in range(2):
            assert torch.equal(flow_of(transformer, hooks=hooks), expected)

    @EVERY_MODE
    def test_cancel_stops_within_one_block(self, mode, flow_of):
        transformer = self.loaded(self.path("bf16"), mode)
        expected = flow_of(transformer)
        start = time.perf_counter()
        flow_of(transformer, hooks=Hooks(check_interrupt=sleep_before_units(LONG_SLEEP)))
        block_seconds = (time.perf_counter() - start) / self.sizes.num_layers
        cancel = CancelAfter(9 if mode == "phase" else 3)
        with pytest.raises(Cancelled):
            flow_of(transformer, hooks=Hooks(check_interrupt=sleep_before_units(LONG_SLEEP, cancel)))
        start = time.perf_counter()
        torch.cuda.synchronize()
        assert time.perf_counter() - start < 1.5 * block_seconds
        assert torch.equal(flow_of(transformer), expected)

    @pytest.mark.slow
    @EVERY_MODE
    def test_unload_gives_all_memory_back_at_once(self, mode, flow_of):
        warm = self.loaded(self.path("fp8"))
        flow_of(warm)  # libraries take their workspaces, which stay
        warm.unload()
        before = torch.cuda.memory_allocated()
        gc.disable()
        try:
            transformer = self.loaded(self.path("fp8"), mode)
            first = flow_of(transformer)
            assert torch.cuda.memory_allocated() > before
            transformer.unload()
            assert torch.cuda.memory_allocated() == before
            transformer.load(Hooks())
            assert torch.equal(flow_of(transformer), first)
            transformer.unload()
            assert torch.cuda.memory_allocated() == before
        finally:
            gc.enable()

    def test_phases_hold_less_than_blocks_and_blocks_less_than_all(self, flow_of):
        peaks = []
        for mode in ("none", "block", "phase"):
            transformer = self.loaded(self.path("bf16"), mode, attention="sdpa")
            peaks.append(peak_of(flow_of, transformer))
            transformer.unload()
            del transformer
        assert peaks[0] > peaks[1] > peaks[2]

    def test_without_page_locked_memory_the_result_is_the_same(self, flow_of):
        before = locked_bytes()
        transformer = self.loaded(self.path("fp8"), "block", pinned_limit_bytes=0)
        assert locked_bytes() == before
        assert torch.equal(flow_of(transformer), flow_of(self.loaded(self.path("fp8"))))
