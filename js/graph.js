// Follow links in the graph: what a loader is connected to, and the size its sampler will make.

import { app } from "../../scripts/app.js";

const REROUTE = "Reroute";
const BYPASSED = [2, 4];
// More links than one follows in any graph: a way that is longer goes in circles.
const MOST_LINKS = 1000;
// Widgets of a node that makes a latent: its frames, and how many at once. Others of ours and of ComfyUI have no frames.
const FRAMES = ["num_frames", "length"];
const BATCH = "batch_size";
// What a latent of one frame may be made of instead of widgets: a latent or a picture of another size.
const MADE_OF = ["LATENT", "IMAGE", "MASK", "VIDEO"];
// What ComfyUI's own nodes round a size down to: pixels of a latent's, and frames beyond the first. Around its samplers
// the model fills up what is no whole patch.
const LATENT_PIXELS = 8;
const LATENT_FRAMES = 4;
const PATCH_PIXELS = 16;
export const LOADERS = { LightX2VLoadCheckpoint: "checkpoint", LightX2VLoadTransformer: "transformer" };
// Widgets of a loader that say which the two experts of Wan2.2 are.
const PAIR = ["second_expert", "expert"];
const GPUS = "LightX2VGPUs";
export const OFFLOAD = "LightX2VOffload";
const OWN_SAMPLER = "LightX2VSampler";
// Nodes that put pictures into a condition -> their inputs for them.
export const PICTURES = {
    LightX2VImageToVideo: ["start_image", "end_image"],
    WanImageToVideo: ["start_image"],
    WanFirstLastFrameToVideo: ["start_image", "end_image"],
};
// Nodes that make a condition of nothing but a text, and those of ComfyUI that pass on what is in one.
const TEXTS = ["LightX2VTextEncode", "CLIPTextEncode"];
const PASSES_ON = /^Conditioning(Combine|Concat|Average|SetArea\w*|SetMask|SetTimestepRange|SetProperties\w*|ZeroOut)$/;
// Choice of a node whose width times height are an area: the video has the picture's shape.
export const FROM_PICTURE = "from the picture";
// Sampler -> its input for the latent.
const SAMPLERS = {
    [OWN_SAMPLER]: "latent",
    KSampler: "latent_image",
    KSamplerAdvanced: "latent_image",
    SamplerCustom: "latent_image",
    SamplerCustomAdvanced: "latent_image",
};
// Node that puts a LoRA on a transformer -> its widgets for the file, the strength and the expert.
const LORAS = {
    LightX2VLora: ["lora", "strength", "expert"],
    LoraLoaderModelOnly: ["lora_name", "strength_model"],
    LoraLoader: ["lora_name", "strength_model"],
};
// What the route takes, and what fits into the line of a request.
const MOST_LORAS = 64;
const MOST_CHARACTERS = 6000;
// Nodes of ComfyUI itself that load a part of a model.
const HOST_LOADERS = ["CLIPLoader", "CLIPVisionLoader", "LoraLoader", "LoraLoaderModelOnly", "UNETLoader", "VAELoader"];
const FILE = /\.(safetensors|sft|pth|pt|ckpt|bin|gguf)$/i;
// What a loader's transformer travels as: itself, and in a guider.
const TRAVELS_AS = ["MODEL", "GUIDER"];
const DECODER = "LightX2VDecode";
/** Nodes whose widgets or links change a plan. */
export const WATCHED = [
    ...Object.keys(LOADERS), OFFLOAD, GPUS, ...Object.keys(LORAS), ...Object.keys(SAMPLERS), DECODER,
];
/** What is known of the size of a video before the run. */
export const SIZE = {
    NONE: "no latent is connected",
    KNOWN: "known",
    AREA: "about how many pixels",
    IN_RUN: "a node makes it in the run",
    LACKS: "what gives it is muted",
};

// Links from and to the edge of a subgraph have these instead of a node's id, in newer frontends as texts.
const SUBGRAPH_INPUT = -10;
const SUBGRAPH_OUTPUT = -20;

const linkOf = (graph, id) => (id == null ? undefined : graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id]);

/** The node that stands for a subgraph in the graph around it; the first where there are several. */
function nodeAround(subgraph) {
    const graphs = [subgraph.rootGraph ?? app.rootGraph ?? app.graph];
    // Graphs are added while they are looked through, each once.
    for (const graph of graphs) {
        for (const node of graph?.nodes ?? []) {
            if (node.subgraph === subgraph) {
                return node;
            }
            if (node.subgraph && !graphs.includes(node.subgraph)) {
                graphs.push(node.subgraph);
            }
        }
    }
    return undefined;
}

