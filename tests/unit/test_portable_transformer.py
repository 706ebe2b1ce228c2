"""The portable transformer on tiny checkpoints, against diffusers' own model with diffusers' own conversion."""

import gc
import logging
import weakref
from pathlib import Path

import pytest
import torch
from checkpoints import comfy_transformer, repository, single_file, transformer_weights
from lightx2v_pack.engine.adapters.kernels import matmul
from lightx2v_pack.engine.adapters.portable import transformer as portable
from lightx2v_pack.engine.adapters.portable.transformer import PortableTransformer, native_name
from lightx2v_pack.engine.errors import MissingDependencyError, UnsupportedHardwareError
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.logic.checkpoint_files import resolve_transformer
from lightx2v_pack.engine.settings import EngineSettings
from safetensors.torch import load_file, save_file

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


def make(path: Path, mode: str = "none", **settings) -> PortableTransformer:
    transformer = PortableTransformer(resolve_transformer(path), EngineSettings(**settings), mode, device=CPU)
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


def dequantised(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a folder or file in float32, scales applied, under native names."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    stored = {name: tensor for file in files for name, tensor in load_file(file).items()}
    scales = {name: tensor.float() for name, tensor in stored.items() if name.endswith("weight_scale")}
    plain = {name: tensor.float() for name, tensor in stored.items() if name not in scales}
    for name, scale in scales.items():
        plain[name.removesuffix("_scale")] *= scale
    return plain


def reference_flow(weights, timestep, shape=SHAPE):
    """Return the flow of diffusers' model in float32, filled through diffusers' own conversion of Wan files."""
    from diffusers import WanTransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=128, text_dim=64, freq_dim=256, ffn_dim=512, num_layers=2
    )
    model.load_state_dict(convert_wan_transformer_to_diffusers(dict(weights)))
    latents, context = inputs(shape)
    with torch.no_grad():
        return model(latents[None], torch.tensor([timestep]), context[None], return_dict=False)[0][0]


def relative_error(found, reference):
    return float((found - reference).norm() / reference.norm())


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize("timestep", [1000.0, 937.5, 625.0])
def test_agrees_with_diffusers_in_float32(precision, timestep):
    weights = dequantised(path_of(precision))
    flow = flow_of(make(path_of(precision)), timestep)
    assert relative_error(flow, reference_flow(weights, timestep)) < BF16_TOLERANCE


@pytest.mark.parametrize(("precision", "kernel"), [("fp8", "scaled_mm"), ("int8", "int_mm")])
def test_eight_bit_kernels_agree_with_dequantised_weights(precision, kernel, monkeypatch):
    """The kernels of CUDA cards, where torch has them on the CPU too."""
    trial = {"fp8": matmul._fp8_trial, "int8": matmul._int8_trial}[precision]
    try:
        trial(matmul._KERNELS[kernel], CPU)
    except RuntimeError as error:
        pytest.skip(f"this torch has no {kernel} on the CPU: {error}")
    monkeypatch.setattr(portable, "select_matmul", lambda *_: kernel)
    transformer = make(path_of(precision))
    assert transformer.describe()["matmul"] == kernel
    error = relative_error(flow_of(transformer), reference_flow(dequantised(path_of(precision)), 937.5))
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
    assert relative_error(flow_of(make(path)), reference_flow(weights, 937.5)) < BF16_TOLERANCE


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model."])
def test_prefixes_change_nothing(prefix):
    assert torch.equal(flow_of(make(single_file("fp8", prefix=prefix))), flow_of(make(single_file("fp8"))))


