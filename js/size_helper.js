// Size helpers on the nodes that make a latent: presets, whole multiples while typing, and the length in seconds.

import { app } from "../../scripts/app.js";
import { say } from "./texts.js";
import { addPanel, button, element, findWidget, muted, onNodeEvent, onWidgetChange } from "./api.js";

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

function addHelper(node) {
    const content = addPanel(node, "lightx2v_size", { height: 80, width: 300 });
    const buttons = PRESETS.map((size) => button(size.join("x"), say("set_size"), () => setSize(node, size)));
    const length = muted();
    content.append(element("div", { style: { display: "grid", gridTemplateColumns: "repeat(3, 1fr)", gap: "4px" } }, ...buttons), length);

    function update() {
        const [width, height, frames] = ["width", "height", "num_frames"].map((name) => findWidget(node, name).value);
        PRESETS.forEach((size, index) => {
            const isCurrent = size[0] === width && size[1] === height;
            buttons[index].style.borderColor = isCurrent ? "var(--input-text, #ddd)" : "var(--border-color, #4e4e4e)";
        });
        length.textContent = say("video_length", { frames, seconds: (frames / FRAME_RATE).toFixed(1), rate: FRAME_RATE });
    }

    onWidgetChange(node, (widget) => {
        snap(widget);
        update();
    });
    onNodeEvent(node, "onConfigure", update);
    update();
}

app.registerExtension({
    name: "lightx2v.sizeHelper",
    nodeCreated(node) {
        if (NODES.includes(node.comfyClass)) {
            addHelper(node);
        }
    },
});
