"""The command line of tools/run_prompts.py: tools/run_workflow.py once for every prompt of a list."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from . import console
from .headless import cli
from .text_files import read_text

_PACK_ROOT = Path(__file__).resolve().parent.parent
_FAILED = 3
# Exit codes of run_workflow.py after which the next prompt cannot do better.
_HOPELESS = (2, 4, 130)

_EPILOG = """\
PROMPTS.txt (UTF-8) has one prompt a line; empty lines and lines that start with # are skipped.
One line of JSON a prompt goes to PROMPTS.results.jsonl: prompt, seed, status, seconds, outputs, error. Prompts that
have a line with status ok there, for the same seed, are not made again.

exit codes:
  0    every prompt has its video
  2    wrong command line, or the workflow or a value in it is wrong
  3    some prompts failed, and the others were made; or PROMPTS.results.jsonl cannot be written
  4    the server cannot be reached, wants a login, or is not ComfyUI
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
    except (OSError, ValueError) as error:
        return _complain(str(error), 2)
    try:
        done = _read_done(results)
        # Before anything is made: whether it can be noted.
        _append(results, "")
    except OSError as error:
        return _complain(f"Choose another file with --results, or make room: {results}: {error.strerror}.", _FAILED)
    numbered = [(options.seed + index, prompt) for index, prompt in enumerate(prompts)]
    waiting = [(seed, prompt) for seed, prompt in numbered if (seed, prompt) not in done]
    if not options.quiet:
        console.complain(f"{len(prompts)} prompts, {len(prompts) - len(waiting)} of them done")
    num_failed = 0
    for number, (seed, prompt) in enumerate(waiting, start=1):
        if not options.quiet:
            console.complain(f"--- {number} of {len(waiting)}, seed {seed}: {prompt}")
        code, result = _make(options, seed, prompt)
        try:
            _append(results, json.dumps(result, ensure_ascii=False) + "\n")
        except OSError as error:
            made = f" {result['outputs'][0]} is made, and would be made again." if result["outputs"] else ""
            return _complain(f"Make room and start again: {results}: {error.strerror}.{made}", _FAILED)
        if code in _HOPELESS:
            return code
        num_failed += code != 0
    if num_failed:
        return _complain(f"{num_failed} of {len(waiting)} prompts failed; {results} says why.", _FAILED)
    return 0


def _complain(message: str, code: int) -> int:
    console.complain(f"run_prompts: {message}")
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
    parser.add_argument("--header", action="append", default=[], metavar="'NAME: VALUE'", help="as for run_workflow.py")
    parser.add_argument("--token", metavar="TOKEN", help="as for run_workflow.py")
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
    # A line ends at LF or CRLF: str.splitlines would end it at characters that people paste without seeing them.
    lines = [line.strip() for line in read_text(path).split("\n")]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"{path} has no prompt: expected one a line.")
    return prompts


def _read_done(path: Path) -> set[tuple[int, str]]:
    """Return (seed, prompt) of the results that are there; lines that are none are named and passed over."""
    done = set()
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            result = json.loads(line)
            if result["status"] == "ok":
                done.add((int(result["seed"]), str(result["prompt"])))
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            console.complain(
                f"run_prompts: {path.name}, line {number}, is passed over, as it is no result ({type(error).__name__}: "
                f"{error}); its prompt is made again. It is in {path}."
            )
    return done


def _append(path: Path, text: str) -> None:
    """Add a line; one that was cut in the middle ends where it is."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                text = f"\n{text}"
        # A path that is not UTF-8 comes as half a surrogate pair, which JSON has an escape for.
        file.write(text.encode("utf-8", "backslashreplace"))


def _make(options: argparse.Namespace, seed: int, prompt: str) -> tuple[int, dict[str, Any]]:
    """Run the workflow for one prompt; returns the exit code and the line for the results file."""
    arguments = [str(options.workflow)]
    # JSON, so that a prompt that looks like a number or has quotes stays as it is.
    values = [*options.set, f"{options.prompt_input}={json.dumps(prompt)}", f"{options.seed_input}={seed}"]
    arguments += [word for value in values for word in ("--set", value)]
    for name in ("server", "token", "models_dir", "output_dir", "timeout"):
        given = getattr(options, name)
        arguments += [f"--{name.replace('_', '-')}", given] if given else []
    arguments += [word for header in options.header for word in ("--header", header)]
    arguments += ["--quiet"] if options.quiet else []
    code, report = cli.run(arguments)
    kept = {key: report[key] for key in ("status", "seconds", "outputs", "error")}
    return code, {"prompt": prompt, "seed": seed, **kept}
