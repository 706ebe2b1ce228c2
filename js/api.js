// What the features share: server routes, DOM elements, panels on nodes, the clipboard, changes of the graph.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { language, say } from "./texts.js";

const MARGIN = 6;
export const MUTED = "var(--descrip-text, #999)";
export const COLORS = { ok: "#3fb950", warn: "#d29922", missing: "#f85149", note: "#8b949e" };

/**
 * Return the JSON of GET /lightx2v/<route>; throws an Error with a sentence in the editor's language: the server's, or
 * where it does not answer the pack's own, and then the Error's `isAway` is true.
 */
export async function fetchJson(route, parameters = {}) {
    return requestJson(`${route}?${new URLSearchParams(parameters)}`, {});
}

/** Return the JSON of POST /lightx2v/<route>; throws as fetchJson does. */
export async function postJson(route, body) {
    return requestJson(route, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
}

async function requestJson(address, { headers = {}, ...options }) {
    let text, response;
    try {
        response = await api.fetchApi(`/lightx2v/${address}`, { ...options, headers: { ...headers, "Accept-Language": language() } });
        text = await response.text();
    } catch (cause) {
        // The browser's words are its own, in its own language.
        throw Object.assign(new Error(say("away"), { cause }), { isAway: true });
    }
    let data;
    try {
        data = JSON.parse(text);
    } catch (cause) {
        // Of a server without the pack's routes, or of something between.
        throw Object.assign(new Error(say("no_json", { status: response.status }), { cause }), { isAway: true });
    }
    if (!response.ok) {
        throw new Error(data.error ?? response.statusText);
    }
    return data;
}

/** What a panel shows instead of an answer. */
export const sayUnanswered = (error) => (error.isAway ? error.message : say("no_answer", { problem: error.message }));

/** Call `listener` when ComfyUI is there again after it was away: what it said before may not hold any more. */
export const onReturn = (listener) => api.addEventListener("reconnected", listener);

/** Build a DOM element; `style` and event handlers (onclick ...) are properties like any other. */
export function element(tag, { style = {}, ...properties } = {}, ...children) {
    const built = Object.assign(document.createElement(tag), properties);
    Object.assign(built.style, style);
    built.append(...children);
    return built;
}

export function button(label, title, onclick) {
    const style = {
        padding: "2px 8px",
        border: "1px solid var(--border-color, #4e4e4e)",
        borderRadius: "4px",
        background: "var(--comfy-input-bg, #222)",
        color: "var(--input-text, #ddd)",
        font: "inherit",
        cursor: "pointer",
    };
    return element("button", { type: "button", title, onclick, style }, label);
}

/** A button that copies what `makeText` returns, and says so for a moment. */
export function copyButton(label, makeText) {
    const built = button(label, say("copy_title"), async () => {
        built.textContent = say((await copyText(makeText())) ? "copied" : "not_copied");
        setTimeout(() => (built.textContent = label), 1200);
    });
    return built;
}

/** Copy a text; pages that are not served over https or from localhost have no clipboard and get a selection. */
export async function copyText(text) {
    try {
        await navigator.clipboard.writeText(text);
        return true;
    } catch {
        return copyBySelection(text);
    }
}

function copyBySelection(text) {
    const area = element("textarea", { value: text, style: { position: "fixed", opacity: 0 } });
    app.canvasEl.parentElement.append(area);
    area.select();
    const isCopied = document.execCommand("copy");
    area.remove();
    return isCopied;
}

/**
 * Append a panel of `height` pixels to a node, below its widgets, that no workflow stores; returns the element to fill.
 * The height is fixed, as a node grows with its contents but never shrinks; what is longer scrolls. With `stretch`
 * the panel takes what room the node has. A new node gets at least `width`.
 */
export function addPanel(node, name, { height, width, stretch = false }) {
    const content = element("div", {
        style: {
            display: "flex",
            flexDirection: "column",
            gap: "4px",
            height: stretch ? "100%" : `${height}px`,
            minHeight: `${height}px`,
            padding: "6px 8px",
            boxSizing: "border-box",
            overflow: "auto",
            borderRadius: "6px",
            background: "var(--comfy-input-bg, #222)",
            color: "var(--input-text, #ddd)",
            font: "11px/1.35 var(--font-inter, sans-serif)",
            userSelect: "text",
        },
    });
    const rowHeight = height + 2 * MARGIN;
    const widget = node.addDOMWidget(name, name, content, {
        serialize: false,
        hideOnZoom: false,
        // Newer editors list a node's inputs beside the graph too.
        hideInPanel: true,
        margin: MARGIN,
        getMinHeight: () => rowHeight,
        getMaxHeight: () => (stretch ? undefined : rowHeight),
    });
    // The option keeps it out of prompts, this out of saved workflows.
    widget.serialize = false;
    const size = node.computeSize();
    node.setSize([Math.max(size[0], width), size[1]]);
    return content;
}

export function muted(...children) {
    return element("div", { style: { color: MUTED } }, ...children);
}

/** A text of at most so many lines; what is longer ends with an ellipsis, so that panels do not scroll. */
function clamped(most) {
    return { display: "-webkit-box", WebkitBoxOrient: "vertical", WebkitLineClamp: most, overflow: "hidden", overflowWrap: "anywhere" };
}

/** The first row of a panel: a dot and a sentence. */
export function headline(color, text, title = "") {
    const dot = element("span", {
        style: { flex: "none", width: "8px", height: "8px", marginTop: "3px", borderRadius: "50%", background: color },
    });
    const sentence = element("span", { style: { flex: "1", ...clamped(3) } }, text);
    return element("div", { title: title || text, style: { display: "flex", gap: "6px" } }, dot, sentence);
}

/** A text of at most two lines below it, or nothing; `title` is the whole of it. */
export function lines(text, title) {
    return text ? [element("div", { title, style: { color: MUTED, ...clamped(2) } }, text)] : [];
}

export function debounce(milliseconds, run) {
    let timer;
    return () => {
        clearTimeout(timer);
        timer = setTimeout(run, milliseconds);
    };
}

/** Call `listener` after a widget of this node changed by hand. */
export function onWidgetChange(node, listener) {
    for (const widget of node.widgets ?? []) {
        const original = widget.callback;
        widget.callback = function (...values) {
            const result = original?.apply(this, values);
            listener(widget);
            return result;
        };
    }
}

/** Call `listener` besides whatever this one node does at an event (onRemoved, onExecuted, onConnectionsChange ...). */
export function onNodeEvent(node, event, listener) {
    const original = node[event];
    node[event] = function (...values) {
        const result = original?.apply(this, values);
        listener(...values);
        return result;
    };
}

export function findWidget(node, name) {
    return node.widgets?.find((widget) => widget.name === name);
}

export const gib = (bytes) => (bytes / 2 ** 30).toFixed(1);

/** How far work on the server is, by its `done_bytes` of `num_bytes`. */
export function progressBar(work) {
    return element("progress", { max: work.num_bytes || 1, value: work.done_bytes, style: { width: "100%" } });
}

/** A duration as one reads it, in the editor's language. */
export function formatSeconds(seconds) {
    if (seconds < 100) {
        return say("seconds", { seconds: seconds < 10 ? seconds.toFixed(1) : Math.round(seconds) });
    }
    const minutes = Math.floor(Math.round(seconds) / 60);
    if (minutes < 60) {
        return say("minutes", { minutes, seconds: Math.round(seconds) % 60 });
    }
    return say("hours", { hours: Math.floor(minutes / 60), minutes: minutes % 60 });
}

const ASK_DELAY_MS = 40;

/**
 * Panels that show the server's answer to a question about their node; asked anew whenever the question changes, and when
 * ComfyUI is back after it was away.
 *
 * describe(node) returns {question, answer}, where answer() is a promise of the elements to show or of an Error to say,
 * or {text} to show where there is nothing to ask.
 */
export function answeredPanels(describe) {
    // Node -> {content, asked}: the panel to fill and the question it answers.
    const lines = new Map();

    async function refresh(node, line) {
        const { question, answer, text } = describe(node);
        const asked = question && JSON.stringify(question);
        if (asked && asked === line.asked) {
            return;
        }
        line.asked = asked;
        const shown = asked ? await answer().catch((error) => [headline(COLORS.warn, error.message)]) : [muted(text)];
        if (line.asked === asked) {
            line.content.replaceChildren(...shown);
            node.setDirtyCanvas(true, true);
        }
    }

    const refreshSoon = debounce(ASK_DELAY_MS, () => lines.forEach((line, node) => refresh(node, line)));
    /** Ask again, though the questions are the same. */
    function refreshAll() {
        lines.forEach((line) => (line.asked = undefined));
        refreshSoon();
    }

    onReturn(refreshAll);
    return {
        refreshSoon,
        refreshAll,
        add(node, name, size) {
            lines.set(node, { content: addPanel(node, name, size) });
            onNodeEvent(node, "onRemoved", () => lines.delete(node));
        },
    };
}
