// The run report as a table on the report node, to be copied as JSON or Markdown.

import { app } from "../../scripts/app.js";
import { addPanel, copyButton, element, muted, onNodeEvent } from "./api.js";
import { say } from "./texts.js";

const NODE = "LightX2VReport";

/** A table whose columns are [textAlign, whiteSpace] each. */
function table(rows, columns) {
    const cell = (text, index) => {
        const [textAlign, whiteSpace] = columns[index];
        return element("td", { style: { padding: "1px 6px 1px 0", textAlign, whiteSpace, verticalAlign: "top" } }, text);
    };
    return element(
        "table",
        { style: { borderCollapse: "collapse", width: "100%" } },
        ...rows.map((cells) => element("tr", {}, ...cells.map(cell))),
    );
}

/** Show what the node sends: the report as JSON, its rows, and its Markdown. */
function show(content, { text, table: rows, markdown }) {
    const { stages, facts, headline } = JSON.parse(rows.join(""));
    // A column in which nothing was measured says nothing.
    const used = stages[0].map((_, index) => index < 2 || stages.slice(1).some((cells) => cells[index] !== "-"));
    const shown = stages.map((cells) => cells.filter((_, index) => used[index]));
    const title = element("summary", { style: { cursor: "pointer" } }, say("report_details"));
    const details = element("details", {}, title, table(shown, [["left", "nowrap"], ["right", "nowrap"], ["right", "normal"], ["right", "normal"]]), table(facts, [["left", "nowrap"], ["left", "normal"]]));
    content.replaceChildren(
        element("div", { style: { fontWeight: "600", overflowWrap: "anywhere" } }, headline),
        element(
            "div",
            { style: { display: "flex", gap: "6px" } },
            copyButton(say("copy_markdown"), () => markdown.join("")),
            copyButton(say("copy_json"), () => text.join("")),
        ),
        details,
    );
}

app.registerExtension({
    name: "lightx2v.report",
    nodeCreated(node) {
        if (node.comfyClass !== NODE) {
            return;
        }
        const content = addPanel(node, "lightx2v_report", { height: 150, width: 400, stretch: true });
        content.append(muted(say("report_empty")));
        onNodeEvent(node, "onExecuted", (output) => {
            if (output?.table?.length) {
                show(content, output);
                node.setDirtyCanvas(true, true);
            }
        });
    },
});
