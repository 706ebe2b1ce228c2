// The plan line: what the chosen checkpoint is, what will run it, and whether it fits, before anything is queued.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { COLORS, answeredPanels, button, element, fetchJson, formatSeconds, gib, muted, onNodeEvent, onWidgetChange } from "./api.js";
import { openDoctor } from "./doctor.js";
import { LOADERS, OFFLOAD, WATCHED, describeRun, findLoader } from "./graph.js";

const ENGINE_NAMES = { lightx2v: "LightX2V", portable: "portable engine" };
const BASES = { measured: "measured", scaled: "scaled from your last run", estimate: "estimate", kernels: "from kernels measured here" };

const { add, refreshSoon, refreshAll } = answeredPanels((node) => {
    const loader = node.graph && findLoader(node);
    if (!loader) {
        return { text: node.type === OFFLOAD ? "Connect this to a loader to see its plan." : "" };
    }
    const run = describeRun(loader);
    return { question: run, answer: () => answer(run) };
});

async function answer(run) {
    try {
        return describePlan(await fetchJson("plan", run.parameters), run);
    } catch (error) {
        return [headline(COLORS.warn, `No plan: ${error.message}`)];
    }
}

function headline(color, text) {
    const dot = element("span", {
        style: { flex: "none", width: "8px", height: "8px", marginTop: "3px", borderRadius: "50%", background: color },
    });
    const sentence = element("span", { style: { flex: "1", overflowWrap: "anywhere" } }, text);
    return element("div", { style: { display: "flex", gap: "6px" } }, dot, sentence);
}

/** Return the rows of a panel for an answer of /lightx2v/plan. */
function describePlan(plan, { parameters, hasSize }) {
    const facts = describeFacts(plan, parameters, hasSize);
    if (!plan.ok) {
        const help = plan.is_absent || plan.missing.length ? [button("Get the weights", "Open the LightX2V doctor", openDoctor)] : [];
        return [headline(COLORS.missing, plan.sentence), ...help, ...facts];
    }
    const sayings = [...plan.warnings, ...plan.missing];
    const color = sayings.length ? COLORS.warn : COLORS.ok;
    const sentences = sayings.map((sentence) => muted(sentence));
    return [headline(color, `${plan.sentence} ${duration(plan)}`), ...facts, ...sentences];
}

/** Return what was found out; nothing where the checkpoint could not be read. */
function describeFacts(plan, { width = 832, height = 480, frames = 81, batch = 1 }, hasSize) {
    if (!plan.engine) {
        return [];
    }
    const size = `${width}x${height}, ${frames} frames${batch > 1 ? `, ${batch} videos` : ""}${hasSize ? "" : " (no size connected)"}`;
    const kept = plan.resident_blocks ? `, ${plan.resident_blocks} blocks resident` : "";
    const offload = plan.offload === "none" ? "no offload" : `${plan.offload} offload${kept}`;
    const backends = [...new Set([plan.attention, plan.matmul])].join(", ");
    const loras = plan.loras.length ? `, ${plan.loras.length} LoRA${plan.loras.length > 1 ? "s" : ""}` : "";
    const facts = [
        `${plan.detected}${loras}`,
        !plan.offload ? "" : `${ENGINE_NAMES[plan.engine]}: ${backends}; ${offload}${plan.is_tiled ? "; tiled decode" : ""}`,
        [need("VRAM", plan.vram), need("RAM", plan.ram), size].filter(Boolean).join(" \u00b7 "),
    ];
    return [element("div", { title: [...plan.reasons, ...plan.loras].join("\n") }, ...facts.filter(Boolean).map((fact) => muted(fact)))];
}

function need(name, bytes) {
    return bytes ? `${name} ${gib(bytes.needed)} of ${gib(bytes.available)} GiB` : "";
}

function duration(plan) {
    if (plan.seconds === null) {
        return "How long it takes is known after the first run.";
    }
    return `Takes ${plan.basis === "measured" ? "" : "about "}${formatSeconds(plan.seconds)} (${BASES[plan.basis]}).`;
}

app.registerExtension({
    name: "lightx2v.planLine",
    setup() {
        // Undo, paste, and nodes of other packs between ours.
        api.addEventListener("graphChanged", refreshSoon);
        // A run leaves measured speeds and other free memory behind.
        api.addEventListener("execution_success", refreshAll);
    },
    nodeCreated(node) {
        const type = node.comfyClass;
        if (!WATCHED.includes(type)) {
            return;
        }
        onWidgetChange(node, refreshSoon);
        onNodeEvent(node, "onConnectionsChange", refreshSoon);
        if (type in LOADERS || type === OFFLOAD) {
            add(node, "lightx2v_plan", { height: 96, width: 340 });
            refreshSoon();
        }
    },
    afterConfigureGraph: refreshSoon,
    refreshComboInNodes: refreshAll,
});
