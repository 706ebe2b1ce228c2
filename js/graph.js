// Follow links in the graph: what a loader is connected to, and the size its sampler will make.

import { app } from "../../scripts/app.js";

const REROUTE = "Reroute";
const BYPASSED = [2, 4];
// Latent node -> its widgets for width, height, frames, batch.
const SIZES = {
    LightX2VEmptyLatent: ["width", "height", "num_frames", "batch_size"],
    EmptyHunyuanLatentVideo: ["width", "height", "length", "batch_size"],
    // With the aspect of a picture the pixels are about as many.
    LightX2VImageToVideo: ["width", "height", "num_frames", "batch_size"],
    WanImageToVideo: ["width", "height", "length", "batch_size"],
    WanFirstLastFrameToVideo: ["width", "height", "length", "batch_size"],
};
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
const MOST_LORAS = 10;
// Nodes of ComfyUI itself that load a part of a model.
const HOST_LOADERS = ["CLIPLoader", "CLIPVisionLoader", "LoraLoader", "LoraLoaderModelOnly", "UNETLoader", "VAELoader"];
const FILE = /\.(safetensors|sft|pth|pt|ckpt|bin|gguf)$/i;
// What a loader's transformer travels as: itself, and in a guider.
const TRAVELS_AS = ["MODEL", "GUIDER"];
const DECODER = "LightX2VDecode";
/** Nodes whose widgets or links change a plan. */
export const WATCHED = [
    ...Object.keys(LOADERS), OFFLOAD, GPUS, ...Object.keys(LORAS), ...Object.keys(SAMPLERS), DECODER, ...Object.keys(SIZES),
];

// Links from and to the edge of a subgraph have these instead of a node's id, in newer frontends as texts.
const SUBGRAPH_INPUT = -10;
const SUBGRAPH_OUTPUT = -20;

const linkOf = (graph, id) => (id == null ? undefined : graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id]);

/** The node that stands for a subgraph in the graph around it. */
function nodeAround(subgraph) {
    const find = (graph) => {
        for (const node of graph?.nodes ?? []) {
            const found = node.subgraph && (node.subgraph === subgraph ? node : find(node.subgraph));
            if (found) {
                return found;
            }
        }
        return undefined;
    };
    return find(subgraph.rootGraph ?? app.rootGraph ?? app.graph);
}

/**
 * What an input gets its value from, through reroutes and edges of subgraphs: {node, slot} of an output, {node, widget}
 * where a subgraph's own widget gives it, or undefined.
 */
function originOf(node, slot) {
    const link = linkOf(node.graph, node.inputs?.[slot]?.link);
    if (!link) {
        return undefined;
    }
    if (Number(link.origin_id) === SUBGRAPH_INPUT) {
        const around = nodeAround(node.graph);
        const name = node.graph.inputs?.[link.origin_slot]?.name;
        const outside = around && originOf(around, link.origin_slot);
        const widget = around?.widgets?.find((each) => each.name === name);
        return outside ?? (widget && { node: around, widget });
    }
    return resolved(node.graph.getNodeById(link.origin_id), link.origin_slot);
}

function resolved(origin, slot) {
    if (!origin || origin.mode === BYPASSED[0]) {
        return undefined;
    }
    if (origin.mode === BYPASSED[1]) {
        // It passes on what it gets of the same type.
        const type = origin.outputs?.[slot]?.type;
        const passed = origin.inputs?.findIndex((input) => input.type === type) ?? -1;
        return passed < 0 ? undefined : originOf(origin, passed);
    }
    if (origin.type === REROUTE) {
        return originOf(origin, 0);
    }
    const inside = origin.subgraph && linkOf(origin.subgraph, origin.subgraph.outputs?.[slot]?.linkIds?.[0]);
    return inside ? resolved(origin.subgraph.getNodeById(inside.origin_id), inside.origin_slot) : { node: origin, slot };
}

/** The node behind an input, by the input's name; undefined where nothing usable is linked. */
export function inputNode(node, name) {
    const origin = originOf(node, node.inputs?.findIndex((input) => input.name === name) ?? -1);
    return origin?.widget ? undefined : origin?.node;
}

/** The nodes that an output leads to, into subgraphs and out of them. */
function outputNodes(node, slot) {
    const links = node.outputs?.[slot]?.links ?? [];
    return links.flatMap((id) => targetsOf(node.graph, linkOf(node.graph, id)));
}

