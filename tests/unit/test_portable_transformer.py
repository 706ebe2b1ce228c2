"""The pack's own transformer on tiny checkpoints: the contract, and diffusers' model with diffusers' own conversion."""

import gc
import logging
import shutil
from functools import cache

import pytest
import torch
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.errors import UnsupportedHardwareError
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.kernels.requantize import requantize
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.settings import EngineSettings
from safetensors.torch import load_file, save_file
from support.checkpoints import comfy_transformer, distilled, single_file, transformer_weights
from support.contract_of_a_transformer import CpuContract, travel_as_on_a_gpu
from support.engine import conditioning_of, open_transformer
from support.mapped_files import file_of, mapped_below, needs_proc
from support.tensors import normal, relative_error
from support.wan_reference import dequantized, reference_flow

SHAPE = (16, 3, 8, 10)
# Flow of unit variance, relative L2. BF16 activations against fp32 throughout: 0.005 on this two-block model,
# whatever the weights are stored in, as 8-bit weights are compared with the same weights dequantized. (Rounding
# the timestep 937.5 to 937 would be 0.07.)
BF16_TOLERANCE = 0.01
# The same with activations quantized per token by the 8-bit kernels: 0.010 and 0.006.
KERNEL_TOLERANCE = {"scaled_mm": 0.02, "int_mm": 0.012}
CONDITIONING = conditioning_of(normal(21, 64, seed=7))


class TestContract(CpuContract):
    engine = "portable"


def unloaded(path, placement=None, matmul=None, **settings):
    return open_transformer(resolve_transformer(path), EngineSettings(**settings), placement, matmul=matmul)


def make(path, placement=None, **options):
    transformer = unloaded(path, placement, **options)
    transformer.load(Hooks())
    return transformer


def flow_of(transformer, timestep=937.5, shape=SHAPE):
    return transformer.predict_flow(normal(*shape, seed=6), timestep, CONDITIONING, Hooks())


def expected_flow(weights, timestep=937.5, shape=SHAPE):
    return reference_flow(weights, normal(*shape, seed=6), timestep, CONDITIONING.text)


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize("timestep", [1000.0, 937.5, 625.0])
def test_agrees_with_diffusers_in_float32(precision, timestep):
    weights = dequantized(distilled(precision))
    flow = flow_of(make(distilled(precision)), timestep)
    assert relative_error(flow, expected_flow(weights, timestep)) < BF16_TOLERANCE


@pytest.mark.parametrize(("precision", "kernel"), [("fp8", "scaled_mm"), ("int8", "int_mm")])
def test_eight_bit_kernels_agree_with_dequantized_weights(precision, kernel):
    """The kernels of CUDA cards, where torch has them on the CPU too."""
    transformer = make(distilled(precision), matmul=kernel)
    try:
        flow = flow_of(transformer)
    except RuntimeError as error:
        pytest.skip(f"this torch has no {kernel} on the CPU: {error}")
    assert transformer.describe()["matmul"] == kernel
    assert relative_error(flow, expected_flow(dequantized(distilled(precision)))) < KERNEL_TOLERANCE[kernel]


# Cards without FP8: an FP8 file computes in INT8


def requantized(weights):
    """Return fp32 weights as what an FP8 file of them becomes."""
    changed = dict(weights)
    for name, stored in load_all(distilled("fp8")).items():
        if stored.dtype == torch.float8_e4m3fn:
            scale = load_all(distilled("fp8"))[f"{name}_scale"].float().clone()
            changed[name] = requantize(stored.clone(), scale).float() * scale
    return changed


