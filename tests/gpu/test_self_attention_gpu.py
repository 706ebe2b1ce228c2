"""Self-attention in place against fp32, against SageAttention's own preparation, and its memory."""

import pytest
import torch
from lightx2v_pack.engine.backends import trials
from lightx2v_pack.engine.backends.choose import Wanted
from lightx2v_pack.engine.backends.table import ATTENTION_BACKENDS, why_not
from lightx2v_pack.engine.kernels import attention, ops_torch
from lightx2v_pack.engine.kernels.attention import KERNELS, Normed
from lightx2v_pack.engine.kernels.launches import split_heads
from lightx2v_pack.engine.kernels.ops import Rotary
from lightx2v_pack.engine.wan.kernels import build_kernels
from support import tensors
from support.tensors import relative_error

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
pytest.importorskip("triton", reason="Triton is not installed")

DEVICE = torch.device("cuda")
EPS = 1e-6
ROWS = {row.name: row for row in ATTENTION_BACKENDS if row.in_place_on}
BACKEND = pytest.mark.parametrize("name", ROWS)
OWN = pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.package == "triton"])


def normal(*shape, seed=0):
    return tensors.uneven(*shape, seed=seed).to(DEVICE, torch.bfloat16)


def problem(tokens, heads):
    """Return q, k, v, the weights of the norms, their epsilon and the rotary; k has a mean of its own."""
    q, k, v = (normal(tokens, heads, 128, seed=seed) for seed in range(3))
    k += normal(1, heads, 128, seed=9) * 3
    weights = 1 + normal(2, heads * 128, seed=3) / 4
    angles = normal(tokens, 64, seed=4).float()
    return q, k, v, (weights[0], weights[1]), EPS, Rotary(angles.cos(), angles.sin())


def skip_without(name):
    machine = trials.find_machine(torch.device("cuda", torch.cuda.current_device()))
    problem = why_not(ROWS[name], machine, "bf16")
    if problem:
        pytest.skip(f"{name} {problem}")
    return machine


def in_place(name):
    if skip_without(name).capability not in ROWS[name].in_place_on:
        pytest.skip(f"{name} is not prepared in place on this card")
    chosen = trials.confirm(Wanted(precision="bf16", dim=512, ffn_dim=512, attention=name), DEVICE)
    assert chosen.as_facts()["attention_in_place"]
    kernels = build_kernels(chosen)

    def run(q, k, v, norms, eps, rotary):
        """Attend as a block does."""
        chosen_attention = kernels.attention_for(q)
        assert chosen_attention.inner is attention.IN_PLACE[name]
        return chosen_attention(q, k, v, norms, eps, rotary)

    return run


def wide_sdpa(q, k, v):
    return attention.sdpa(q.float(), k.float(), v.float())


@BACKEND
@pytest.mark.parametrize("tokens", [300, 1024, 5000])
def test_as_accurate_as_sage_itself(name, tokens):
    run = in_place(name)
    pytest.importorskip("sageattention", reason="SageAttention, which is compared with, is not installed")
    wanted = Normed(ops_torch, wide_sdpa)(*problem(tokens, 4))
    theirs = relative_error(Normed(ops_torch, KERNELS["sage_attn2"])(*problem(tokens, 4)), wanted)
    assert relative_error(run(*problem(tokens, 4)), wanted) < 1.1 * theirs + 0.001


# Codes of 8 bits are 0.4 % of the largest of their group, FP8 weights 6 % of themselves and averaged over the keys.
@BACKEND
@pytest.mark.parametrize(("tokens", "heads"), [(1, 1), (63, 2), (64, 1), (128, 3), (129, 2), (1001, 12), (3000, 40)])
def test_close_to_fp32_whatever_the_size(name, tokens, heads):
    wanted = Normed(ops_torch, wide_sdpa)(*problem(tokens, heads))
    assert relative_error(in_place(name)(*problem(tokens, heads)), wanted) < 0.06


@BACKEND
@pytest.mark.parametrize("most", [1, 5])
def test_heads_in_several_launches_are_bit_for_bit_all_at_once(name, most):
    in_place(name)
    parts = attention.InParts(attention.IN_PLACE[name], lambda v: split_heads(v.shape[1], most))
    whole = attention.IN_PLACE[name](*problem(1001, 12))
    assert torch.equal(parts(*problem(1001, 12)), whole)


@pytest.mark.parametrize("name", ["sdpa", "sdpa_cudnn"])
def test_torchs_heads_in_several_launches_are_bit_for_bit_all_at_once(name):
    whole = Normed(ops_torch, KERNELS[name])
    parts = attention.InParts(whole, lambda v: split_heads(v.shape[1], 5))
    assert torch.equal(parts(*problem(3000, 12)), whole(*problem(3000, 12)))


@BACKEND
def test_scores_far_apart(name):
    # One key takes nearly all of the weight: what is far below the highest score is nothing, not noise.
    q, k, v, norms, eps, rotary = problem(700, 2)
    wide = (norms[0] * 4, norms[1] * 4)
    wanted = Normed(ops_torch, wide_sdpa)(q.clone(), k.clone(), v.clone(), wide, eps, rotary)
    plain = Normed(ops_torch, attention.sdpa)(q.clone(), k.clone(), v.clone(), wide, eps, rotary)
    out = in_place(name)(q, k, v, wide, eps, rotary)
    assert torch.isfinite(out).all()
    assert relative_error(out, wanted) < 0.15 + relative_error(plain, wanted)


@BACKEND
@pytest.mark.parametrize("tokens", [1, 65, 129, 257])
def test_scores_close_together(name, tokens):
    # All keys weigh about the same, so that one too many in the last block would show.
    q, k, v, norms, eps, rotary = problem(tokens, 2)
    small = (norms[0] / 16, norms[1] / 16)
    wanted = Normed(ops_torch, wide_sdpa)(q.clone(), k.clone(), v.clone(), small, eps, rotary)
    assert relative_error(in_place(name)(q, k, v, small, eps, rotary), wanted) < 0.06


@OWN
def test_on_copies_close_to_fp32_too(name):
    skip_without(name)
    q, k, v, norms, eps, rotary = problem(1000, 4)
    wanted = Normed(ops_torch, wide_sdpa)(q.clone(), k.clone(), v.clone(), norms, eps, rotary)
    before = v.clone()
    assert relative_error(Normed(ops_torch, KERNELS[name])(q, k, v, norms, eps, rotary), wanted) < 0.06
    assert torch.equal(v, before)


@OWN
def test_every_clip_of_a_batch_on_copies(name):
    skip_without(name)
    q, k, v = (torch.stack([normal(200, 2, 128, seed=seed + 10 * clip) for clip in range(2)]) for seed in range(3))
    assert relative_error(KERNELS[name](q, k, v), wide_sdpa(q, k, v)) < 0.06


@BACKEND
def test_it_needs_little_memory(name):
    run, inputs = in_place(name), problem(20_000, 8)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = run(*inputs)
    assert out.data_ptr() == inputs[2].data_ptr()
    assert torch.cuda.max_memory_allocated() - before < 1.2 * inputs[2].numel()