function targetsOf(graph, link) {
    if (!link) {
        return [];
    }
    if (Number(link.target_id) === SUBGRAPH_OUTPUT) {
        const around = nodeAround(graph);
        return around ? outputNodes(around, link.target_slot) : [];
    }
    const target = graph.getNodeById(link.target_id);
    if (target?.type === REROUTE) {
        return outputNodes(target, 0);
    }
    const inner = target?.subgraph;
    if (inner && !BYPASSED.includes(target.mode)) {
        return (inner.inputs?.[link.target_slot]?.linkIds ?? []).flatMap((id) => targetsOf(inner, linkOf(inner, id)));
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
        const carried = [...loras, ...lorasOf(target)].slice(0, MOST_LORAS);
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

/** All nodes that take part in a run, of a graph and of the subgraphs in it. */
function activeNodes(graph) {
    const active = (graph?.nodes ?? []).filter((node) => !BYPASSED.includes(node.mode));
    return active.flatMap((node) => [node, ...(node.subgraph ? activeNodes(node.subgraph) : [])]);
}

/**
 * The files that loaders name and their lists do not have, and `asked` where one names it. Returns {names, main, own,
 * usesPack}: the one that is asked for first, then transformers and LoRAs; which these are; which the pack's own nodes
 * name; and whether there are such nodes.
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
        main: names(found.filter(({ isMain }) => isMain)),
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
export function widgetValue(node, name) {
    const input = node.inputs?.find((each) => each.name === name);
    if (input?.link == null) {
        return node.widgets?.find((widget) => widget.name === name)?.value;
    }
    const origin = originOf(node, node.inputs.indexOf(input));
    return origin?.widget ? origin.widget.value : origin?.node.type.startsWith("Primitive") ? origin.node.widgets?.[0]?.value : undefined;
}

function widgetValues(node, names) {
    return Object.fromEntries(names.map((name) => [name, widgetValue(node, name)]));
}

/** The loader that a loader or offload node's plan is about. */
export function findLoader(node) {
    return node.type in LOADERS ? node : outputNodes(node, 0).find((target) => target.type in LOADERS);
}

/**
 * Parameters of GET /lightx2v/plan for a loader; `hasSize` says whether the graph gave the size, `isArea` that it gave
 * only about how many pixels.
 */
export function describeRun(loader) {
    const { isArea, ...clip } = samplersBehind(loader, 0)
        .map(({ sampler, loras }) => ({ ...describeClip(sampler), ...numbered(loras) }))
        .reduce((largest, each) => (pixels(each) > pixels(largest) ? each : largest), {});
    const parameters = {
        ...widgetValues(loader, [LOADERS[loader.type], "precision", "engine", "attention", "compile", ...PAIR]),
        ...describeOffload(inputNode(loader, "offload")),
        ...describeGpus(inputNode(loader, "gpus")),
        ...clip,
    };
    if (loader.type === "LightX2VLoadCheckpoint") {
        parameters.uses_text_encoder = isUsed(loader, 1);
        parameters.uses_vae = isUsed(loader, 2);
    }
    return { parameters: dropMissing(parameters), hasSize: clip.width !== undefined, isArea };
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
    const latent = inputNode(sampler, SAMPLERS[sampler.type]);
    const names = SIZES[latent?.type] ?? [];
    const [width, height, frames, batch] = names.map((name) => widgetValue(latent, name));
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
    const isArea = isAnArea(latent);
    return { width, height, frames, batch, isArea, ...sampling, has_own_sampler, has_picture, ...choice };
}

const conditionOf = (node) => node && (inputNode(node, "conditioning") ?? inputNode(node, "positive"));

/** Whether a node's condition has a picture in it; undefined where nobody knows what a node makes of it. */
function hasPicture(node, seen = new Set()) {
    if (!node || TEXTS.includes(node.type)) {
        return node && false;
    }
    const before = (node.inputs ?? [])
        .filter(({ type, name }) => type === "CONDITIONING" && name !== "negative")
        .map(({ name }) => (seen.has(node) ? undefined : hasPicture(inputNode(node, name), new Set([...seen, node]))));
    const found = [Boolean(PICTURES[node.type]?.some((name) => inputNode(node, name))), ...before];
    const isKnown = (node.type in PICTURES || PASSES_ON.test(node.type)) && !found.includes(undefined);
    return found.includes(true) || (isKnown ? false : undefined);
}

const numbered = (loras) => Object.fromEntries(
    loras.flatMap(({ file, expert }, index) => [[`lora_${index + 1}`, file], [`lora_${index + 1}_expert`, expert]]),
);

function pixels({ width = 0, height = 0, frames = 0, batch = 1, steps = 0, has_own_sampler = 0 }) {
    // SamplerCustom has its steps from another node.
    const count = steps || has_own_sampler;
    return width * height * frames * batch * count || count;
}

const isUsed = (node, slot) => (node.outputs[slot].links?.length ? 1 : 0);
