// The text that a running node shows vanishes with the run: the server sends an empty one at a stage's end.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

// What frontends name the widget that shows such texts.
const TEXT_WIDGET = "$$node-text-preview";
// Node -> its size before the run.
const sizes = new Map();

function noteSizes(graph) {
    for (const node of graph?.nodes ?? []) {
        sizes.set(node, [...node.size]);
        noteSizes(node.subgraph);
    }
}

/** The node of an execution id: the ids of subgraph nodes around it, and its own, joined by colons. */
function findNode(executionId) {
    let graph = app.graph;
    let node;
    for (const id of String(executionId).split(":")) {
        // Numbers in early frontends, texts in newer ones.
        node = graph?.getNodeById?.(id) ?? graph?.getNodeById?.(Number(id));
        graph = node?.subgraph;
    }
    return node;
}

function removeText(node) {
    const index = node.widgets?.findIndex((widget) => widget.name === TEXT_WIDGET) ?? -1;
    if (index < 0) {
        return;
    }
    node.widgets[index].onRemove?.();
    node.widgets.splice(index, 1);
    const size = sizes.get(node);
    // A node that shows a preview keeps the room for it.
    if (size && !node.imgs?.length) {
        node.setSize([node.size[0], Math.min(node.size[1], Math.max(size[1], node.computeSize()[1]))]);
    }
    node.setDirtyCanvas?.(true, true);
}

app.registerExtension({
    name: "lightx2v.progress",
    setup() {
        api.addEventListener("execution_start", () => {
            sizes.clear();
            noteSizes(app.graph);
        });
        api.addEventListener("progress_text", ({ detail }) => {
            const node = detail.text === "" && findNode(detail.nodeId);
            if (node) {
                // After the frontend's own listener, which shows the text.
                setTimeout(() => removeText(node));
            }
        });
    },
});
