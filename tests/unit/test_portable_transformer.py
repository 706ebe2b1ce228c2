"""The portable transformer on tiny checkpoints, against diffusers' own model with diffusers' own conversion."""

import gc
import logging
import weakref
from pathlib import Path

import pytest
import torch
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.errors import UnsupportedHardwareError
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.memory.plan import Placement
from lightx2v_pack.engine.offload import streamer as conveyor
from lightx2v_pack.engine.settings import EngineSettings
from lightx2v_pack.engine.wan import kernels
from lightx2v_pack.engine.wan.transformer import PortableTransformer
from safetensors.torch import load_file, save_file
from support.checkpoints import comfy_transformer, repository, single_file, transformer_weights
from support.wan_reference import dequantised, reference_flow, relative_error

SHAPE = (16, 3, 8, 10)
MODES = ("none", "block", "phase", "disk")
CPU = torch.device("cpu")
# Flow of unit variance, relative L2. BF16 activations against fp32 throughout: 0.005 on this two-block model,
# whatever the weights are stored in, as 8-bit weights are compared with the same weights dequantised. (Rounding
# the timestep 937.5 to 937 would be 0.07.)
BF16_TOLERANCE = 0.01
# The same with activations quantised per token by the 8-bit kernels: 0.010 and 0.006.
KERNEL_TOLERANCE = {"scaled_mm": 0.02, "int_mm": 0.012}


class Cancelled(BaseException):
    """Stands for the host's interrupt."""


def path_of(precision: str) -> Path:
    folder = {"bf16": "distill_models/distill_model.safetensors", "fp8": "distill_fp8", "int8": "distill_int8"}
    return repository() / folder[precision]


def unloaded(path: Path, mode: str = "none", resident_blocks: int = 0, **settings) -> PortableTransformer:
    placement = Placement(mode=mode, resident_blocks=resident_blocks)
    return PortableTransformer(resolve_transformer(path), EngineSettings(**settings), placement, device=CPU)


def make(path: Path, mode: str = "none", resident_blocks: int = 0, **settings) -> PortableTransformer:
    transformer = unloaded(path, mode, resident_blocks, **settings)
    transformer.load(SHAPE, Hooks())
    return transformer


def inputs(shape=SHAPE):
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn(shape, generator=generator)
    context = torch.randn(512, 64, generator=generator)
    context[21:] = 0
    return latents, context


def flow_of(transformer, timestep=937.5, shape=SHAPE, hooks=None):
    latents, context = inputs(shape)
    return transformer.predict_flow(latents, timestep, context, hooks or Hooks())


def expected_flow(weights, timestep=937.5, shape=SHAPE):
    latents, context = inputs(shape)
    return reference_flow(weights, latents, timestep, context)


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize("timestep", [1000.0, 937.5, 625.0])
def test_agrees_with_diffusers_in_float32(precision, timestep):
    weights = dequantised(path_of(precision))
    flow = flow_of(make(path_of(precision)), timestep)
    assert relative_error(flow, expected_flow(weights, timestep)) < BF16_TOLERANCE


@pytest.mark.parametrize(("precision", "kernel"), [("fp8", "scaled_mm"), ("int8", "int_mm")])
def test_eight_bit_kernels_agree_with_dequantised_weights(precision, kernel, monkeypatch):
    """The kernels of CUDA cards, where torch has them on the CPU too."""
    monkeypatch.setattr(kernels, "select_matmul", lambda *_, **__: kernel)
    transformer = make(path_of(precision))
    try:
        flow_of(transformer)
    except RuntimeError as error:
        pytest.skip(f"this torch has no {kernel} on the CPU: {error}")
    assert transformer.describe()["matmul"] == kernel
    error = relative_error(flow_of(transformer), expected_flow(dequantised(path_of(precision))))
    assert error < KERNEL_TOLERANCE[kernel]


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_eight_bit_agrees_with_bf16_on_dequantised_weights(precision, tmp_path):
    file = tmp_path / "dequantised.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in dequantised(path_of(precision)).items()}, file)
    assert relative_error(flow_of(make(path_of(precision))), flow_of(make(file))) < BF16_TOLERANCE


def test_scalar_scales_are_applied():
    """ComfyUI's scaled FP8: one scale a tensor, named differently."""
    path = comfy_transformer()
    stored = load_file(path)
    weights = {name: tensor.float() for name, tensor in stored.items() if not name.endswith(("scale_weight", "_fp8"))}
    for name, scale in stored.items():
        if name.endswith(".scale_weight"):
            weights[name.replace("scale_weight", "weight")] *= scale
    assert relative_error(flow_of(make(path)), expected_flow(weights)) < BF16_TOLERANCE


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model."])
def test_prefixes_change_nothing(prefix):
    assert torch.equal(flow_of(make(single_file("fp8", prefix=prefix))), flow_of(make(single_file("fp8"))))


