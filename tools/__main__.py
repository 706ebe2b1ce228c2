"""The pack's commands: python tools COMMAND ..."""

import importlib
import os
import signal
import sys

COMMANDS = {
    "generate": ("generate_cli", "make a video from a prompt, without a graph (tools/generate.py)"),
    "workflow": ("headless.cli", "run a ComfyUI workflow file, here or on a server (tools/run_workflow.py)"),
    "prompts": ("prompts_cli", "make a video for every line of a file (tools/run_prompts.py)"),
    "download": ("download_cli", "fetch the published checkpoints (tools/download.py)"),
    "doctor": ("doctor_cli", "show what this machine has and lacks for the pack (tools/doctor.py)"),
    "bench": ("bench.cli", "measure speed and memory on a card (docs/benchmarks.md)"),
    "cards": ("cards.cli", "run as another card; compile the kernels for every card"),
    "net": ("net.cli", "compare what two commits of this repository give, bit for bit"),
    "pictures": ("pictures.take", "take the pictures of help pages again"),
    "thumbnails": ("pictures.thumbnails", "make the pictures of templates again"),
}


def main(words: list[str]) -> int:
    """Run the command that the first word names with the others; returns its exit code."""
    name, *arguments = words or ["--help"]
    if name in COMMANDS:
        module = importlib.import_module(f"lightx2v_pack.tools.{COMMANDS[name][0]}")
        if signal.getsignal(signal.SIGINT) is end:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return int(module.main(arguments))
    usage = "usage: python tools COMMAND ... (--help after a command lists its options)\n"
    lines = [usage, *(f"  {command:<10} {what}" for command, (_, what) in COMMANDS.items())]
    is_help = name in ("-h", "--help")
    if not is_help:
        lines.append(f"\ntools: there is no command {name!r}; choose one of these.")
    console = importlib.import_module("lightx2v_pack.tools.console")
    (console.say if is_help else console.complain)("\n".join(lines))
    return 0 if is_help else 2


def end(*_: object) -> None:
    """End at Ctrl-C while modules are imported: some of them swallow it, and nothing is to be tidied up yet."""
    os.write(2, b"Cancelled.\n")
    os._exit(130)


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)

    import register_pack  # noqa: F401

    sys.exit(main(sys.argv[1:]))
