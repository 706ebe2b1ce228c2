// The doctor: a sidebar tab with what this machine has and lacks, each with a remedy to copy.

import { app } from "../../scripts/app.js";
import { COLORS, button, copyButton, element, fetchJson, muted, postJson } from "./api.js";
import { describeDownloads } from "./downloads.js";
import { describeCheck } from "./verify.js";

const DOCTOR_TAB = "lightx2v-doctor";
const STATES = { ok: "ok", warn: "could be better", missing: "missing" };

function describeItem(item) {
    const dot = element("span", {
        title: STATES[item.state],
        style: { flex: "none", width: "9px", height: "9px", marginTop: "4px", borderRadius: "50%", background: COLORS[item.state] },
    });
    const text = element(
        "div",
        { style: { flex: "1", overflowWrap: "anywhere" } },
        element("div", { style: { fontWeight: "600" } }, item.name),
        muted(item.found),
    );
    if (item.remedy) {
        const remedy = element("div", { style: { flex: "1" } }, item.remedy);
        const style = { display: "flex", gap: "6px", alignItems: "start", marginTop: "3px" };
        text.append(element("div", { style }, remedy, copyButton("Copy", () => item.remedy)));
    }
    if (item.is_checkpoint) {
        text.append(describeCheck(item.name, describeItem));
    }
    return element("div", { style: { display: "flex", gap: "8px", padding: "7px 0" } }, dot, text);
}

function asMarkdown(items) {
    const rows = items.map((item) => `| ${item.name} | ${item.state} | ${item.found} | ${item.remedy} |`);
    return ["| | state | found | remedy |", "|---|---|---|---|", ...rows].join("\n");
}

function measureButton(list, bar) {
    return button("Measure again", "Forget what was found out about kernels: the next run tries and times them", async () => {
        try {
            await postJson("measure_again", {});
            await fill(list, bar);
        } catch (error) {
            list.prepend(`${error.message}`);
        }
    });
}

async function fill(list, bar) {
    list.replaceChildren(muted("Looking ..."));
    bar.replaceChildren();
    try {
        const items = await fetchJson("doctor");
        const hasNone = items.some((item) => item.name === "Checkpoints");
        const downloads = describeDownloads(hasNone, () => fill(list, bar));
        const rows = items.map(describeItem);
        list.replaceChildren(...(hasNone ? [downloads, ...rows] : [...rows, downloads]));
        bar.replaceChildren(
            button("Look again", "Read everything anew", () => fill(list, bar)),
            ...(items.some((item) => item.name === "Measured") ? [measureButton(list, bar)] : []),
            copyButton("Copy as Markdown", () => asMarkdown(items)),
            copyButton("Copy as JSON", () => JSON.stringify(items, null, 2)),
        );
    } catch (error) {
        list.replaceChildren(`No answer: ${error.message}`);
        bar.replaceChildren(button("Look again", "Ask again", () => fill(list, bar)));
    }
}

function render(container) {
    const bar = element("div", { style: { display: "flex", flexWrap: "wrap", gap: "6px", padding: "8px 0" } });
    const list = element("div");
    const style = { height: "100%", overflow: "auto", padding: "12px", boxSizing: "border-box", font: "13px/1.4 var(--font-inter, sans-serif)" };
    container.replaceChildren(
        element("div", { style }, element("div", { style: { fontSize: "16px", fontWeight: "600" } }, "LightX2V doctor"), bar, list),
    );
    fill(list, bar);
}

/** Open the tab. */
export function openDoctor() {
    if (app.extensionManager.sidebarTab.activeSidebarTabId !== DOCTOR_TAB) {
        app.extensionManager.command.execute(`Workspace.ToggleSidebarTab.${DOCTOR_TAB}`);
    }
}

app.registerExtension({
    name: "lightx2v.doctor",
    setup() {
        app.extensionManager.registerSidebarTab({
            id: DOCTOR_TAB,
            icon: "mdi mdi-stethoscope",
            title: "LightX2V",
            tooltip: "LightX2V doctor: what this machine has and lacks",
            type: "custom",
            render,
        });
    },
});
