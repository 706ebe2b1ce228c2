// The plan line: what the chosen checkpoint is, what will run it, and whether it fits, before anything is queued.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { COLORS, MUTED, answeredPanels, element, fetchJson, formatSeconds, gib, headline, lines, muted, onNodeEvent, onWidgetChange } from "./api.js";
import { getWeightsButton } from "./doctor.js";
import { firstOf, splitSentence } from "./sentence.js";
import { joined, say } from "./texts.js";
import { LOADERS, OFFLOAD, SIZE, WATCHED, describeRun, findLoader, givesSize } from "./graph.js";

const LONG_SECONDS = 3600;

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
        throw error.isAway ? error : new Error(say("no_plan", { problem: error.message }));
    }
}

/** Return the rows of a loader's panel for an answer of /lightx2v/plan: one verdict, then what it rests on. */
function describePlan(plan, run) {
    const { parameters } = run;
    const facts = describeFacts(plan, run);
    if (plan.waits_for) {
        // The LoRA's own node says it; one of another pack may not.
        const [advice] = splitSentence(plan.sentence);
        return [headline(MUTED, say("waiting_for_lora", { name: plan.waits_for }), plan.sentence), ...lines(advice, plan.sentence)];
    }
    if (!plan.ok) {
        const [advice, rest] = plan.is_absent ? describeAbsence(plan, parameters) : describeProblem(plan);
        const help = plan.is_absent || plan.missing.length ? [getWeightsButton(plan.absent || parameters.checkpoint)] : [];
        return [headline(COLORS.missing, advice, plan.sentence), ...help, ...lines(firstOf(rest), plan.sentence), ...facts];
    }
    if (run.size === SIZE.LACKS) {
        return [headline(COLORS.warn, say("gets_nothing", run.lacks)), ...facts];
    }
    const sayings = [...(run.numCounted < run.numLoras ? [say("loras_left", { count: run.numCounted, all: run.numLoras })] : []), ...plan.warnings, ...plan.missing];
    const isSlow = plan.seconds !== null && plan.seconds > LONG_SECONDS;
    const isOpen = run.size === SIZE.IN_RUN;
    const color = sayings.length || isSlow ? COLORS.warn : isOpen ? COLORS.note : COLORS.ok;
    const shown = sayings.flatMap((sentence) => lines(splitSentence(sentence)[0], sentence));
    const verdict = isOpen ? say("fits_at", sizeOf(parameters)) : say("fits");
    return [headline(color, joined("sentences", [verdict, duration(plan)])), ...shown, ...lines(plan.hint, plan.hint), ...facts];
}

/** Return the rows of an offload node's panel: what it decides, and no more. */
function describeOffload(plan, { parameters }) {
    if (!plan.ok) {
        return [muted(say("see_loader"))];
    }
    const isDefault = parameters.offload === "auto" && !parameters.vram_budget_gib && parameters.vae_tiling === "auto";
    return [muted(whereWeightsRest(plan)), ...(isDefault ? [muted(say("offload_default"))] : [])];
}

/** What is wrong in short, and more about it; of parts that the checkpoint lacks, each. */
function describeProblem({ sentence, missing }) {
    const lacks = missing.length > 1 && sentence.startsWith(missing[0]);
    const [[first, rest], ...others] = (lacks ? missing : [sentence]).map(splitSentence);
    return [joined("sentences", [first, ...others.map(([other]) => other)]), rest];
}

/** What is missing, and what can be done beside the button. */
function describeAbsence({ sentence, absent: name, absent_is_second: isSecond, choices }, { checkpoint }) {
    if (isSecond) {
        return [say("absent_second", { name }), say("absent_second_help")];
    }
    const folder = checkpoint === undefined ? "models/diffusion_models" : "models/lightx2v";
    const help = choices ? say("choose_one", { names: choices }) : say("absent_help", { folder });
    // The one entry of an empty list says what to do, and is no name.
    return [name.startsWith("none found") ? splitSentence(sentence)[0] : say("absent", { name }), help];
}

/** The size that a plan is about, as the texts have it: where none is asked with, the server's own. */
function sizeOf({ width = 832, height = 480, frames = 81 }) {
    return { width, height, length: frames === 1 ? say("one_frame") : say("frames", { count: frames }) };
}

// How a size is said that the graph says so much about.
const SIZE_TEXTS = {
    [SIZE.NONE]: "size_none",
    [SIZE.KNOWN]: "size",
    [SIZE.AREA]: "size_about",
    [SIZE.IN_RUN]: "size_in_run",
    [SIZE.LACKS]: "size_reckoned",
};

/** Return what was found out; nothing where the checkpoint could not be read. */
function describeFacts(plan, { parameters, size: known }) {
    if (!plan.engine) {
        return [];
    }
    const { batch = 1 } = parameters;
    // The verdict names what it holds for.
    const isNamed = known === SIZE.IN_RUN && plan.ok;
    const reckoned = known === SIZE.IN_RUN ? SIZE.LACKS : known;
    const size = [say(SIZE_TEXTS[isNamed ? known : reckoned], sizeOf(parameters)), batch > 1 ? say("videos", { count: batch }) : "", plan.is_tiled ? say("tiled") : ""];
    const facts = [
        joined("facts", size),
        plan.offload ? whereWeightsRest(plan) : "",
        [memory(say("vram"), plan.vram), memory(say("ram"), plan.ram)].filter(Boolean).join(" \u00b7 "),
        // Least of all, where there is something to say.
        plan.warnings.length + plan.missing.length || !plan.ok ? "" : joined("facts", [plan.detected, countLoras(plan.loras.length)]),
    ];
    const title = [plan.detected, say("engine", { engine: plan.engine, backends: joined("facts", [...new Set([plan.attention, plan.matmul])]) }), ...plan.reasons, ...plan.loras];
    return [element("div", { title: title.join("\n") }, ...facts.filter(Boolean).map((fact) => muted(fact)))];
}

function whereWeightsRest(plan) {
    const { num_blocks: blocks, resident_blocks: kept } = plan;
    const name = plan.offload === "none" && !plan.vram ? "rests_none_cpu" : `rests_${plan.offload}${kept && plan.offload !== "phase" ? "_kept" : ""}`;
    return say(name, { kept, blocks });
}

function countLoras(count) {
    return count === 0 ? "" : count === 1 ? say("one_lora") : say("loras", { count });
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
        if (!WATCHED.includes(type) && !givesSize(node)) {
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