/**
 * What an input gets its value from, through reroutes, bypassed nodes and edges of subgraphs: {node, slot} of an output,
 * {node, widget} where a subgraph's own widget gives it, {muted} where that is a node which does not run, or undefined:
 * nothing is linked, what is linked passes nothing on, or it goes in circles.
 */
function originOf(node, slot) {
    let graph = node.graph;
    let link = linkOf(graph, node.inputs?.[slot]?.link);
    // Nodes of the subgraphs that the way has gone into, the innermost last.
    const entered = [];
    let promoted;
    for (let count = 0; link && count < MOST_LINKS; count++) {
        const from = link.origin_slot;
        if (Number(link.origin_id) === SUBGRAPH_INPUT) {
            const around = entered.pop() ?? nodeAround(graph);
            const name = graph.inputs?.[from]?.name;
            const widget = around?.widgets?.find((each) => each.name === name);
            promoted = widget && { node: around, widget };
            graph = around?.graph;
            link = linkOf(graph, around?.inputs?.[from]?.link);
            continue;
        }
        const origin = graph.getNodeById(link.origin_id);
        if (origin?.mode === BYPASSED[0]) {
            return { muted: origin };
        }
        if (origin?.mode === BYPASSED[1] || origin?.type === REROUTE) {
            link = linkOf(graph, origin.inputs?.[passedOn(origin, from)]?.link);
            continue;
        }
        const inside = origin?.subgraph && linkOf(origin.subgraph, origin.subgraph.outputs?.[from]?.linkIds?.[0]);
        if (!inside) {
            return origin && { node: origin, slot: from };
        }
        entered.push(origin);
        graph = origin.subgraph;
        link = inside;
    }
    return link ? undefined : promoted;
}

/** The input that a bypassed node passes on at an output, as the editor has it: the one beside it, else the first of its type. */
function passedOn({ inputs = [], outputs = [] }, slot) {
    const type = outputs[slot]?.type;
    const fits = (input) => input !== undefined && (input.type === type || [input.type, type].includes("*"));
    const exact = inputs.findIndex((input) => input.type === type);
    return fits(inputs[slot]) ? slot : exact < 0 ? inputs.findIndex(fits) : exact;
}

/** The node behind an input, by the input's name; undefined where nothing usable is linked. */
export function inputNode(node, name) {
    const origin = originOf(node, slotOf(node, name));
    return origin?.widget ? undefined : origin?.node;
}

const slotOf = (node, name) => node.inputs?.findIndex((input) => input.name === name) ?? -1;

/** The nodes that an output leads to, into subgraphs and out of them. */
function outputNodes(node, slot, seen = new Set()) {
    const links = node.outputs?.[slot]?.links ?? [];
    return links.flatMap((id) => targetsOf(node.graph, linkOf(node.graph, id), seen));
}

/** Args: seen: links that were followed already, which lead to nothing new. */
function targetsOf(graph, link, seen) {
    if (!link || seen.has(link)) {
        return [];
    }
    seen.add(link);
    if (Number(link.target_id) === SUBGRAPH_OUTPUT) {
        const around = nodeAround(graph);
        return around ? outputNodes(around, link.target_slot, seen) : [];
    }
    const target = graph.getNodeById(link.target_id);
    if (target?.type === REROUTE) {
        return outputNodes(target, 0, seen);
    }
    const inner = target?.subgraph;
    if (inner && !BYPASSED.includes(target.mode)) {
        return (inner.inputs?.[link.target_slot]?.linkIds ?? []).flatMap((id) => targetsOf(inner, linkOf(inner, id), seen));
    }
    return target ? [target] : [];
}

/** The samplers behind an output, also behind nodes that pass the model on, and the LoRAs that these put on it. */
function samplersBehind(node, slot, loras = [], seen = new Set()) {
    return outputNodes(node, slot).flatMap((target) => {
        if (seen.has(target) || target.mode === BYPASSED[0]) {
            return [];
        }
        seen.add(target);
        if (target.type in SAMPLERS) {
            return BYPASSED.includes(target.mode) ? [] : [{ sampler: target, loras }];
        }
        const carried = [...loras, ...lorasOf(target)];
        const slots = (target.outputs ?? []).map((output, index) => (TRAVELS_AS.includes(output.type) ? index : -1));
        return slots.filter((index) => index >= 0).flatMap((index) => samplersBehind(target, index, carried, seen));
    });
}

