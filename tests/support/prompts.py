"""Prompts in ComfyUI's API format: the pack's nodes, wired from a checkpoint to frames."""


def loader(checkpoint="tiny", **values):
    """Return a LightX2V Load Checkpoint."""
    inputs = {"checkpoint": checkpoint, "precision": "auto", "engine": "auto", "attention": "auto", "compile": "off"}
    return {"class_type": "LightX2VLoadCheckpoint", "inputs": inputs | values}


def size(width=64, height=48, num_frames=5, batch_size=1):
    """Return a LightX2V Empty Latent."""
    inputs = {"width": width, "height": height, "num_frames": num_frames, "batch_size": batch_size}
    return {"class_type": "LightX2VEmptyLatent", "inputs": inputs}


def sampler(seed, steps=4):
    """Return a LightX2V Sampler of the nodes "load", "encode" and "size"."""
    inputs = {"transformer": ["load", 0], "conditioning": ["encode", 0], "latent": ["size", 0], "seed": seed}
    return {"class_type": "LightX2VSampler", "inputs": inputs | {"method": "lcm", "steps": steps, "shift": 5.0}}


def text_to_frames(*, text="a red fox in the snow", seed=7, checkpoint="tiny", latent=None):
    """Return the nodes "load", "encode", "size", "sample" and "decode"; `latent` may be the node "size"."""
    encode = {"text_encoder": ["load", 1], "text": text, "device": "cpu"}
    decode = {"vae": ["load", 2], "latent": ["sample", 0], "tiling": "off"}
    return {
        "load": loader(checkpoint),
        "encode": {"class_type": "LightX2VTextEncode", "inputs": encode},
        "size": latent or size(),
        "sample": sampler(seed),
        "decode": {"class_type": "LightX2VDecode", "inputs": decode},
    }
