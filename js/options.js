// Choices that are phrases, in the editor's language: frontends show values as they are stored. Names such as auto or
// block stay, since tooltips, errors and reports call them so.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { language } from "./texts.js";

// Node -> its texts, as locales/<language>/nodeDefs.json has them.
let texts = {};

/** Show the values of a combo by their words; what is stored, sent and offered stays the same. */
function showWords(node, widget, words) {
    const wordOf = (value) => words[value] ?? value;
    widget.options.getOptionLabel = (value) => (value == null ? "" : wordOf(value));
    const [value, word] = Object.entries(words).find(([each, text]) => each !== text) ?? [];
    const shown = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(widget), "_displayValue");
    if (!word || !shown || shown.get.call({ options: widget.options, value }) === word) {
        return;
    }
    // Older frontends, 1.27 among them, do not know getOptionLabel.
    Object.defineProperty(widget, "_displayValue", { configurable: true, get: () => wordOf(widget.value) });
    const click = widget.onClick;
    widget.onClick = function ({ e, node: clicked, canvas }) {
        const x = e.canvasX - clicked.pos[0];
        // At both ends are the arrows.
        if (x < 40 || x > (this.width || clicked.size[0]) - 40) {
            return click.call(this, { e, node: clicked, canvas });
        }
        const items = this.getValues(clicked).map((each) => ({ content: wordOf(each), value: each }));
        const callback = ({ value: chosen }) => this.setValue(chosen, { e, node: clicked, canvas });
        return new LiteGraph.ContextMenu(items, { scale: Math.max(1, canvas.ds.scale), event: e, className: "dark", callback });
    };
}

app.registerExtension({
    name: "lightx2v.options",
    async init() {
        const answer = await api.fetchApi("/i18n");
        texts = answer.ok ? (await answer.json())[language()]?.nodeDefs ?? {} : {};
    },
    nodeCreated(node) {
        for (const widget of node.widgets ?? []) {
            const words = texts[node.comfyClass]?.inputs?.[widget.name]?.options;
            const isPhrases = words && Object.keys(words).some((value) => value.includes(" "));
            if (isPhrases && node.comfyClass.startsWith("LightX2V") && widget.type === "combo") {
                showWords(node, widget, words);
            }
        }
    },
});
