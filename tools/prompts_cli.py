"""The command line of tools/run_prompts.py: tools/run_workflow.py once for every prompt of a list."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from .headless import cli

_PACK_ROOT = Path(__file__).resolve().parent.parent
_FAILED = 3
# Exit codes of run_workflow.py after which the next prompt cannot do better.
_HOPELESS = (2, 4, 130)

_EPILOG = """\
PROMPTS.txt has one prompt a line; empty lines and lines that start with # are skipped.
One line of JSON a prompt goes to PROMPTS.results.jsonl: prompt, seed, status, seconds, outputs, error. Prompts that
have a line with status ok there, for the same seed, are not made again.

exit codes:
  0    every prompt has its video
  2    wrong command line, or the workflow or a value in it is wrong
  3    some prompts failed; the others were made
  4    the server cannot be reached, or is not ComfyUI
  130  cancelled with Ctrl-C; started again, it goes on with the prompts that are not done

examples:
  python tools/run_prompts.py prompts.txt --server http://127.0.0.1:8188
  python tools/run_prompts.py prompts.txt --server 127.0.0.1:8188 --seed 7 --set LightX2VEmptyLatent.num_frames=49
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    results = options.results or options.prompts.with_suffix(".results.jsonl")
    try:
        prompts = _read_prompts(options.prompts)
        done = _read_done(results)
    except (OSError, ValueError) as error:
        return _complain(str(error), 2)
    numbered = [(options.seed + index, prompt) for index, prompt in enumerate(prompts)]
    waiting = [(seed, prompt) for seed, prompt in numbered if (seed, prompt) not in done]
    if not options.quiet:
        print(f"{len(prompts)} prompts, {len(prompts) - len(waiting)} of them done", file=sys.stderr)
    num_failed = 0
    for number, (seed, prompt) in enumerate(waiting, start=1):
        if not options.quiet:
            print(f"--- {number} of {len(waiting)}, seed {seed}: {prompt}", file=sys.stderr, flush=True)
        code, result = _make(options, seed, prompt)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result, ensure_ascii=False) + "\n")
        if code in _HOPELESS:
            return code
        num_failed += code != 0
    if num_failed:
        return _complain(f"{num_failed} of {len(waiting)} prompts failed; {results} says why.", _FAILED)
    return 0


def _complain(message: str, code: int) -> int:
    print(f"run_prompts: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_prompts.py",
        description="Make a video for every line of a text file with a workflow file, in a running ComfyUI (--server, "
        "where the model stays loaded) or here, one after the other.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompts", type=Path, metavar="PROMPTS.txt")
    parser.add_argument(
        "--workflow",
        type=Path,
        default=_PACK_ROOT / "example_workflows" / "lightx2v_prompt_list.json",
        metavar="FILE",
        help="default: example_workflows/lightx2v_prompt_list.json of the pack",
    )
    parser.add_argument("--server", metavar="URL", help="the ComfyUI to queue on")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first prompt; the next ones count up")
    parser.add_argument("--results", type=Path, metavar="FILE", help="default: PROMPTS.results.jsonl")
    parser.add_argument(
        "--prompt-input", default="LightX2VTextEncode.text", metavar="NODE.INPUT", help="default: %(default)s"
    )
    parser.add_argument(
        "--seed-input", default="LightX2VSampler.seed", metavar="NODE.INPUT", help="default: %(default)s"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="for every prompt")
    parser.add_argument("--models-dir", metavar="DIR", help="as for run_workflow.py")
    parser.add_argument("--output-dir", metavar="DIR", help="as for run_workflow.py")
    parser.add_argument("--timeout", metavar="SECONDS", help="of one prompt; it then counts as failed")
    parser.add_argument("--quiet", action="store_true", help="no progress; errors are still printed")
    return parser


def _read_prompts(path: Path) -> list[str]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"{path} has no prompt: expected one a line.")
    return prompts


def _read_done(path: Path) -> set[tuple[int, str]]:
    """Return (seed, prompt) of the results that are there."""
    if not path.exists():
        return set()
    results = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(result["seed"], result["prompt"]) for result in results if result["status"] == "ok"}


def _make(options: argparse.Namespace, seed: int, prompt: str) -> tuple[int, dict[str, Any]]:
    """Run the workflow for one prompt; returns the exit code and the line for the results file."""
    with tempfile.TemporaryDirectory() as folder:
        report_file = Path(folder, "report.json")
        arguments = [str(options.workflow), "--report", str(report_file)]
        # JSON, so that a prompt that looks like a number or has quotes stays as it is.
        values = [*options.set, f"{options.prompt_input}={json.dumps(prompt)}", f"{options.seed_input}={seed}"]
        arguments += [word for value in values for word in ("--set", value)]
        for name in ("server", "models_dir", "output_dir", "timeout"):
            given = getattr(options, name)
            arguments += [f"--{name.replace('_', '-')}", given] if given else []
        arguments += ["--quiet"] if options.quiet else []
        code = cli.main(arguments)
        report = json.loads(report_file.read_text(encoding="utf-8"))
    kept = {key: report[key] for key in ("status", "seconds", "outputs", "error")}
    return code, {"prompt": prompt, "seed": seed, **kept}
