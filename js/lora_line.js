// How much of a LoRA applies to the loader's transformer, on its node, before anything is queued.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { COLORS, answeredPanels, element, fetchJson, muted, onNodeEvent, onWidgetChange } from "./api.js";
import { say } from "./texts.js";
import { LOADERS, describeLora } from "./graph.js";

const NODE = "LightX2VLora";

const { add, refreshSoon } = answeredPanels((node) => {
    const question = node.graph && describeLora(node);
    if (!question) {
        return { text: say("lora_connect") };
    }
    return { question, answer: () => answer(question) };
});

async function answer(question) {
    try {
        const { ok, sentence } = await fetchJson("lora", question);
        return [said(sentence, ok ? undefined : COLORS.missing)];
    } catch (error) {
        return [said(error.message, COLORS.warn)];
    }
}

function said(sentence, color) {
    const shown = color ? element("div", { style: { color } }, sentence) : muted(sentence);
    shown.style.overflowWrap = "anywhere";
    return shown;
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
        add(node, "lightx2v_lora", { height: 88, width: 340 });
        onNodeEvent(node, "onConnectionsChange", refreshSoon);
        onWidgetChange(node, refreshSoon);
        refreshSoon();
    },
    afterConfigureGraph: refreshSoon,
    refreshComboInNodes: refreshSoon,
});
