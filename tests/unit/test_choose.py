"""The choice of kernels: one answer for forecast and run, whatever the machine; and every row has its function."""

import random
from dataclasses import replace

import pytest
import torch
from lightx2v_pack.engine.backends import trial_inputs, trials
from lightx2v_pack.engine.backends.choose import ATTENTION, BLOCKS, IN_PLACE, JOINED, OLDEST, Wanted, choose
from lightx2v_pack.engine.backends.table import (
    ATTENTION_BACKENDS,
    ATTENTION_CHOICES,
    BLOCK_BACKENDS,
    LIGHTX2V_BLOCKS,
    LIGHTX2V_MATMUL_BACKENDS,
    MATMUL_BACKENDS,
    Machine,
    why_not,
)
from lightx2v_pack.engine.constants import PRECISIONS
from lightx2v_pack.engine.errors import LightX2VError, UnsupportedHardwareError
from lightx2v_pack.engine.kernels import implementations, ops_torch
from lightx2v_pack.engine.kernels.attention import IN_PLACE as IN_PLACE_KERNELS
from lightx2v_pack.engine.kernels.attention import KERNELS, SelfAttention
from lightx2v_pack.engine.kernels.matmul import ACTIVATION_DTYPES, MATMULS
from lightx2v_pack.engine.kernels.ops import Ops
from lightx2v_pack.engine.kernels.vae_ops import TorchOps, VaeOps
from lightx2v_pack.engine.wan.kernels import build_kernels
from support.pretended_machine import pretend_machine

CPU = torch.device("cpu")
EIGHT_BIT = ("fp8", "int8")
CAPABILITIES = (None, (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0), (12, 1))
PACKAGES = sorted({*trials.OPTIONAL_PACKAGES, *trials.LIGHTX2V_PACKAGES})
VERSIONS = ("", "0.9", "1.0.6", "2.2.0", "3.6.0")
SIZES = (40, 256, 1536, 5120, 8960, 13_824, 20)
NUM_CASES = 1000
REFERENCES = {"torch", "sdpa", "dequantize"}


# Random machines


def matmul_rows(engine):
    return LIGHTX2V_MATMUL_BACKENDS if engine == "lightx2v" else MATMUL_BACKENDS


def possible_trials(wanted):
    """Return (task, row) of all that may be tried for these settings."""
    pairs = [(BLOCKS, row) for row in BLOCK_BACKENDS] + [(ATTENTION, row) for row in ATTENTION_BACKENDS]
    if wanted.precision in EIGHT_BIT:
        task = f"{wanted.precision} matmul"
        pairs += [(task, row) for row in matmul_rows(wanted.engine) if wanted.precision in row.dtypes]
    pairs = [pair for pair in pairs if pair[1].name not in REFERENCES]
    pairs += [(JOINED, row) for row in MATMUL_BACKENDS if row.joins_from]
    return pairs + [(IN_PLACE, row) for row in ATTENTION_BACKENDS if row.in_place_on]


def some(generator, things):
    """Return each of `things` with a chance that is itself random."""
    chance = generator.random()
    return [thing for thing in things if generator.random() < chance]


def random_case(seed):
    """Return a machine, settings, and the (task, row) that will fail on it."""
    generator = random.Random(seed)
    engine = generator.choice(("portable", "portable", "lightx2v"))
    wanted = Wanted(
        precision=generator.choice(("fp8", "int8", "bf16")),
        dim=generator.choice(SIZES),
        ffn_dim=generator.choice(SIZES),
        engine=engine,
        attention=generator.choice((*ATTENTION_CHOICES, *["auto"] * 9)),
        fused_kernels="auto" if engine == "lightx2v" else generator.choice(("auto", "auto", "on", "off")),
    )
    packages = {name: generator.choice(VERSIONS) for name in some(generator, PACKAGES)}
    pairs = possible_trials(wanted)
    failed = generator.sample(pairs, generator.randrange(4))
    broken = some(generator, [name for name in PACKAGES if name not in packages])
    machine = Machine(
        capability=generator.choice(CAPABILITIES),
        system=generator.choice(("linux", "win32", "darwin")),
        torch=generator.choice(("", "2.6.0", "2.7.1", "2.13.0+cu130")),
        packages=packages,
        problems={name: f"{name} does not import: no library" for name in broken},
        failed_trials=dict.fromkeys(failed, "its trial run failed before"),
    )
    return machine, wanted, some(generator, pairs)