/** The LoRA that a node puts on a transformer, if it does. */
function lorasOf(node) {
    if (!(node.type in LORAS) || BYPASSED.includes(node.mode)) {
        return [];
    }
    const [file, strength, expert] = LORAS[node.type].map((name) => widgetValue(node, name));
    return file && strength !== 0 ? [{ file, expert }] : [];
}

/** The loader that a node's transformer comes from, through whatever passes it on. */
function loaderBehind(node, seen = new Set()) {
    const input = node.inputs?.find((each) => each.type === "MODEL");
    const origin = input && !seen.has(node) ? inputNode(node, input.name) : undefined;
    return !origin || origin.type in LOADERS ? origin : loaderBehind(origin, seen.add(node));
}

export const isSwitchedOff = (node) => BYPASSED.includes(node.mode);

/** Whether a LoRA's strength is 0, with which nothing of it is computed. */
export const isWithoutStrength = (node) => widgetValue(node, LORAS[node.type][1]) === 0;

/** Whether a node before this one puts the same file on the same expert of the transformer. */
export function isPutOnBefore(node) {
    const [own] = lorasOf(node);
    return own !== undefined && lorasBefore(node).some((other) => other.file === own.file && overlap(own, other));
}

const overlap = ({ expert: one = "both" }, { expert: other = "both" }) => one === other || [one, other].includes("both");

/** The LoRAs that nodes before this one put on its transformer. */
function lorasBefore(node, seen = new Set()) {
    const input = node.inputs?.find((each) => each.type === "MODEL");
    const origin = input && !seen.has(node) ? inputNode(node, input.name) : undefined;
    return origin ? [...lorasOf(origin), ...lorasBefore(origin, seen.add(node))] : [];
}

/** Parameters of GET /lightx2v/lora for a LoRA node; undefined where no loader or file is known. */
export function describeLora(node) {
    const loader = loaderBehind(node);
    const lora = widgetValue(node, "lora");
    const lora_expert = widgetValue(node, "expert");
    const given = loader && { ...widgetValues(loader, [LOADERS[loader.type], "precision", ...PAIR]), lora, lora_expert };
    return given?.lora && given[LOADERS[loader.type]] ? dropMissing(given) : undefined;
}

/** All nodes that take part in a run, of a graph and of the subgraphs in it, each once. */
function activeNodes(graph, seen = new Set()) {
    if (!graph || seen.has(graph)) {
        return [];
    }
    seen.add(graph);
    const active = (graph.nodes ?? []).filter((node) => !BYPASSED.includes(node.mode));
    return active.flatMap((node) => [node, ...activeNodes(node.subgraph, seen)]);
}

/**
 * The files that loaders name and their lists do not have, and `asked` where one names it. Returns {names, own,
 * usesPack}: the one that is asked for first, then transformers and LoRAs; which the pack's own nodes name; and whether
 * there are such nodes.
 */
export function missingFiles(asked) {
    const nodes = activeNodes(app.rootGraph ?? app.graph);
    const found = nodes.flatMap((node) => {
        const isOwn = node.type.startsWith("LightX2V");
        const main = [LOADERS[node.type], LORAS[node.type]?.[0], node.type in LOADERS && PAIR[0]];
        const widgets = isOwn || HOST_LOADERS.includes(node.type) ? node.widgets ?? [] : [];
        return widgets.flatMap((widget) => {
            const name = widgetValue(node, widget.name);
            const { values } = widget.options ?? {};
            const listed = typeof values === "function" ? values(widget, node) : values;
            const isFile = typeof name === "string" && (FILE.test(name) || widget.name === LOADERS[node.type]);
            const isMissing = isFile && Array.isArray(listed) && !listed.includes(name);
            return isMissing || (isFile && name === asked) ? [{ name, isOwn: isOwn && isMissing, isMain: main.includes(widget.name) }] : [];
        });
    });
    const rank = ({ name, isMain }) => (name === asked ? 0 : isMain ? 1 : 2);
    found.sort((one, other) => rank(one) - rank(other));
    const names = (files) => [...new Set(files.map(({ name }) => name))];
    return {
        names: names(found),
        own: names(found.filter(({ isOwn }) => isOwn)),
        usesPack: nodes.some(({ type }) => type.startsWith("LightX2V")),
    };
}

/** Let loaders that name a file which is not there take what came in its place: {new: old}. */
export function takeInstead(instead) {
    for (const node of activeNodes(app.rootGraph ?? app.graph).filter(({ type }) => type in LOADERS)) {
        for (const widget of node.widgets ?? []) {
            const { values } = widget.options ?? {};
            const taken = Object.keys(instead).find((each) => instead[each] === widget.value);
            if (taken && Array.isArray(values) && values.includes(taken) && !values.includes(widget.value)) {
                widget.value = taken;
                widget.callback?.(taken, app.canvas, node);
            }
        }
    }
}

