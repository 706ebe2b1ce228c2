// The doctor: a sidebar tab with a verdict, what there is to do, and everything else that was looked at, folded.

import { app } from "../../scripts/app.js";
import { COLORS, button, copyButton, element, fetchJson, muted, onReturn, postJson, sayUnanswered } from "./api.js";
import { describeDownloads, restButton, unfoldDownloads } from "./downloads.js";
import { missingFiles } from "./graph.js";
import { say } from "./texts.js";
import { NO_CHECKPOINTS, STATES, isProblem, judge } from "./verdict.js";
import { describeCheck } from "./verify.js";

const DOCTOR_TAB = "lightx2v-doctor";
// The part of a remedy that is typed into a terminal, or opened; Chinese has no blank after its colon.
const COMMAND = /(?:^|[:;] |[：；])((?:python|pip|git|sudo|apt)\S* .*|https?:\S+)$/;

// The tab's contents, where it was opened; the verdict in it, and the findings that it is about.
let tab;
let verdict;

function dot(state) {
    const style = { flex: "none", width: "9px", height: "9px", marginTop: "4px", borderRadius: "50%", background: COLORS[state] };
    return element("span", { title: say(`state_${state}`), style });
}

function describeItem(item) {
    const text = element(
        "div",
        { style: { flex: "1", overflowWrap: "anywhere" } },
        element("div", { style: { fontWeight: "600" } }, item.name),
        muted(item.found),
    );
    if (item.variant) {
        // The remedy is for a terminal; its command does the same.
        text.append(restButton(item));
    } else if (item.remedy) {
        const remedy = element("div", { style: { flex: "1" } }, item.remedy);
        const command = item.remedy.match(COMMAND)?.[1];
        const style = { display: "flex", gap: "6px", alignItems: "start", marginTop: "3px" };
        text.append(element("div", { style }, remedy, ...(command ? [copyButton(say("copy"), () => command)] : [])));
    }
    if (item.kind === "checkpoint") {
        text.append(describeCheck(item.name, describeItem));
    }
    return element("div", { style: { display: "flex", gap: "8px", padding: "7px 0" } }, dot(item.state), text);
}

/** The verdict: ready, or how much there is to do. */
function describeVerdict({ count, worst }) {
    const text = count === 0 ? say("ready") : say(count === 1 ? "one_to_do" : "to_do", { count });
    const shown = element("div", { style: { fontSize: "15px", fontWeight: "600" } }, text);
    return element("div", { style: { display: "flex", gap: "8px", padding: "4px 0 8px" } }, dot(worst), shown);
}

/** Another graph lacks other files. */
function judgeAnew() {
    if (verdict?.shown.isConnected) {
        const shown = describeVerdict(judge(verdict.items, missingFiles()));
        verdict.shown.replaceWith(shown);
        verdict.shown = shown;
    }
}

/** Items of a state that is no problem, folded; nothing where there are none. */
function describeRest(items, state, name) {
    const found = items.filter((item) => item.state === state);
    const title = element("summary", { style: { cursor: "pointer", padding: "7px 0" } }, say(name, { count: found.length }));
    return found.length ? [element("details", {}, title, ...found.map(describeItem))] : [];
}

function asMarkdown(items) {
    const rows = items.map((item) => `| ${item.name} | ${item.state} | ${item.found} | ${item.remedy} |`);
    return ["| | state | found | remedy |", "|---|---|---|---|", ...rows].join("\n");
}

function measureButton(list, bar) {
    return button(say("measure_again"), say("measure_again_title"), async () => {
        try {
            await postJson("measure_again", {});
            await fill(list, bar);
        } catch (error) {
            list.prepend(`${error.message}`);
        }
    });
}

async function fill(list, bar) {
    list.replaceChildren(muted(say("looking")));
    bar.replaceChildren();
    const again = button(say("look_again"), say("look_again_title"), () => fill(list, bar));
    try {
        const items = (await fetchJson("doctor")).sort((one, other) => STATES.indexOf(one.state) - STATES.indexOf(other.state));
        const hasNone = items.some((item) => item.kind === NO_CHECKPOINTS);
        const judged = judge(items, missingFiles());
        verdict = { items, shown: describeVerdict(judged) };
        const downloads = describeDownloads(hasNone || judged.lacks, () => fill(list, bar));
        const problems = items.filter((item) => isProblem(item) && item.kind !== NO_CHECKPOINTS);
        list.replaceChildren(
            verdict.shown,
            downloads,
            ...problems.map(describeItem),
            ...describeRest(items, "note", "worth_knowing"),
            ...describeRest(items, "ok", "all_right"),
        );
        bar.replaceChildren(
            again,
            ...(items.some((item) => item.kind === "measured") ? [measureButton(list, bar)] : []),
            copyButton(say("copy_markdown"), () => asMarkdown(items)),
            copyButton(say("copy_json"), () => JSON.stringify(items, null, 2)),
        );
    } catch (error) {
        list.replaceChildren(sayUnanswered(error));
        bar.replaceChildren(again);
    }
}

function render(container) {
    const bar = element("div", { style: { display: "flex", flexWrap: "wrap", gap: "6px", padding: "8px 0" } });
    const list = element("div");
    const style = { height: "100%", overflow: "auto", padding: "12px", boxSizing: "border-box", font: "13px/1.4 var(--font-inter, sans-serif)" };
    container.replaceChildren(
        element("div", { style }, element("div", { style: { fontSize: "16px", fontWeight: "600", paddingBottom: "8px" } }, "LightX2V"), list, bar),
    );
    tab = { list, bar };
    fill(list, bar);
}

/** Look again at a server that is back: it may have been started anew with other packages. */
function lookAgain() {
    if (tab?.list.isConnected) {
        fill(tab.list, tab.bar);
    }
}

/** A button that leads to what can be downloaded, first what brings the file of this name. */
export function getWeightsButton(name) {
    return button(say("get_weights"), say("get_weights_title"), () => {
        unfoldDownloads(name);
        openDoctor();
    });
}

/** Open the tab. */
function openDoctor() {
    if (app.extensionManager.sidebarTab.activeSidebarTabId !== DOCTOR_TAB) {
        app.extensionManager.command.execute(`Workspace.ToggleSidebarTab.${DOCTOR_TAB}`);
    }
}

app.registerExtension({
    name: "lightx2v.doctor",
    afterConfigureGraph: judgeAnew,
    setup() {
        onReturn(lookAgain);
        app.extensionManager.registerSidebarTab({
            id: DOCTOR_TAB,
            icon: "mdi mdi-stethoscope",
            title: "LightX2V",
            tooltip: say("doctor_tooltip"),
            type: "custom",
            render,
        });
    },
});
