// How much of a LoRA applies to the loader's transformer, on its node, before anything is queued.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { COLORS, answeredPanels, fetchJson, headline, lines, muted, onNodeEvent, onWidgetChange } from "./api.js";
import { getWeightsButton } from "./doctor.js";
import { splitSentence } from "./sentence.js";
import { say } from "./texts.js";
import { LOADERS, describeLora, isPutOnBefore, isSwitchedOff, isWithoutStrength } from "./graph.js";

const NODE = "LightX2VLora";

const { add, refreshSoon, refreshAll } = answeredPanels((node) => {
    if (isSwitchedOff(node)) {
        return { text: say("lora_off") };
    }
    const question = node.graph && describeLora(node);
    if (!question) {
        return { text: say("lora_connect") };
    }
    const [isTwice, isZero] = [isPutOnBefore(node), isWithoutStrength(node)];
    return { question: [question, isTwice, isZero], answer: () => answer(question, isTwice, isZero) };
});

async function answer(question, isTwice, isZero) {
    const line = await fetchJson("lora", question);
    if (line.ok && isZero) {
        return [muted(say("lora_zero"))];
    }
    if (line.ok && isTwice) {
        return [headline(COLORS.warn, say("lora_twice"), line.sentence), ...lines(line.sentence, line.sentence)];
    }
    if (line.ok || line.waits) {
        return [wrapped(muted(line.sentence))];
    }
    const [advice, rest] = line.is_absent ? describeAbsence(line, question.lora) : splitSentence(line.sentence);
    return [headline(COLORS.missing, advice, line.sentence), ...(line.is_published ? [getWeightsButton(question.lora)] : []), ...lines(rest, line.sentence)];
}

/** What is missing, and what can be done beside the button. */
function describeAbsence({ sentence, choices }, name) {
    const help = choices ? say("choose_one", { names: choices }) : say("absent_help", { folder: "models/loras" });
    // The one entry of an empty list says what to do, and is no name.
    return name.startsWith("none found") ? splitSentence(sentence) : [say("absent", { name }), help];
}

function wrapped(shown) {
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
        add(node, "lightx2v_lora", { height: 112, width: 340 });
        onNodeEvent(node, "onConnectionsChange", refreshSoon);
        onWidgetChange(node, refreshSoon);
        refreshSoon();
    },
    afterConfigureGraph: refreshSoon,
    // A file may have arrived, though the question is the same.
    refreshComboInNodes: refreshAll,
});