const dropMissing = (values) => Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined));

/** The value a widget will have in the run, a linked primitive's included; undefined where another node makes it. */
export const widgetValue = (node, name) => valueOf(node, name).value;

/** {value} of a widget as the prompt will have it; {isMade: true} where a node makes it in the run; {isMuted: true}. */
function valueOf(node, name, seen = new Set()) {
    const slot = slotOf(node, name);
    const origin = node.inputs?.[slot]?.link == null || seen.has(node) ? undefined : originOf(node, slot);
    if (origin?.muted) {
        return { isMuted: true };
    }
    if (!origin) {
        return { value: node.widgets?.find((widget) => widget.name === name)?.value };
    }
    if (origin.widget) {
        return { value: origin.widget.value };
    }
    const [given] = origin.node.widgets ?? [];
    return given && origin.node.type.startsWith("Primitive") ? valueOf(origin.node, given.name, seen.add(node)) : { isMade: true };
}

function widgetValues(node, names) {
    return Object.fromEntries(names.map((name) => [name, widgetValue(node, name)]));
}

/** The loader that a loader or offload node's plan is about. */
export function findLoader(node) {
    return node.type in LOADERS ? node : outputNodes(node, 0).find((target) => target.type in LOADERS);
}

/**
 * Parameters of GET /lightx2v/plan for a loader, and what the graph says of the size: {parameters, size, lacks,
 * numLoras, numCounted}. `size` is one of SIZE; with IN_RUN and LACKS the parameters have a size of another sampler or
 * none. `lacks` is {input, node}: which input of which node what is muted gives.
 */
export function describeRun(loader) {
    const found = samplersBehind(loader, 0).map(({ sampler, loras }) => ({ ...describeClip(sampler), loras }));
    const largest = found.reduce((best, each) => (best && pixels(best) >= pixels(each) ? best : each), undefined) ?? { size: SIZE.NONE };
    const { size, lacks, loras = [], ...clip } = found.find((each) => each.lacks) ?? largest;
    const counted = numbered(loras);
    const parameters = {
        ...widgetValues(loader, [LOADERS[loader.type], "precision", "engine", "attention", "compile", ...PAIR]),
        ...describeOffload(inputNode(loader, "offload")),
        ...describeGpus(inputNode(loader, "gpus")),
        ...clip,
        ...counted.parameters,
    };
    if (loader.type === "LightX2VLoadCheckpoint") {
        parameters.uses_text_encoder = isUsed(loader, 1);
        parameters.uses_vae = isUsed(loader, 2);
    }
    const isMade = !lacks && found.some((each) => each.size === SIZE.IN_RUN);
    return { parameters: dropMissing(parameters), size: isMade ? SIZE.IN_RUN : size, lacks, numLoras: loras.length, numCounted: counted.count };
}

function describeOffload(node) {
    if (node?.type !== OFFLOAD) {
        return {};
    }
    return { offload: widgetValue(node, "mode"), ...widgetValues(node, ["vram_budget_gib", "vae_tiling"]) };
}

function describeGpus(node) {
    return node?.type === GPUS ? widgetValues(node, ["gpus"]) : {};
}

/** Whether width and height of a node say no more than how many pixels a video has. */
export const isAnArea = (node) => (node?.comfyClass ?? node?.type) in PICTURES && widgetValue(node, "size") === FROM_PICTURE;

function describeClip(sampler) {
    const hasOne = hasPicture(conditionOf(sampler) ?? conditionOf(inputNode(sampler, "guider")));
    const has_picture = hasOne === undefined ? undefined : Number(hasOne);
    const decoder = outputNodes(sampler, 0).find((node) => node.type === DECODER);
    const tiling = decoder && widgetValue(decoder, "tiling");
    // The decode node's own choice wins unless it is auto.
    const choice = tiling && tiling !== "auto" ? { vae_tiling: tiling } : {};
    // A sampler of ComfyUI has steps and cfg of the user's own choice.
    const has_own_sampler = sampler.type === OWN_SAMPLER ? undefined : 1;
    // Only ours has a shift and high_steps, which the model is distilled for.
    const sampling = widgetValues(sampler, sampler.type === OWN_SAMPLER ? ["steps", "shift", "high_steps"] : ["steps"]);
    return { ...sizeOf(sampler), ...sampling, has_own_sampler, has_picture, ...choice };
}

