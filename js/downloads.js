// Getting the weights: the published variants with their sizes, one button each, and the progress of the download.

import { app } from "../../scripts/app.js";
import { COLORS, button, element, fetchJson, muted, postJson } from "./api.js";

const POLL_MS = 1000;
const gigabytes = (bytes) => `${(bytes / 1e9).toFixed(1)} GB`;

// The section on the page, and the timer of the one loop that follows a download, on the page or not.
let section;
let timer;

/** A section that lists what can be downloaded; `onArrival` is called when a download has succeeded. */
export function describeDownloads(isOpen, onArrival) {
    const content = element("div", {}, muted("Looking ..."));
    const title = element("summary", { style: { cursor: "pointer", fontWeight: "600", padding: "7px 0" } }, "Get the weights");
    section = { content, onArrival };
    refresh();
    return element("details", { open: isOpen }, title, content);
}

async function refresh(wasRunning = false) {
    const { content, onArrival } = section;
    try {
        const { variants, progress } = await fetchJson("downloads");
        content.replaceChildren(...(progress.is_running ? [describeProgress(progress)] : [...describeEnd(progress), ...variants.map(describeVariant)]));
        clearTimeout(timer);
        if (progress.is_running) {
            timer = setTimeout(() => refresh(true), POLL_MS);
        } else if (wasRunning && progress.is_complete) {
            // The loaders' lists are read anew, and with them the plan lines.
            await app.refreshComboInNodes();
            onArrival();
        }
    } catch (error) {
        content.replaceChildren(muted(`No answer: ${error.message}`));
    }
}

async function send(name) {
    try {
        await postJson("download", { variant: name });
        await refresh(true);
    } catch (error) {
        section.content.prepend(muted(error.message));
    }
}

function describeVariant(variant) {
    const text = element(
        "div",
        { style: { flex: "1" } },
        element("div", {}, `${variant.name}, ${gigabytes(variant.num_bytes)}`),
        muted(variant.summary),
    );
    const start = button("Download", `Fetch ${variant.name} into the models folder`, () => send(variant.name));
    return element("div", { style: { display: "flex", gap: "8px", alignItems: "start", padding: "5px 0" } }, text, start);
}

function describeProgress(progress) {
    const bar = element("progress", { max: progress.num_bytes || 1, value: progress.done_bytes, style: { width: "100%" } });
    const amount = `${progress.name}: ${gigabytes(progress.done_bytes)} of ${gigabytes(progress.num_bytes)}`;
    const stop = button("Stop", "Stop; what has arrived is kept", () => send(""));
    return element("div", {}, element("div", {}, amount), bar, muted(progress.what), stop);
}

function describeEnd(progress) {
    if (progress.is_complete) {
        return [element("div", { style: { color: COLORS.ok } }, `The download of ${progress.name} is complete.`)];
    }
    return progress.problem ? [element("div", { style: { color: COLORS.warn, overflowWrap: "anywhere" } }, progress.problem)] : [];
}