def outcome(function, *given, **named):
    """Return the result, or the refusal's class and words."""
    try:
        return function(*given, **named)
    except LightX2VError as error:
        return type(error), str(error)


PROBLEM = "its trial run failed (RuntimeError: does not fit)"


@pytest.fixture
def confirm_with(monkeypatch):
    """Return a function that confirms settings on a machine where the trials of some (task, row) fail.

    It fails the test where the facts are asked for more often than once and once more after each failure: every round
    has to end in a choice, a refusal or one more failure.
    """

    def confirm(machine, wanted, failing):
        trials.forget_trials()
        names = {(task, row.name) for task, row in failing}
        tried = []

        def trial_of(task):
            def run(*given):
                name = given[-2]
                if name not in REFERENCES | {""}:
                    tried.append((task, name))
                if (task, name) in names:
                    raise RuntimeError("does not fit")
                return torch.ones(2)

            return run

        def multiply(precision, name, device):
            return trial_of(f"{precision} matmul")(name, device)

        with monkeypatch.context() as patch:
            functions = {"run_ops": BLOCKS, "attend": ATTENTION, "attend_in_place": IN_PLACE, "multiply_joined": JOINED}
            for function, task in functions.items():
                patch.setattr(trial_inputs, function, trial_of(task))
            is_own = wanted.engine == "portable"
            patch.setattr(trial_inputs, "multiply", multiply if is_own else pytest.fail)
            pretend_machine(patch, machine)
            find, asked = trials.find_machine, []

            def find_at_most(device):
                asked.append(device)
                if len(asked) > len(failing) + 1:
                    pytest.fail(f"confirm does not end: {machine}, {wanted}")
                return find(device)

            patch.setattr(trials, "find_machine", find_at_most)
            found = outcome(trials.confirm, wanted, CPU, lightx2v_matmul=None if is_own else multiply)
            assert len(tried) == len(set(tried)), "a kernel is tried once"
            return found, find(CPU)

    yield confirm
    trials.forget_trials()


CASES = pytest.mark.parametrize("seeds", [range(start, start + 100) for start in range(0, NUM_CASES, 100)], ids=str)


@CASES
def test_what_is_forecast_is_what_runs(seeds, confirm_with):
    for seed in seeds:
        machine, wanted, _ = random_case(seed)
        found, learned = confirm_with(machine, wanted, ())
        assert found == outcome(choose, machine, wanted), seed
        assert learned == machine, seed


@CASES
def test_a_failed_trial_is_one_more_fact_of_the_machine(seeds, confirm_with):
    for seed in seeds:
        machine, wanted, failing = random_case(seed)
        found, learned = confirm_with(machine, wanted, failing)
        assert learned.failed_trials.items() >= machine.failed_trials.items(), seed
        new = {pair: learned.failed_trials[pair] for pair in learned.failed_trials.keys() - machine.failed_trials}
        assert new.keys() <= set(failing) and set(new.values()) <= {PROBLEM}, seed
        assert learned == replace(machine, failed_trials={**machine.failed_trials, **new}), seed
        assert found == outcome(choose, learned, wanted), seed
        # Whoever knew of all the failures before says the same, or refuses too, maybe for another of them.
        everything = replace(machine, failed_trials={**dict.fromkeys(failing, PROBLEM), **machine.failed_trials})
        foreseen = outcome(choose, everything, wanted)
        assert found == foreseen or (isinstance(found, tuple) and isinstance(foreseen, tuple)), seed


@CASES
def test_what_is_chosen_runs_there_and_is_the_best_that_does(seeds):
    for seed in seeds:
        machine, wanted, _ = random_case(seed)
        found = outcome(choose, machine, wanted)
        if isinstance(found, tuple):
            is_old = machine.capability is not None and machine.capability < OLDEST
            assert is_old or wanted.attention != "auto" or wanted.fused_kernels == "on", f"{seed}: auto always finds"
            continue
        check_settings(found, machine, wanted)
        choices = [(found.attention, "bf16", ATTENTION_BACKENDS)]
        if wanted.precision in EIGHT_BIT:
            choices.append((found.matmul, wanted.precision, matmul_rows(wanted.engine)))
        if wanted.engine == "portable":
            choices.append((found.blocks, "bf16", BLOCK_BACKENDS))
        for choice, dtype, table in choices:
            assert choice.backend in table, seed
            assert why_not(choice.backend, machine, dtype, choice.task) is None, seed
            reasons = {(row.name, why_not(row, machine, dtype, choice.task)) for row in table}
            assert choice.passed_over.items() <= reasons, seed
            left = [row for row in better(choice, machine, dtype, table) if row.name not in choice.passed_over]
            assert all(is_ruled_out(row, found, wanted, choice) for row in left), seed


