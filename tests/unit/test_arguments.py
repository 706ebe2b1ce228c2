"""Numbers of a command line: every command reads them in one way, and says before anything runs what is wrong."""

import importlib
import re

import pytest
from lightx2v_pack.engine.settings import OffloadSettings, SamplingSettings
from lightx2v_pack.tools.arguments import number, whole

COMMANDS = {
    "generate": ("generate_cli", ["a fox"]),
    "run_workflow": ("headless.cli", ["graph.json"]),
    "run_prompts": ("prompts_cli", ["prompts.txt"]),
}


@pytest.mark.parametrize(
    ("command", "option", "value", "said"),
    [
        ("generate", "--steps", "2000000", "whole number from 1 to 50, not '2000000'"),
        ("generate", "--steps", "0", "whole number from 1 to 50"),
        ("generate", "--steps", "4.5", "whole number from 1 to 50, not '4.5'"),
        ("generate", "--shift", "nan", "number from 0.001 to 1000, not 'nan'"),
        ("generate", "--shift", "-5", "number from 0.001 to 1000"),
        ("generate", "--vram-budget", "nan", "number from 0 to 1024, not 'nan'"),
        ("generate", "--vram-budget", "-1", "number from 0 to 1024, not '-1'"),
        ("generate", "--vram-budget", "inf", "number from 0 to 1024"),
        ("generate", "--frames", "99999999999", "whole number from 1 to 4097"),
        ("generate", "--frames", "-81", "whole number from 1 to 4097"),
        ("generate", "--seed", "-1", "whole number from 0 to 18446744073709551615"),
        ("generate", "--seed", "9" * 5000, f"not '{'9' * 40}'"),
        ("run_workflow", "--timeout", "nan", "number from 0.001 to 2592000, not 'nan'"),
        ("run_workflow", "--timeout", "-1", "number from 0.001 to 2592000, not '-1'"),
        ("run_workflow", "--timeout", "1e300", "number from 0.001 to 2592000"),
        ("run_prompts", "--timeout", "soon", "number from 0.001 to 2592000, not 'soon'"),
        ("run_prompts", "--timeout", "0", "number from 0.001 to 2592000"),
        ("run_prompts", "--retries", "-3", "whole number from 0 to 1000, not '-3'"),
        ("run_prompts", "--seed", str(2**64), "whole number from 0 to"),
        ("run_prompts", "--gpus-per-clip", "\u0663\u0663", "whole number from 1 to 8"),
    ],
)
def test_what_is_no_number_for_an_option_is_said_with_its_name(command, option, value, said, capsys):
    module, words = COMMANDS[command]
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"lightx2v_pack.tools.{module}").main([*words, f"{option}={value}"])
    out, error = capsys.readouterr()
    assert ended.value.code == 2 and not out
    assert f"{command}.py: {option}: give a " in error and said in error and "Traceback" not in error


@pytest.mark.parametrize(("read", "text", "value"), [(whole(0, 9), " 7 ", 7), (number(0, 1), "1e-3", 0.001)])
def test_a_number_is_read_as_python_reads_it(read, text, value):
    assert read(text) == value


@pytest.mark.parametrize("gib", [float("nan"), float("inf"), -0.5, 1e300])
@pytest.mark.parametrize("name", ["vram_budget_gib", "pinned_ram_limit_gib"])
def test_a_limit_of_memory_that_is_none_is_refused(name, gib):
    with pytest.raises(ValueError, match=f"Set {name} to a number from 0 .measure. to 1024, not {re.escape(str(gib))}"):
        OffloadSettings(**{name: gib})


@pytest.mark.parametrize("steps", [0, -4, 51, 2_000_000])
def test_steps_that_nobody_means_are_refused(steps):
    with pytest.raises(ValueError, match=f"Set steps to a number from 1 to 50, not {steps}"):
        SamplingSettings(seed=0, steps=steps)
