"""The script of a rank's process: gives the pack its parent's name, so that both mean the same by it."""

import importlib
import json
import os
import sys
import types

if __name__ == "__main__":
    request = json.loads(os.environ["LIGHTX2V_RANK"])
    sys.path[:] = request["path"]
    pack = types.ModuleType(request["name"])
    pack.__path__ = [request["pack"]]
    sys.modules[request["name"]] = pack
    importlib.import_module(f"{request['name']}.engine.parallel.worker").main(request)