def better(choice, machine, dtype, table):
    """Return the rows that go before what was chosen."""

    def key(row):
        return row.ranks.get(machine.capability, row.rank)

    return [row for row in table if dtype in row.dtypes and key(row) > key(choice.backend)]


def is_ruled_out(row, found, wanted, choice):
    """Say whether the settings or the sizes leave no place for a row."""
    if choice.task == ATTENTION:
        return wanted.attention != "auto" or (row.package == "triton" and not found.is_fused)
    if choice.task == BLOCKS:
        return wanted.fused_kernels == "off"
    is_unfit = bool(wanted.dim % row.multiple or wanted.ffn_dim % row.multiple)
    return is_unfit or (row.package == "triton" and not found.is_fused)


def check_settings(found, machine, wanted):
    assert found.wanted == wanted
    assert wanted.attention in ("auto", found.attention.name)
    assert found.is_fused == (found.blocks.name == "triton")
    assert wanted.fused_kernels != "on" or found.is_fused
    assert wanted.fused_kernels != "off" or not found.is_fused
    assert (wanted.engine == "lightx2v") == (found.blocks.name == "lightx2v")
    assert (wanted.precision == "bf16") == (found.matmul.name == "bf16")
    row = found.attention.backend
    may_be_in_place = machine.capability in row.in_place_on and (IN_PLACE, row) not in machine.failed_trials
    assert found.is_in_place == (found.is_fused and may_be_in_place)
    joins_from = found.matmul.backend.joins_from
    may_join = joins_from is not None and machine.capability is not None and machine.capability >= joins_from
    has_joined = may_join and (JOINED, found.matmul.backend) not in machine.failed_trials
    assert found.joins_loras == (found.is_fused and has_joined)
    assert found.attention_bytes == (row.in_place_bytes if found.is_in_place else row.bytes) > 0
    if not found.is_fused:
        assert wanted.engine == "lightx2v" or found.matmul.backend.package != "triton"
        assert wanted.attention != "auto" or found.attention.backend.package != "triton"
    assert found.requantizes == (wanted.precision == "fp8" and found.matmul.backend.inputs == "int8")
    has_fp8 = machine.capability is not None and machine.capability >= (8, 9)
    if wanted.engine == "portable" and wanted.precision == "fp8" and not has_fp8:
        assert found.inputs in ("int8", "bf16")
    assert found.as_facts()["compute"] == found.inputs
    both = f"{found.precision} file, {found.inputs} compute"
    assert found.numbers == (found.precision if found.inputs == found.precision else both)
    assert any(reason.startswith(both) for reason in found.reasons) == (found.inputs != found.precision)
    multiple = found.matmul.backend.multiple
    assert wanted.dim % multiple == wanted.ffn_dim % multiple == 0


def test_the_random_machines_differ():
    """Otherwise the tests above would show little."""
    seen, refused = set(), 0
    for seed in range(NUM_CASES):
        machine, wanted, _ = random_case(seed)
        found = outcome(choose, machine, wanted)
        if isinstance(found, tuple):
            refused += 1
        else:
            seen |= {found.attention.name, found.blocks.name, (found.precision, found.matmul.name), found.is_in_place}
            seen |= {("joins", found.matmul.name, found.joins_loras)}
    assert NUM_CASES / 20 < refused < NUM_CASES / 2
    assert seen >= {row.name for row in (*ATTENTION_BACKENDS, *BLOCK_BACKENDS)} | {True, False, "lightx2v"}
    assert seen >= {("joins", "scaled_mm", True), ("joins", "scaled_mm", False), ("joins", "fp8_triton", True)}
    assert seen >= {(dtype, row.name) for row in MATMUL_BACKENDS for dtype in row.dtypes}
    assert seen >= {(dtype, row.name) for row in LIGHTX2V_MATMUL_BACKENDS for dtype in row.dtypes}


