"""The script of the process that starts and watches the ranks: torchrun; and in the end it removes the group's folder,
where nobody reads the log in it any more.
"""

import json
import os
import runpy
import shutil
import sys

if __name__ == "__main__":
    request, folder = json.loads(os.environ["LIGHTX2V_RANK"]), os.getcwd()
    sys.path[:] = request["path"]
    is_over = False
    try:
        runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)
        # The parent has closed its connections, or has ended: where a rank fails, this is not reached.
        is_over = True
    finally:
        if is_over or os.getppid() != request["parent"]:
            shutil.rmtree(folder, ignore_errors=True)
