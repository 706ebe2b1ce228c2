"""One side of the net; started by cli.py, once for each commit: python tools/net/worker.py JOB.json."""

from __future__ import annotations

import gc
import json
import sys
import types
from pathlib import Path
from typing import Any


def main(job: dict[str, Any]) -> None:
    """Run the cases of a job: root, models, out, only, quick; with --gpu size and text_dim."""
    from lightx2v_net import machines, refusals, tensors
    from lightx2v_net.pack import Pack
    from lightx2v_net.record import Record

    root, models, quick = Path(job["root"]), Path(job["models"]), job["quick"]
    record = Record(Path(job["out"]), job["only"], {models: "<models>", root: "<pack>"})
    pack = Pack(root)
    # The engines collect garbage often; what lives as long as the process need not be looked at each time.
    gc.freeze()
    if "size" not in job:
        machines.run(pack, record, models / "big", models / "tiny", quick=quick)
    with machines.pretend_ram(64, 0.75):
        if "size" in job:
            tensors.run_wide(
                pack, record, models / "wide", size=tuple(job["size"]), text_dim=job["text_dim"], quick=quick
            )
        else:
            refusals.run(pack, record, models / "broken", models / "tiny")
            tensors.run_tiny(pack, record, models / "tiny", quick=quick)


if __name__ == "__main__":
    # Python puts this folder first on the path, where its modules would hide others of their names.
    here = Path(sys.path.pop(0))
    net = sys.modules["lightx2v_net"] = types.ModuleType("lightx2v_net")
    net.__path__ = [str(here)]
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