# A back end is a row and a function


def test_every_attention_row_has_its_kernel_and_takes_memory():
    assert {row.name for row in ATTENTION_BACKENDS} == KERNELS.keys()
    assert all(row.bytes > 0 for row in ATTENTION_BACKENDS)


def test_what_runs_in_place_is_what_the_table_says():
    in_place = {row.name: row for row in ATTENTION_BACKENDS if row.in_place_on}
    assert in_place.keys() == IN_PLACE_KERNELS.keys()
    assert all(isinstance(kernel, SelfAttention) for kernel in IN_PLACE_KERNELS.values())
    for row in ATTENTION_BACKENDS:
        assert bool(row.in_place_on) == (row.in_place_bytes > 0), row.name
        assert row.in_place_bytes < row.bytes, row.name
        assert all(row.min_capability <= card <= row.max_capability for card in row.in_place_on), row.name


def test_every_matmul_row_has_its_function_and_quantizes_as_the_table_says():
    assert {row.name for row in MATMUL_BACKENDS} == MATMULS.keys()
    dtypes = {None: None, "fp8": torch.float8_e4m3fn, "int8": torch.int8}
    for row in MATMUL_BACKENDS:
        assert ACTIVATION_DTYPES.get(row.name) == dtypes[row.inputs], row.name
        assert row.inputs is None or row.inputs in row.dtypes, row.name
        assert {"fp8": {"fp8"}, "int8": {"fp8", "int8"}, None: {"fp8", "int8"}}[row.inputs] == row.dtypes, row.name


def test_no_trial_of_one_engine_counts_for_the_other():
    """What failed is remembered by task and row, and both engines' matmuls have the same tasks."""
    shared = set(MATMUL_BACKENDS) & set(LIGHTX2V_MATMUL_BACKENDS)
    assert {row.name for row in shared} <= {"dequantize"}


@pytest.mark.parametrize(("protocol", "implementation"), [(Ops, ops_torch), (VaeOps, TorchOps())], ids=["ops", "VAE"])
def test_plain_torch_has_every_operation(protocol, implementation):
    operations = [name for name in vars(protocol) if not name.startswith("_")]
    assert operations and all(callable(getattr(implementation, name)) for name in operations)


def test_every_kind_of_blocks_has_a_time_for_every_precision():
    for row in (*BLOCK_BACKENDS, LIGHTX2V_BLOCKS):
        assert row.rest_seconds.keys() == {*PRECISIONS} - {"auto"}, row.name


@pytest.mark.parametrize("name", [row.name for row in ATTENTION_BACKENDS])
@pytest.mark.parametrize("precision", ["fp8", "int8", "bf16"])
def test_what_is_chosen_by_name_is_what_is_built(name, precision):
    """Without fused kernels, whose module imports Triton."""
    versions = dict.fromkeys(PACKAGES, "")
    row = next(row for row in ATTENTION_BACKENDS if row.name == name)
    machine = Machine(capability=row.min_capability or (9, 0), packages=versions)
    wanted = Wanted(precision=precision, dim=256, ffn_dim=512, attention=name, fused_kernels="off")
    chosen = choose(machine, wanted)
    kernels = build_kernels(chosen)
    assert kernels.attention.inner.kernel is KERNELS[name]
    assert kernels.attention_in_place is None
    assert kernels.quantized == ACTIVATION_DTYPES.get(chosen.matmul.name)
    assert chosen.inputs == {None: "bf16", torch.int8: "int8", torch.float8_e4m3fn: "fp8"}[kernels.quantized]


@pytest.mark.parametrize("capability", [(6, 1), (7, 0), (7, 5)])
@pytest.mark.parametrize("settings", [{}, {"attention": "sdpa"}, {"engine": "lightx2v"}, {"fused_kernels": "off"}])
def test_a_card_whose_attention_would_hold_all_scores_is_refused(capability, settings):
    machine = Machine(capability=capability, torch="2.13.0", packages={"triton": "3.6.0", "sageattention": "2.2.0"})
    with pytest.raises(UnsupportedHardwareError, match=r"RTX 30 or newer is needed.*80 GiB.*Use another card.*--cpu"):
        choose(machine, Wanted(precision="int8", dim=5120, ffn_dim=13824, **settings))


WINDOWS = {"system": "win32", "torch": "2.13.0"}


