// How much of a LoRA applies to the loader's transformer, on its node, before anything is queued.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { COLORS, addPanel, debounce, element, fetchJson, muted, onNodeEvent, onWidgetChange } from "./api.js";
import { LOADERS, describeLora } from "./graph.js";

const NODE = "LightX2VLora";
const DELAY_MS = 80;

// Node -> {content, asked}: the panel to fill and the question it answers.
const lines = new Map();

const refreshSoon = debounce(DELAY_MS, () => {
    for (const [node, line] of lines) {
        refresh(node, line);
    }
});

async function refresh(node, line) {
    const question = node.graph && describeLora(node);
    const asked = JSON.stringify(question);
    if (question && asked === line.asked) {
        return;
    }
    line.asked = asked;
    if (!question) {
        line.content.replaceChildren(muted("Connect a LightX2V loader to see how much of the LoRA applies."));
        return;
    }
    let shown;
    try {
        const { ok, sentence } = await fetchJson("lora", question);
        shown = ok ? muted(sentence) : element("div", { style: { color: COLORS.missing } }, sentence);
    } catch (error) {
        shown = element("div", { style: { color: COLORS.warn } }, error.message);
    }
    if (line.asked === asked) {
        shown.style.overflowWrap = "anywhere";
        line.content.replaceChildren(shown);
        node.setDirtyCanvas(true, true);
    }
}

app.registerExtension({
    name: "lightx2v.loraLine",
    setup() {
        api.addEventListener("graphChanged", refreshSoon);
    },
    nodeCreated(node) {
        if (node.comfyClass in LOADERS) {
            onWidgetChange(node, refreshSoon);
        }
        if (node.comfyClass !== NODE) {
            return;
        }
        lines.set(node, { content: addPanel(node, "lightx2v_lora", { height: 84, width: 340 }) });
        onNodeEvent(node, "onRemoved", () => lines.delete(node));
        onNodeEvent(node, "onConnectionsChange", refreshSoon);
        onWidgetChange(node, refreshSoon);
        refreshSoon();
    },
    afterConfigureGraph: refreshSoon,
    refreshComboInNodes: refreshSoon,
});