/** The size of what a sampler gets: {size, width, height, frames, batch}, without numbers where they are not known. */
function sizeOf(sampler, seen = new Set()) {
    const input = SAMPLERS[sampler.type];
    const { node: latent, muted } = originOf(sampler, slotOf(sampler, input)) ?? {};
    if (muted) {
        return lacking(sampler, input);
    }
    if (!latent) {
        return { size: SIZE.NONE };
    }
    if (latent.type in SAMPLERS && !seen.has(latent)) {
        // It goes on with what another one has begun.
        return sizeOf(latent, seen.add(sampler));
    }
    const frames = FRAMES.find((name) => hasInput(latent, name));
    const names = ["width", "height", ...(frames ? [frames] : []), ...(hasInput(latent, BATCH) ? [BATCH] : [])];
    const values = Object.fromEntries(names.map((name) => [name, valueOf(latent, name)]));
    const lost = names.find((name) => values[name].isMuted);
    if (lost) {
        return lacking(latent, lost);
    }
    const isOfOther = !frames && latent.inputs?.some(({ type, link }) => MADE_OF.includes(type) && link != null);
    if (isOfOther || !hasInput(latent, "width") || !hasInput(latent, "height") || names.some((name) => values[name].isMade)) {
        return { size: SIZE.IN_RUN };
    }
    const exact = ["width", "height"].map((name) => rounded(latent, values[name].value, LATENT_PIXELS));
    const [width, height] = exact.map((value) => (sampler.type === OWN_SAMPLER ? value : Math.ceil(value / PATCH_PIXELS) * PATCH_PIXELS));
    // With the aspect of a picture the pixels are about as many.
    const size = isAnArea(latent) || String([width, height]) !== String(exact) ? SIZE.AREA : SIZE.KNOWN;
    const length = frames ? 1 + rounded(latent, values[frames].value - 1, LATENT_FRAMES) : 1;
    return { size, width, height, frames: length, batch: values[BATCH]?.value };
}

const hasInput = (node, name) => [...(node.widgets ?? []), ...(node.inputs ?? [])].some((each) => each.name === name);
const lacking = (node, input) => ({ size: SIZE.LACKS, lacks: { input, node: node.title ?? node.type } });

/** What a node makes of a size: ours refuse one that is no multiple. */
const rounded = ({ type }, value, multiple) => (type.startsWith("LightX2V") ? value : Math.floor(value / multiple) * multiple);

/** Whether a node may be where a size comes from: it makes a latent, or a number. */
export const givesSize = ({ type, outputs = [] }) => type?.startsWith("Primitive") || outputs.some((output) => output.type === "LATENT");

const conditionOf = (node) => node && (inputNode(node, "conditioning") ?? inputNode(node, "positive"));

/** Whether a node's condition has a picture in it; undefined where nobody knows what a node makes of it. */
function hasPicture(node, found = new Map()) {
    if (!node || TEXTS.includes(node.type)) {
        return node && false;
    }
    if (found.has(node)) {
        return found.get(node);
    }
    // Of one that leads back to itself.
    found.set(node, undefined);
    const before = (node.inputs ?? [])
        .filter(({ type, name }) => type === "CONDITIONING" && name !== "negative")
        .map(({ name }) => hasPicture(inputNode(node, name), found));
    const parts = [Boolean(PICTURES[node.type]?.some((name) => inputNode(node, name))), ...before];
    const isKnown = (node.type in PICTURES || PASSES_ON.test(node.type)) && !parts.includes(undefined);
    found.set(node, parts.includes(true) || (isKnown ? false : undefined));
    return found.get(node);
}

/** Parameters for as many LoRAs as a request takes, and how many these are. */
function numbered(loras) {
    const parameters = {};
    let count = 0;
    for (const { file, expert } of loras.slice(0, MOST_LORAS)) {
        const more = dropMissing({ [`lora_${count + 1}`]: file, [`lora_${count + 1}_expert`]: expert });
        if (String(new URLSearchParams({ ...parameters, ...more })).length > MOST_CHARACTERS) {
            break;
        }
        Object.assign(parameters, more);
        count += 1;
    }
    return { parameters, count };
}

function pixels({ width = 0, height = 0, frames = 0, batch = 1, steps = 0, has_own_sampler = 0 }) {
    // SamplerCustom has its steps from another node.
    const count = steps || has_own_sampler;
    return width * height * frames * batch * count || count;
}

const isUsed = (node, slot) => (node.outputs[slot].links?.length ? 1 : 0);