@pytest.mark.parametrize(
    ("capability", "facts", "packages", "name"),
    [
        ((8, 9), {"system": "linux", "torch": "2.13.0"}, {"triton": "3.6.0"}, "scaled_mm"),
        ((8, 9), WINDOWS, {"triton": "3.6.0"}, "fp8_triton"),
        ((8, 9), WINDOWS, {}, "scaled_mm_tensor"),
        ((12, 0), WINDOWS, {"triton": "3.5.0"}, "fp8_triton"),
        ((12, 0), WINDOWS, {"triton": "3.4.0"}, "scaled_mm_tensor"),
        ((8, 9), {"system": "linux", "torch": "2.6.0"}, {"triton": "3.2.0"}, "fp8_triton"),
        ((12, 0), {"system": "linux", "torch": "2.7.1"}, {}, "scaled_mm_tensor"),
        ((8, 6), WINDOWS, {"triton": "3.6.0"}, "int_triton"),
        ((8, 0), {"system": "linux", "torch": "2.13.0"}, {"triton": "3.6.0"}, "int_triton"),
        ((8, 6), WINDOWS, {}, "int_mm"),
    ],
)
def test_an_fp8_file_is_multiplied_in_8_bits_on_every_card_and_system(capability, facts, packages, name):
    machine = Machine(capability=capability, packages=packages, **facts)
    chosen = choose(machine, Wanted(precision="fp8", dim=5120, ffn_dim=13824))
    assert chosen.matmul.name == name
    assert name == "scaled_mm" or "scaled_mm" in chosen.matmul.passed_over
    assert chosen.requantizes == name.startswith("int")


def test_a_card_whose_fp8_fails_its_trials_takes_int8():
    failed = {("fp8 matmul", row): "its trial run failed" for row in MATMUL_BACKENDS if row.inputs == "fp8"}
    machine = Machine(capability=(8, 9), packages={"triton": "3.6.0"}, failed_trials=failed)
    chosen = choose(machine, Wanted(precision="fp8", dim=5120, ffn_dim=13824))
    assert (chosen.matmul.name, chosen.numbers) == ("int_triton", "fp8 file, int8 compute")


@pytest.mark.parametrize("precision", EIGHT_BIT)
def test_widening_on_a_card_that_multiplies_8_bits_is_a_problem_with_its_remedy(precision):
    failed = {(f"{precision} matmul", row): "its trial run failed" for row in MATMUL_BACKENDS if row.inputs}
    machine = Machine(capability=(8, 9), torch="2.13.0", packages={"triton": "3.6.0"}, failed_trials=failed)
    wanted = Wanted(precision=precision, dim=5120, ffn_dim=13824)
    problem = choose(machine, wanted).widening_problem
    assert problem.startswith(f"{precision} file, bf16 compute: ") and "Update torch, install Triton (pip" in problem
    assert "its trial run failed" in problem
    assert not choose(replace(machine, failed_trials={}), wanted).widening_problem


@pytest.mark.parametrize("name", [row.name for row in MATMUL_BACKENDS if "fp8" in row.dtypes])
def test_a_trial_of_fp8_weights_multiplies_what_the_run_would(name, monkeypatch):
    """Requantized where the back end multiplies INT8: the trial finds it where that is wrong."""
    if "triton" in name:
        pytest.skip("needs Triton")
    try:
        found = trial_inputs.multiply("fp8", name, CPU).float()
    except RuntimeError as error:
        pytest.skip(f"this torch has no {name} on the CPU: {error}")
    wanted = trial_inputs.multiply("fp8", "dequantize", CPU).float()
    assert (found - wanted).norm() / wanted.norm() < 0.05
    monkeypatch.setattr(implementations, "load_requantize", lambda _: lambda weight, scale: weight.view(torch.int8))
    changed = trial_inputs.multiply("fp8", name, CPU).float()
    assert torch.equal(changed, found) == (not name.startswith("int"))


def test_a_compiler_that_ends_the_process_is_never_tried():
    machine = Machine(capability=(12, 0), packages={"triton": "3.2.0"}, torch="2.8.0")
    chosen = choose(machine, Wanted(precision="int8", dim=5120, ffn_dim=13824))
    assert (chosen.blocks.name, chosen.matmul.name) == ("torch", "int_mm")
    assert "ends the process" in chosen.blocks.passed_over["triton"]
