"""The script of the process that starts and watches the ranks: torchrun; and in the end it removes the group's folder,
where the parent is no longer there to do so.
"""

import json
import os
import runpy
import shutil
import sys

if __name__ == "__main__":
    request, folder = json.loads(os.environ["LIGHTX2V_RANK"]), os.getcwd()
    sys.path[:] = request["path"]
    try:
        runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)
    finally:
        if os.getppid() != request["parent"]:
            shutil.rmtree(folder, ignore_errors=True)