def test_a_folder_of_blocks_and_a_single_file_are_the_same():
    assert torch.equal(flow_of(make(path_of("int8"))), flow_of(make(single_file("int8"))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_wider_files_are_cast_once(dtype, tmp_path):
    """The tiny weights fit BF16, so that the file's dtype must not matter at all (float16 loses a few bits of none)."""
    file = tmp_path / "wide.safetensors"
    weights = {name: tensor.clamp(-60000, 60000) for name, tensor in transformer_weights().items()}
    save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, file)
    transformer = make(file)
    limit = 0 if dtype == torch.float32 else BF16_TOLERANCE
    assert relative_error(flow_of(transformer), flow_of(make(path_of("bf16")))) <= limit
    assert dtype_of(transformer, "blocks.0.inner.attn1.to_q.weight") == torch.bfloat16


def dtype_of(transformer, name):
    return dict(transformer._loaded.model.named_parameters())[name].dtype


def test_precision_of_each_part():
    transformer = make(path_of("fp8"))
    assert dtype_of(transformer, "blocks.1.inner.ffn.net.2.weight") == torch.float8_e4m3fn
    assert dtype_of(transformer, "blocks.1.inner.ffn.net.2.weight_scale") == torch.float32
    assert dtype_of(transformer, "blocks.1.inner.scale_shift_table") == torch.float32
    assert dtype_of(transformer, "blocks.1.inner.norm2.weight") == torch.float32
    assert dtype_of(transformer, "condition_embedder.time_embedder.linear_1.weight") == torch.float32
    assert dtype_of(transformer, "condition_embedder.time_proj.weight") == torch.bfloat16
    assert dtype_of(transformer, "blocks.0.inner.attn1.norm_q.weight") == torch.bfloat16


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_every_offload_mode_gives_the_same_bits(precision):
    flows = [flow_of(make(path_of(precision), mode)) for mode in MODES]
    assert all(torch.equal(flow, flows[0]) for flow in flows)


def test_the_same_call_gives_the_same_bits():
    transformer = make(path_of("fp8"))
    assert torch.equal(flow_of(transformer), flow_of(transformer))


@pytest.mark.parametrize("shape", [(16, 1, 2, 2), (16, 2, 6, 4), (16, 5, 4, 12)], ids=str)
def test_any_size_of_latents(shape):
    flow = flow_of(make(path_of("bf16")), shape=shape)
    reference = reference_flow(dequantised(path_of("bf16")), 937.5, shape)
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
    transformer = PortableTransformer(resolve_transformer(path_of("fp8")), EngineSettings(), "none", device=CPU)

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
    parameters = dict(transformer._loaded.model.named_parameters())
    weight = parameters["blocks.1.inner.attn1.to_q.weight"]
    (owner,) = [path for start, end, path in mapped_files() if start <= weight.data_ptr() < end]
    assert Path(owner).parent == (path_of(precision) if precision == "fp8" else path_of(precision).parent)


def test_loading_again_does_nothing():
    transformer = make(path_of("bf16"))
    before = {name: tensor.data_ptr() for name, tensor in transformer._loaded.model.named_parameters()}
    transformer.load((16, 1, 2, 2), Hooks())
    assert {name: tensor.data_ptr() for name, tensor in transformer._loaded.model.named_parameters()} == before


@needs_proc
@pytest.mark.parametrize("mode", ["none", "disk"])
def test_unload_gives_everything_back_and_load_works_again(mode):
    transformer = make(path_of("fp8"), mode)
    whole = flow_of(transformer)
    refs = [weakref.ref(module) for module in transformer._loaded.model.modules()]
    refs += [weakref.ref(parameter) for parameter in transformer._loaded.model.parameters()]
    transformer.unload()
    gc.collect()
    assert not [ref for ref in refs if ref() is not None]
    assert not [path for _, _, path in mapped_files() if path.startswith(str(path_of("fp8")))]
    transformer.unload()
    transformer.load(SHAPE, Hooks())
    assert torch.equal(flow_of(transformer), whole)


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
    transformer = PortableTransformer(resolve_transformer(path_of("fp8")), EngineSettings(), "block", device=CPU)
    assert transformer.describe()["attention"] == "auto"
    transformer.load(SHAPE, Hooks())
    facts = transformer.describe()
    expected = {"engine": "portable", "precision": "fp8", "attention": "sdpa", "matmul": "dequantize"}
    expected |= {"offload": "block", "compile": False, "device": "cpu"}
    assert facts | expected == facts
    assert facts["weight_bytes"] == sum(tensor.nbytes for tensor in transformer._loaded.model.parameters())


def test_auto_says_in_one_line_what_it_took(caplog):
    with caplog.at_level(logging.INFO):
        make(path_of("int8"))
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if "attention: sdpa (not sage_attn2" in line]) == 1
    assert len([line for line in lines if "int8 matmul: dequantize (not int_mm" in line]) == 1


def test_a_named_attention_back_end_is_never_replaced_silently():
    with pytest.raises(UnsupportedHardwareError, match=r"'sage_attn2' was chosen.*no CUDA device"):
        make(path_of("bf16"), attention="sage_attn2")


def test_compile_without_a_compiler_says_so(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependencyError, match=r"no C\+\+ compiler.*g\+\+.*'auto'"):
        make(path_of("bf16"), compile="on")


def test_names_map_one_to_one():
    transformer = make(single_file("bf16"))
    names = [name.replace(".inner", "") for name, _ in transformer._loaded.model.named_parameters()]
    assert {native_name(name) for name in names} == set(transformer_weights())
    assert len(names) == len(transformer_weights())
    assert native_name("blocks.12.attn2.to_out.0.weight_scale", "scale_weight") == "blocks.12.cross_attn.o.scale_weight"


def test_cross_attention_uses_sdpa(monkeypatch):
    """512 keys are too few for any other back end to pay."""
    calls = []

    def counted(q, k, v):
        calls.append(k.shape[1])
        return portable.sdpa(q, k, v)

    monkeypatch.setattr(portable, "select_attention", lambda *_: ("counted", counted))
    flow_of(make(path_of("bf16")))
    assert calls == [60, 60]
