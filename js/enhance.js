// What the enhancer made of the prompt, on its node; where it made nothing, why, on the node and as a message.

import { app } from "../../scripts/app.js";
import { COLORS, addPanel, element, onNodeEvent } from "./api.js";

const NODE = "LightX2VEnhancePrompt";
const MESSAGE_MS = 15_000;

function show(node, content, texts, warnings) {
    const rows = texts.map((text, index) => {
        const warning = warnings[index];
        const note = warning ? [element("div", { style: { color: COLORS.warn, overflowWrap: "anywhere" } }, warning)] : [];
        return element("div", {}, ...note, element("div", { style: { whiteSpace: "pre-wrap", overflowWrap: "anywhere" } }, text));
    });
    content.replaceChildren(...rows);
    for (const warning of new Set(warnings.filter(Boolean))) {
        app.extensionManager.toast.add({ severity: "warn", summary: node.title, detail: warning, life: MESSAGE_MS });
    }
    node.setDirtyCanvas(true, true);
}

app.registerExtension({
    name: "lightx2v.enhance",
    nodeCreated(node) {
        if (node.comfyClass !== NODE) {
            return;
        }
        const content = addPanel(node, "lightx2v_enhanced", { height: 110, width: 400, stretch: false });
        onNodeEvent(node, "onExecuted", (output) => {
            if (output?.text) {
                show(node, content, output.text, output.warning ?? []);
            }
        });
    },
});