def test_a_folder_of_blocks_and_a_single_file_are_the_same():
    """The weights are; the order of fp32 sums on a CPU depends on where a mapped tensor begins."""
    folder, single = make(path_of("int8")), make(single_file("int8"))
    assert relative_error(flow_of(folder), flow_of(single)) < 0.001
    found, wanted = tensors_of(folder), tensors_of(single)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_wider_files_are_cast_once(dtype, tmp_path):
    """The tiny weights fit BF16; only the order of fp32 sums depends on where a mapped tensor begins."""
    file = tmp_path / "wide.safetensors"
    weights = {name: tensor.clamp(-60000, 60000) for name, tensor in transformer_weights().items()}
    save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, file)
    transformer = make(file)
    limit = 0.001 if dtype == torch.float32 else BF16_TOLERANCE
    assert relative_error(flow_of(transformer), flow_of(make(path_of("bf16")))) < limit
    assert dtype_of(transformer, "blocks.0.self_attn.q.weight") == torch.bfloat16


def tensors_of(transformer) -> dict[str, torch.Tensor]:
    """Return everything that a loaded transformer computes with, under native names."""
    tensors = dict(transformer._loaded.weights)
    conveyor = transformer._loaded.blocks.conveyor
    for index in range(2):
        with conveyor.unit(index) as unit:
            tensors |= {f"blocks.{index}.{name}": tensor for name, tensor in unit.items()}
    return tensors


def dtype_of(transformer, name):
    return tensors_of(transformer)[name].dtype


def test_precision_of_each_part():
    transformer = make(path_of("fp8"))
    assert dtype_of(transformer, "blocks.1.ffn.2.weight") == torch.float8_e4m3fn
    assert dtype_of(transformer, "blocks.1.ffn.2.weight_scale") == torch.float32
    assert dtype_of(transformer, "blocks.1.modulation") == torch.float32
    assert dtype_of(transformer, "blocks.1.norm3.weight") == torch.float32
    assert dtype_of(transformer, "head.modulation") == torch.float32
    assert dtype_of(transformer, "time_embedding.0.weight") == torch.float32
    assert dtype_of(transformer, "time_projection.1.weight") == torch.bfloat16
    assert dtype_of(transformer, "blocks.0.self_attn.norm_q.weight") == torch.bfloat16
    assert set(tensors_of(make(single_file("bf16")))) == set(transformer_weights())


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize("mode", MODES)
def test_every_placement_gives_the_same_bits(precision, mode, monkeypatch):
    expected = flow_of(make(path_of(precision)))
    for resident_blocks in (0, 1, 2):
        assert torch.equal(flow_of(make(path_of(precision), mode, resident_blocks)), expected)
    # Through RAM and buffers as on a GPU; on a CPU weights are mapped from the file.
    monkeypatch.setattr(conveyor, "map_units", conveyor.bring_units)
    streamed = make(path_of(precision), mode, 1)
    assert torch.equal(flow_of(streamed), expected)
    assert torch.equal(flow_of(streamed), expected)


def test_the_same_call_gives_the_same_bits():
    transformer = make(path_of("fp8"))
    assert torch.equal(flow_of(transformer), flow_of(transformer))


@pytest.mark.parametrize("shape", [(16, 1, 2, 2), (16, 2, 6, 4), (16, 5, 4, 12)], ids=str)
def test_any_size_of_latents(shape):
    flow = flow_of(make(path_of("bf16")), shape=shape)
    reference = expected_flow(dequantised(path_of("bf16")), shape=shape)
    assert flow.shape == shape
    assert flow.dtype == torch.float32
    assert relative_error(flow, reference) < BF16_TOLERANCE


def test_inputs_are_left_alone():
    latents, context = inputs()
    before = latents.clone(), context.clone()
    make(path_of("bf16")).predict_flow(latents, 500.0, context, Hooks())
    assert torch.equal(latents, before[0])
    assert torch.equal(context, before[1])


@pytest.mark.parametrize("mode", MODES)
def test_cancel_inside_a_pass_leaves_a_usable_object(mode):
    transformer = make(path_of("bf16"), mode)
    whole = flow_of(transformer)
    asked = []
    flow_of(transformer, hooks=Hooks(check_interrupt=lambda: asked.append(1)))
    assert len(asked) == (6 if mode == "phase" else 2)
    for stop_at in range(len(asked)):
        calls = iter(range(len(asked)))

        def check(calls=calls, stop_at=stop_at):
            if next(calls) == stop_at:
                raise Cancelled

        with pytest.raises(Cancelled):
            flow_of(transformer, hooks=Hooks(check_interrupt=check))
        assert torch.equal(flow_of(transformer), whole)


