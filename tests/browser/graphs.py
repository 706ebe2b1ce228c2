"""An editor workflow for the browser: loaders of single files, a small clip, and the report."""

import json


def slow_graph(transformer: str, width: int = 192, height: int = 192, num_frames: int = 9) -> str:
    """Return a workflow in the editor's format whose transformer is the file `transformer`."""
    nodes, links = [], []

    def add(kind, position, values=(), **sources):
        """Add a node; `sources` gives (node, output slot, type) for each input by name."""
        node = {
            "id": len(nodes) + 1,
            "type": kind,
            "pos": position,
            "size": [330, 120],
            "flags": {},
            "order": len(nodes),
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": {"Node name for S&R": kind},
            "widgets_values": list(values),
        }
        for slot, (name, (origin, output, type_name)) in enumerate(sources.items()):
            links.append([len(links) + 1, origin["id"], output, node["id"], slot, type_name])
            node["inputs"].append({"name": name, "type": type_name, "link": len(links)})
            outputs = origin["outputs"]
            while len(outputs) <= output:
                outputs.append({"name": type_name, "type": type_name, "links": []})
            outputs[output]["links"].append(len(links))
        nodes.append(node)
        return node

    offload = add("LightX2VOffload", [0, 0], ["auto", 0, 0, "auto"])
    loader = add(
        "LightX2VLoadTransformer",
        [380, 0],
        [transformer, "auto", "auto", "off"],
        offload=(offload, 0, "LIGHTX2V_OFFLOAD"),
    )
    encoder = add("LightX2VLoadTextEncoder", [0, 400], ["umt5_xxl_fp8_e4m3fn_scaled.safetensors", "auto"])
    vae = add("LightX2VLoadVAE", [0, 620], ["wan_2.1_vae.safetensors"])
    text = add(
        "LightX2VTextEncode", [380, 400], ["a red fox", "cpu"], text_encoder=(encoder, 0, "LIGHTX2V_TEXT_ENCODER")
    )
    size = add("LightX2VEmptyLatent", [380, 700], [width, height, num_frames, 1])
    sampler = add(
        "LightX2VSampler",
        [780, 0],
        [0, "fixed", "lcm", 4, 5.0],
        transformer=(loader, 0, "MODEL"),
        conditioning=(text, 0, "CONDITIONING"),
        latent=(size, 0, "LATENT"),
    )
    decode = add("LightX2VDecode", [780, 500], ["auto"], vae=(vae, 0, "VAE"), latent=(sampler, 0, "LATENT"))
    add("LightX2VReport", [1180, 0], [], image=(decode, 0, "IMAGE"))
    graph = {
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }
    return json.dumps(graph)
