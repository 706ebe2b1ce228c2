"""What runs in the process of its own that backends/trial_process.py starts: trials, with a word before and after each.

Only engine/ is imported here, and neither ComfyUI nor a node.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from typing import Any


def main(request: dict[str, Any]) -> None:
    """Try what the request names, and say so on what was standard output."""
    # Libraries write to standard output too: from here on that is the error output.
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    _end_quietly()
    threading.Thread(target=_end_with_the_parent, daemon=True).start()

    def say(**facts: Any) -> None:
        out.write(f"{request['mark']}{json.dumps(facts)}\n")
        out.flush()

    import torch

    from . import engines
    from .backends import trials
    from .backends.trial_process import Named

    device = torch.device(request["device"])
    # Where this process cannot have the device, no trial here says anything.
    torch.zeros(1, device=device)
    for fields in request["trials"]:
        named = Named(**fields)
        multiply = engines.lightx2v_multiply() if named.is_lightx2v else None
        say(trying=str(named))
        say(is_full=not trials.survives(named, device, lightx2v_matmul=multiply))
    say(all=True)
    # Without what libraries do at exit, which may go wrong too.
    out.close()
    os._exit(0)


def _end_with_the_parent() -> None:
    """Wait for the end of the input, which is that of the process that waits for an answer."""
    sys.stdin.read()
    os._exit(1)


def _end_quietly() -> None:
    """Leave no core file and show no window where the process is ended."""
    if sys.platform == "win32":
        import ctypes

        # SEM_FAILCRITICALERRORS, SEM_NOGPFAULTERRORBOX, SEM_NOOPENFILEERRORBOX
        ctypes.windll.kernel32.SetErrorMode(0x0001 | 0x0002 | 0x8000)
    else:
        import resource

        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