@cache
def load_all(folder):
    """Return copies of what is in a folder; nothing stays mapped."""
    return {name: tensor.clone() for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def in_int8(path, mode="none", resident_blocks=0):
    return make(path, Placement(mode=mode, resident_blocks=resident_blocks), matmul="int_mm")


def test_an_fp8_file_computes_in_int8_with_its_weights_requantized():
    transformer = in_int8(distilled("fp8"))
    facts = transformer.describe()
    assert (facts["precision"], facts["compute"], facts["matmul"]) == ("fp8", "int8", "int_mm")
    assert dtype_of(transformer, "blocks.1.ffn.2.weight") == torch.int8
    expected = expected_flow(requantized(dequantized(distilled("fp8"))))
    assert relative_error(flow_of(transformer), expected) < KERNEL_TOLERANCE["int_mm"]


@pytest.mark.slow
@pytest.mark.parametrize("travels", [False, True], ids=["mapped", "travels"])
@pytest.mark.parametrize("path", [distilled, comfy_transformer], ids=["folder", "one scale a layer"])
def test_every_placement_requantizes_to_the_same_bits(path, travels, monkeypatch):
    path = path("fp8") if path is distilled else path()
    expected = flow_of(in_int8(path))
    if travels:
        travel_as_on_a_gpu(monkeypatch)
    for mode, resident_blocks in (("none", 0), ("block", 0), ("block", 1), ("phase", 0), ("disk", 0), ("disk", 1)):
        transformer = in_int8(path, mode, resident_blocks)
        # The second time what rests in RAM has been requantized, and comes so.
        assert all(torch.equal(flow_of(transformer), expected) for _ in range(2)), (mode, resident_blocks)
        transformer.unload()


def test_what_requantizing_costs():
    """Error of the flow to BF16's, of this tiny model: FP8 0.0113, INT8 0.0062, FP8 computed in INT8 0.0119."""
    exact = flow_of(make(distilled("bf16")))
    fp8 = relative_error(flow_of(make(distilled("fp8"))), exact)
    int8 = relative_error(flow_of(make(distilled("int8"), matmul="int_mm")), exact)
    both = relative_error(flow_of(in_int8(distilled("fp8"))), exact)
    assert int8 < fp8 <= both < 1.2 * fp8


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_eight_bit_agrees_with_bf16_on_dequantized_weights(precision, tmp_path):
    file = tmp_path / "dequantized.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in dequantized(distilled(precision)).items()}, file)
    assert relative_error(flow_of(make(distilled(precision))), flow_of(make(file))) < BF16_TOLERANCE


def test_scalar_scales_are_applied():
    """ComfyUI's scaled FP8: one scale a tensor, named differently."""
    path = comfy_transformer()
    stored = load_file(path)
    weights = {name: tensor.float() for name, tensor in stored.items() if not name.endswith(("scale_weight", "_fp8"))}
    for name, scale in stored.items():
        if name.endswith(".scale_weight"):
            weights[name.replace("scale_weight", "weight")] *= scale
    assert relative_error(flow_of(make(path)), expected_flow(weights)) < BF16_TOLERANCE


def test_a_folder_of_blocks_and_a_single_file_are_the_same():
    """The weights are; the order of fp32 sums on a CPU depends on where a mapped tensor begins."""
    folder, single = make(distilled("int8")), make(single_file("int8"))
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
    assert relative_error(flow_of(transformer), flow_of(make(distilled("bf16")))) < limit
    assert dtype_of(transformer, "blocks.0.self_attn.q.weight") == torch.bfloat16


def tensors_of(transformer) -> dict[str, torch.Tensor]:
    """Return everything that a loaded transformer computes with, under native names."""
    tensors = dict(transformer._loaded.weights)
    conveyor = transformer._loaded.blocks.streamer
    for index in range(2):
        with conveyor.unit(index) as unit:
            tensors |= {f"blocks.{index}.{name}": tensor for name, tensor in unit.items()}
    return tensors


def dtype_of(transformer, name):
    return tensors_of(transformer)[name].dtype


def test_precision_of_each_part():
    transformer = make(distilled("fp8"))
    assert dtype_of(transformer, "blocks.1.ffn.2.weight") == torch.float8_e4m3fn
    assert dtype_of(transformer, "blocks.1.ffn.2.weight_scale") == torch.float32
    assert dtype_of(transformer, "blocks.1.modulation") == torch.float32
    assert dtype_of(transformer, "blocks.1.norm3.weight") == torch.float32
    assert dtype_of(transformer, "head.modulation") == torch.float32
    assert dtype_of(transformer, "time_embedding.0.weight") == torch.float32
    assert dtype_of(transformer, "time_projection.1.weight") == torch.bfloat16
    assert dtype_of(transformer, "blocks.0.self_attn.norm_q.weight") == torch.bfloat16
    assert set(tensors_of(make(single_file("bf16")))) == set(transformer_weights())


@pytest.mark.parametrize("shape", [(16, 1, 2, 2), (16, 2, 6, 4), (16, 5, 4, 12)], ids=str)
def test_any_size_of_latents(shape):
    flow = flow_of(make(distilled("bf16")), shape=shape)
    reference = expected_flow(dequantized(distilled("bf16")), shape=shape)
    assert flow.shape == shape
    assert flow.dtype == torch.float32
    assert relative_error(flow, reference) < BF16_TOLERANCE


@needs_proc
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_weights_are_mapped_from_the_file_not_copied(precision):
    weight = tensors_of(make(distilled(precision)))["blocks.1.self_attn.q.weight"]
    path = distilled(precision)
    assert file_of(weight).parent == (path if precision == "fp8" else path.parent)


@needs_proc
def test_disk_mode_maps_nothing_between_steps(tmp_path):
    # Files of its own: another test's transformer may be alive.
    files = shutil.copytree(distilled("fp8"), tmp_path / "own")
    transformer = make(files, Placement(mode="disk"))
    flow_of(transformer)
    gc.collect()
    assert not [path for path in mapped_below(files) if path.name.startswith("block_")]


def test_describe_says_what_runs():
    transformer = unloaded(distilled("fp8"), Placement(mode="block", resident_blocks=1))
    transformer.load(Hooks())
    facts = transformer.describe()
    expected = {"engine": "portable", "precision": "fp8", "attention": "sdpa", "matmul": "dequantize"}
    expected |= {"offload": "block", "resident_blocks": 1, "compile": False, "ops": "torch", "device": "cpu"}
    assert facts | expected == facts
    assert facts["weight_bytes"] == sum(tensor.nbytes for tensor in tensors_of(transformer).values())
    assert facts["moved_bytes"] == transformer.moved_bytes == 0


def test_auto_says_in_one_line_what_it_took(caplog):
    with caplog.at_level(logging.INFO):
        make(distilled("int8"))
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if "attention: sdpa (not sage_attn2" in line]) == 1
    assert len([line for line in lines if "int8 matmul: dequantize (not int_" in line]) == 1


def test_a_named_attention_back_end_is_never_replaced_silently():
    with pytest.raises(UnsupportedHardwareError, match=r"'sage_attn2' was chosen.*no CUDA device"):
        make(distilled("bf16"), attention="sage_attn2")