def test_cancel_while_loading_leaves_a_loadable_object():
    transformer = unloaded(path_of("fp8"))

    def cancel():
        raise Cancelled

    with pytest.raises(Cancelled):
        transformer.load(SHAPE, Hooks(check_interrupt=cancel))
    transformer.load(SHAPE, Hooks())
    assert torch.equal(flow_of(transformer), flow_of(make(path_of("fp8"))))


def mapped_files():
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [(*(int(part, 16) for part in line.split()[0].split("-")), line.split(maxsplit=5)[-1]) for line in lines]


needs_proc = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc/self/maps (Linux)")


@needs_proc
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_weights_are_mapped_from_the_file_not_copied(precision):
    transformer = make(path_of(precision))
    weight = tensors_of(transformer)["blocks.1.self_attn.q.weight"]
    (owner,) = [path for start, end, path in mapped_files() if start <= weight.data_ptr() < end]
    assert Path(owner).parent == (path_of(precision) if precision == "fp8" else path_of(precision).parent)


def test_loading_again_does_nothing():
    transformer = make(path_of("bf16"))
    before = {name: tensor.data_ptr() for name, tensor in tensors_of(transformer).items()}
    transformer.load((16, 1, 2, 2), Hooks())
    assert {name: tensor.data_ptr() for name, tensor in tensors_of(transformer).items()} == before


@needs_proc
@pytest.mark.parametrize("mode", ["none", "disk"])
def test_unload_gives_everything_back_and_load_works_again(mode):
    transformer = make(path_of("fp8"), mode)
    whole = flow_of(transformer)
    refs = [weakref.ref(transformer._loaded.blocks), weakref.ref(transformer._loaded.blocks.workspace(60))]
    refs += [weakref.ref(tensor) for tensor in tensors_of(transformer).values()]
    transformer.unload()
    gc.collect()
    assert not [ref for ref in refs if ref() is not None]
    assert not [path for _, _, path in mapped_files() if path.startswith(str(path_of("fp8")))]
    transformer.unload()
    transformer.load(SHAPE, Hooks())
    assert torch.equal(flow_of(transformer), whole)


def test_rest_drops_what_a_pass_needs_and_keeps_the_weights():
    transformer = make(path_of("fp8"))
    transformer.rest()
    whole = flow_of(transformer)
    blocks = transformer._loaded.blocks
    work, text = weakref.ref(blocks.workspace(60)), weakref.ref(blocks._text)
    pointers = {name: tensor.data_ptr() for name, tensor in tensors_of(transformer).items()}
    transformer.rest()
    assert (work(), text()) == (None, None)
    assert {name: tensor.data_ptr() for name, tensor in tensors_of(transformer).items()} == pointers
    assert torch.equal(flow_of(transformer), whole)
    transformer.unload()
    transformer.rest()


@needs_proc
def test_disk_mode_maps_nothing_between_steps():
    transformer = make(path_of("fp8"), "disk")
    flow_of(transformer)
    gc.collect()
    mapped = {Path(path).name for _, _, path in mapped_files() if path.startswith(str(path_of("fp8")))}
    assert not {name for name in mapped if name.startswith("block_")}


def test_weights_loaded_in_inference_mode_work_outside_of_it():
    """ComfyUI loads and samples in inference mode; a script may do one of the two outside."""
    with torch.inference_mode():
        transformer = make(path_of("fp8"))
        inside = flow_of(transformer)
    assert torch.equal(flow_of(transformer), inside)


def test_describe_says_what_runs():
    transformer = unloaded(path_of("fp8"), "block", 1)
    assert transformer.describe()["attention"] == "auto"
    transformer.load(SHAPE, Hooks())
    facts = transformer.describe()
    expected = {"engine": "portable", "precision": "fp8", "attention": "sdpa", "matmul": "dequantize"}
    expected |= {"offload": "block", "resident_blocks": 1, "compile": False, "ops": "torch", "device": "cpu"}
    assert facts | expected == facts
    assert facts["weight_bytes"] == sum(tensor.nbytes for tensor in tensors_of(transformer).values())
    assert facts["moved_bytes"] == 0


def test_auto_says_in_one_line_what_it_took(caplog):
    with caplog.at_level(logging.INFO):
        make(path_of("int8"))
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if "attention: sdpa (not sage_attn2" in line]) == 1
    assert len([line for line in lines if "int8 matmul: dequantize (not int_mm" in line]) == 1


def test_a_named_attention_back_end_is_never_replaced_silently():
    with pytest.raises(UnsupportedHardwareError, match=r"'sage_attn2' was chosen.*no CUDA device"):
        make(path_of("bf16"), attention="sage_attn2")
