"""Read thousands of mutated files of every kind: no crash, no hang, no growth, no error that is not ours.

python tests/fuzz/run.py [--files 5000] [--seed 0] [--jobs 2] [--kind NAME]; ends with 1 where a case failed, and prints
how to run that case alone.
"""

import argparse
import faulthandler
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Of the processor, a case; a case that does not come back at all is ended after the last of these.
MAX_SECONDS, MAX_WALL_SECONDS = 2.0, 60.0
MAX_GROWTH = 2**30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=5000, help="how many, over all kinds (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first file (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--kind", help="one kind only")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        return _work(options)
    started = time.monotonic()
    workers = [_Worker(options, number) for number in range(options.jobs)]
    failures = sum(worker.watch() for worker in workers)
    print(f"{options.files} files in {time.monotonic() - started:.0f} s, {failures} failures", flush=True)
    return int(failures > 0)


def _cases(options):
    from fuzz.cases import KINDS

    kinds = [options.kind] if options.kind else list(KINDS)
    for number in range(options.files):
        yield kinds[number % len(kinds)], options.seed + number // len(kinds)


class _Worker:
    """A process that takes every jobs-th case, watched from outside."""

    def __init__(self, options, number: int) -> None:
        self._options, self._number = options, number
        self._first = 0
        self._log = Path(tempfile.mkstemp(prefix="fuzz-")[1])
        self._process = self._start()

    def _start(self):
        command = [sys.executable, __file__, "--worker", str(self._number), "--files", str(self._options.files)]
        command += ["--seed", str(self._options.seed), "--jobs", str(self._options.jobs)]
        command += ["--kind", self._options.kind] if self._options.kind else []
        environment = {**os.environ, "FUZZ_LOG": str(self._log), "FUZZ_FIRST": str(self._first), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)

    def watch(self) -> int:
        """Return how many cases failed; one that ends its process or hangs is one, and a new process goes on."""
        crashes = 0
        while True:
            status = self._wait()
            if status == 0:
                break
            begun = [line for line in self._lines() if "begun" in line]
            if not begun or crashes > 20:
                print(self._process.stderr.read().decode(errors="replace"))
                return 1 + crashes
            last = begun[-1]
            crashes += 1
            print(f"FAILED {last['kind']} {last['seed']}: the process ended with {status}", flush=True)
            self._first = last["begun"] + 1
            self._process = self._start()
        failed = [line for line in self._lines() if "problem" in line]
        for line in failed:
            print(f"FAILED --kind '{line['kind']}' --seed {line['seed']} --files 1: {line['problem']}", flush=True)
        self._log.unlink()
        return crashes + len(failed)

    def _wait(self) -> int | str:
        size, since = -1, time.monotonic()
        while self._process.poll() is None:
            time.sleep(0.05)
            now = self._log.stat().st_size
            if now != size:
                size, since = now, time.monotonic()
            elif time.monotonic() - since > MAX_WALL_SECONDS + 60 * (size == 0):
                self._process.kill()
                self._process.wait()
                return f"no answer for {MAX_WALL_SECONDS:.0f} s"
        return self._process.returncode

    def _lines(self):
        return [json.loads(line) for line in self._log.read_text().splitlines()]


def _work(options) -> int:
    faulthandler.enable()
    sys.path.insert(0, str(ROOT / "tests"))
    runpy.run_path(str(ROOT / "tools" / "register_pack.py"))
    from fuzz.cases import run_case
    from lightx2v_pack.tools.headless.report import peak_ram_bytes

    folder = Path(tempfile.mkdtemp(prefix="fuzz-files-"))
    with open(os.environ["FUZZ_LOG"], "a", encoding="utf-8") as log:

        def note(**facts) -> None:
            log.write(json.dumps(facts) + "\n")
            log.flush()

        for number, (kind, seed) in enumerate(_cases(options)):
            if number % options.jobs != options.worker or number < int(os.environ["FUZZ_FIRST"]):
                continue
            note(begun=number, kind=kind, seed=seed)
            home = folder / str(number)
            home.mkdir()
            before, memory = time.process_time(), peak_ram_bytes()
            error = run_case(kind, seed, home)
            seconds, growth = time.process_time() - before, peak_ram_bytes() - memory
            shutil.rmtree(home, ignore_errors=True)
            if error is not None:
                where = traceback.extract_tb(error.__traceback__)[-1:]
                note(kind=kind, seed=seed, problem=f"{type(error).__name__}: {str(error)[:300]} at {where}")
            # The first of a process imports what it needs.
            elif seconds > MAX_SECONDS and number >= 60:
                note(kind=kind, seed=seed, problem=f"{seconds:.1f} s of the processor")
            elif growth > MAX_GROWTH:
                note(kind=kind, seed=seed, problem=f"{growth / 2**20:.0f} MiB more")
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
