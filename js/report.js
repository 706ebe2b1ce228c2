// The run report as a table on the report node, to be copied as JSON or Markdown.

import { app } from "../../scripts/app.js";
import { addPanel, copyButton, element, muted, onNodeEvent } from "./api.js";

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
    const { stages, facts } = JSON.parse(rows.join(""));
    content.replaceChildren(
        element(
            "div",
            { style: { display: "flex", gap: "6px" } },
            copyButton("Copy as Markdown", () => markdown.join("")),
            copyButton("Copy as JSON", () => text.join("")),
        ),
        table(stages, [["left", "nowrap"], ["right", "nowrap"], ["right", "normal"], ["right", "normal"]]),
        table(facts, [["left", "nowrap"], ["left", "normal"]]),
    );
}

app.registerExtension({
    name: "lightx2v.report",
    nodeCreated(node) {
        if (node.comfyClass !== NODE) {
            return;
        }
        const content = addPanel(node, "lightx2v_report", { height: 300, width: 380, stretch: true });
        content.append(muted("The report of the run appears here."));
        onNodeEvent(node, "onExecuted", (output) => {
            if (output?.table?.length) {
                show(content, output);
                node.setDirtyCanvas(true, true);
            }
        });
    },
});
