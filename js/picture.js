// The picture before a node, and the size that a video gets in its shape.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { inputNode, widgetValue } from "./graph.js";

// Nodes that load a picture; each has its file in the widget `image`.
export const PICTURE_NODES = ["LoadImage", "LoadImageOutput"];
// "clips/one.png [output]": folders, name, and which of ComfyUI's folders it lies in.
const NAMED = /^(?:(.*)\/)?([^/]+?)(?: \[(input|output|temp)\])?$/;

// File -> {width, height}, undefined while it is read and where it cannot be.
const sizes = new Map();

/** The size of the picture that a node's first linked input of these leads to, where it is loaded from a file. */
export function pictureBefore(node, inputs, onArrival) {
    const origin = inputs.map((name) => inputNode(node, name)).find(Boolean);
    const file = PICTURE_NODES.includes(origin?.type) ? widgetValue(origin, "image") : undefined;
    if (typeof file !== "string" || !file) {
        return undefined;
    }
    if (!sizes.has(file)) {
        sizes.set(file, undefined);
        read(file).then((size) => {
            sizes.set(file, size);
            onArrival();
        }, () => sizes.delete(file));
    }
    return sizes.get(file);
}

/** Forget what was read, since a file may have been replaced. */
export const forgetPictures = () => sizes.clear();

async function read(file) {
    const [, subfolder = "", filename, type = "input"] = file.replaceAll("\\", "/").match(NAMED) ?? [];
    const picture = new Image();
    picture.src = api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}${app.getRandParam?.() ?? ""}`);
    await picture.decode();
    return { width: picture.naturalWidth, height: picture.naturalHeight };
}
