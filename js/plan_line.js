// The plan line: what the chosen checkpoint is, what will run it, and whether it fits, before anything is queued.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { COLORS, MUTED, answeredPanels, button, element, fetchJson, formatSeconds, gib, muted, onNodeEvent, onWidgetChange } from "./api.js";
import { openDoctor } from "./doctor.js";
import { unfoldDownloads } from "./downloads.js";
import { say } from "./texts.js";
import { LOADERS, OFFLOAD, WATCHED, describeRun, findLoader } from "./graph.js";

const LONG_SECONDS = 3600;
// A sentence that fits into two lines of the panel, in Latin letters; Chinese characters are twice as wide.
const SHORT_SENTENCE = 90;
const WIDE = /[\u2e80-\uffef]/g;

const getWeights = () => {
    unfoldDownloads();
    openDoctor();
};

const { add, refreshSoon, refreshAll } = answeredPanels((node) => {
    const loader = node.graph && findLoader(node);
    if (!loader) {
        return { text: node.type === OFFLOAD ? say("connect_loader") : "" };
    }
    const run = describeRun(loader);
    const describe = node.type === OFFLOAD ? describeOffload : describePlan;
    return { question: [node.type, run], answer: () => answer(run, describe) };
});

async function answer(run, describe) {
    try {
        return describe(await fetchJson("plan", run.parameters), run);
    } catch (error) {
        return [headline(COLORS.warn, say("no_plan", { problem: error.message }))];
    }
}

function headline(color, text, title = "") {
    const dot = element("span", {
        style: { flex: "none", width: "8px", height: "8px", marginTop: "3px", borderRadius: "50%", background: color },
    });
    const sentence = element("span", { style: { flex: "1", ...clamped(3) } }, text);
    return element("div", { title: title || text, style: { display: "flex", gap: "6px" } }, dot, sentence);
}

/** The style of a text of at most so many lines; what is longer ends with an ellipsis, so that panels do not scroll. */
function clamped(most) {
    return { display: "-webkit-box", WebkitBoxOrient: "vertical", WebkitLineClamp: most, overflow: "hidden", overflowWrap: "anywhere" };
}

/** A sentence of the server in short: what to do, and the rest, which may have lines of its own. */
function splitSentence(sentence) {
    // A file's name says enough; where it lies is in the title.
    const short = sentence.replace(/(?<=^|[\s'"(“（：，。])(?:[A-Za-z]:[\\/]|\/)(?:[^\\/:*?"<>|\n]+[\\/])+(?=[^\\/\s])/g, "");
    const width = short.length + (short.match(WIDE)?.length ?? 0);
    const cut = short.includes("\n") ? short.indexOf("\n") : width > SHORT_SENTENCE ? short.search(/[.:] |[。：]/) + 1 : 0;
    return cut > 0 ? [short.slice(0, cut).replace(/:$/, ".").replace(/：$/, "。"), short.slice(cut).trim()] : [short, ""];
}

/** Return the rows of a loader's panel for an answer of /lightx2v/plan: one verdict, then what it rests on. */
function describePlan(plan, { parameters, hasSize }) {
    const facts = describeFacts(plan, parameters, hasSize);
    if (!plan.ok) {
        const [advice, rest] = plan.is_absent ? describeAbsence(plan.sentence, parameters) : splitSentence(plan.sentence);
        const help = plan.is_absent || plan.missing.length ? [button(say("get_weights"), say("get_weights_title"), getWeights)] : [];
        return [headline(COLORS.missing, advice, plan.sentence), ...help, ...lines(firstOf(rest), plan.sentence), ...facts];
    }
    const sayings = [...plan.warnings, ...plan.missing];
    const isSlow = plan.seconds !== null && plan.seconds > LONG_SECONDS;
    const color = sayings.length || isSlow ? COLORS.warn : COLORS.ok;
    const shown = sayings.flatMap((sentence) => lines(splitSentence(sentence)[0], sentence));
    return [headline(color, `${say("fits")} ${duration(plan)}`), ...shown, ...facts];
}

/** Of a text with lines of its own, such as one a mode, its first sentence; the title has them all. */
function firstOf(text) {
    return text.includes("\n") ? text.split("\n")[0].split(/(?<=\. |。)/)[0] : text;
}

/** Return the rows of an offload node's panel: what it decides, and no more. */
function describeOffload(plan, { parameters }) {
    if (!plan.ok) {
        return [muted(say("see_loader"))];
    }
    const isDefault = parameters.offload === "auto" && !parameters.vram_budget_gib && parameters.vae_tiling === "auto";
    return [muted(whereWeightsRest(plan)), ...(isDefault ? [muted(say("offload_default"))] : [])];
}

/** What is missing, and what can be done beside the button. */
function describeAbsence(sentence, { checkpoint, transformer }) {
    const name = checkpoint ?? transformer;
    const help = say("absent_help", { folder: checkpoint === undefined ? "models/diffusion_models" : "models/lightx2v" });
    // The one entry of an empty list says what to do, and is no name.
    return [name.startsWith("none found") ? splitSentence(sentence)[0] : say("absent", { name }), help];
}

/** A text of at most two lines, or nothing; `title` is the whole of it. */
function lines(text, title) {
    return text ? [element("div", { title, style: { color: MUTED, ...clamped(2) } }, text)] : [];
}

/** Return what was found out; nothing where the checkpoint could not be read. */
function describeFacts(plan, { width = 832, height = 480, frames = 81, batch = 1 }, hasSize) {
    if (!plan.engine) {
        return [];
    }
    const size = [
        say("size", { width, height, frames }),
        batch > 1 ? say("videos", { count: batch }) : "",
        hasSize ? "" : `(${say("no_size")})`,
    ];
    const facts = [
        [...size, plan.is_tiled ? say("tiled") : ""].filter(Boolean).join(" "),
        plan.offload ? whereWeightsRest(plan) : "",
        [memory(say("vram"), plan.vram), memory(say("ram"), plan.ram)].filter(Boolean).join(" \u00b7 "),
        // Least of all, where there is something to say.
        plan.warnings.length + plan.missing.length || !plan.ok ? "" : [plan.detected, plan.loras.length ? say("loras", { count: plan.loras.length }) : ""].filter(Boolean).join(", "),
    ];
    const title = [plan.detected, `${plan.engine}: ${[...new Set([plan.attention, plan.matmul])].join(", ")}`, ...plan.reasons, ...plan.loras];
    return [element("div", { title: title.join("\n") }, ...facts.filter(Boolean).map((fact) => muted(fact)))];
}

function whereWeightsRest(plan) {
    const { num_blocks: blocks, resident_blocks: kept } = plan;
    const name = plan.offload === "none" && !plan.vram ? "rests_none_cpu" : `rests_${plan.offload}${kept && plan.offload !== "phase" ? "_kept" : ""}`;
    return say(name, { kept, blocks });
}

function memory(name, bytes) {
    return bytes ? say("memory", { name, needed: gib(bytes.needed), available: gib(bytes.available) }) : "";
}

function duration(plan) {
    if (plan.seconds === null) {
        return say("takes_unknown");
    }
    const values = { time: formatSeconds(plan.seconds), basis: say(`basis_${plan.basis}`) };
    return say(plan.basis === "measured" ? "takes" : "takes_about", values);
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
            add(node, "lightx2v_plan", { height: type === OFFLOAD ? 48 : 112, width: 340 });
            refreshSoon();
        }
    },
    afterConfigureGraph: refreshSoon,
    refreshComboInNodes: refreshAll,
});
