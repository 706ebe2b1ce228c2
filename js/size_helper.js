// Size helpers on the nodes that make a latent: presets, whole multiples while typing, the length in seconds, and where
// a picture decides the shape the size that comes out.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { addPanel, button, element, findWidget, muted, onNodeEvent, onWidgetChange } from "./api.js";
import { PICTURES, isAnArea } from "./graph.js";
import { PICTURE_NODES, forgetPictures, pictureBefore } from "./picture.js";
import { sizeOfArea } from "./quantities.js";
import { say } from "./texts.js";

const NODES = ["LightX2VEmptyLatent", "LightX2VImageToVideo"];
const PRESETS = [
    [832, 480],
    [480, 832],
    [1280, 720],
    [720, 1280],
    [1024, 576],
    [768, 768],
];
const FRAME_RATE = 16;
// Widget -> [step, smallest]: a value is smallest plus whole steps.
const STEPS = { width: [16, 16], height: [16, 16], num_frames: [4, 1] };

// Node -> what shows its values anew.
const updates = new Map();
const updateAll = () => updates.forEach((update) => update());

function snap(widget) {
    const rule = STEPS[widget.name];
    if (!rule || !Number.isFinite(widget.value)) {
        return;
    }
    const [step, smallest] = rule;
    const value = Math.min(Math.max(Math.round((widget.value - smallest) / step) * step + smallest, smallest), widget.options.max);
    if (value !== widget.value) {
        widget.value = value;
    }
}

function setSize(node, size) {
    for (const [index, name] of ["width", "height"].entries()) {
        const widget = findWidget(node, name);
        widget.value = size[index];
        widget.callback?.(widget.value, app.canvas, node);
    }
    node.setDirtyCanvas(true, true);
}

/** What a node with a picture makes of width and height. */
function describeSize(node, width, height) {
    const area = `${width}x${height}`;
    if (!isAnArea(node)) {
        return say("comes_cut", { area });
    }
    const picture = node.graph && pictureBefore(node, PICTURES[node.comfyClass], updateAll);
    if (!picture) {
        return say("comes_about", { area });
    }
    const [wide, high] = sizeOfArea(picture, width * height);
    return say("comes_out", { width: wide, height: high, area });
}

function addHelper(node) {
    const hasPicture = node.comfyClass in PICTURES;
    const content = addPanel(node, "lightx2v_size", { height: hasPicture ? 96 : 80, width: 300 });
    const buttons = PRESETS.map((size) => button(size.join("x"), "", () => setSize(node, size)));
    const size = muted();
    // One line: what does not fit is in its title.
    Object.assign(size.style, { whiteSpace: "nowrap", overflow: "hidden", textOverflow: "ellipsis", flex: "none" });
    const length = muted();
    const grid = element("div", { style: { display: "grid", gridTemplateColumns: "repeat(3, 1fr)", gap: "4px" } }, ...buttons);
    content.append(grid, ...(hasPicture ? [size] : []), length);

    function update() {
        const [width, height, frames] = ["width", "height", "num_frames"].map((name) => findWidget(node, name).value);
        PRESETS.forEach((preset, index) => {
            const isCurrent = preset[0] === width && preset[1] === height;
            buttons[index].style.borderColor = isCurrent ? "var(--input-text, #ddd)" : "var(--border-color, #4e4e4e)";
            buttons[index].title = isAnArea(node) ? say("set_area", { size: preset.join("x") }) : say("set_size");
        });
        size.textContent = size.title = hasPicture ? describeSize(node, width, height) : "";
        length.textContent = say("video_length", { frames, seconds: (frames / FRAME_RATE).toFixed(1), rate: FRAME_RATE });
    }

    updates.set(node, update);
    onNodeEvent(node, "onRemoved", () => updates.delete(node));
    onWidgetChange(node, (widget) => {
        snap(widget);
        update();
    });
    onNodeEvent(node, "onConfigure", update);
    onNodeEvent(node, "onConnectionsChange", update);
    update();
}

app.registerExtension({
    name: "lightx2v.sizeHelper",
    setup() {
        api.addEventListener("graphChanged", updateAll);
    },
    nodeCreated(node) {
        if (NODES.includes(node.comfyClass)) {
            addHelper(node);
        } else if (PICTURE_NODES.includes(node.comfyClass)) {
            onWidgetChange(node, updateAll);
        }
    },
    afterConfigureGraph() {
        forgetPictures();
        updateAll();
    },
});
