// The run report as a table on the report node, to be copied as JSON or Markdown.

import { app } from "../../scripts/app.js";
import { addPanel, copyButton, element, formatSeconds, gib, muted, onNodeEvent } from "./api.js";

const NODE = "LightX2VReport";
const STAGES = {
    load_text_encoder: "load text encoder",
    encode: "encode the prompt",
    load_transformer: "load transformer",
    sample: "sample",
    load_vae: "load VAE",
    decode: "decode",
};
const SAMPLING_FACTS = ["engine", "precision", "attention", "matmul", "compile", "offload", "size", "method", "seed", "shift"];

/** Rows of [stage, seconds, peak RAM, peak VRAM]. */
function stageRows(report) {
    const rows = report.stages.map((stage) => [
        STAGES[stage.stage] ?? stage.stage,
        formatSeconds(stage.seconds),
        memory(stage.peak_ram_bytes, stage.predicted_ram_bytes),
        memory(stage.peak_vram_reserved_bytes, stage.predicted_vram_bytes),
    ]);
    const total = [formatSeconds(report.total_seconds), memory(report.peak_ram_bytes), memory(report.peak_vram_reserved_bytes)];
    return [...rows, ["total", ...total]];
}

function memory(bytes, planned) {
    return bytes ? `${gib(bytes)} GiB${planned ? ` (planned ${gib(planned)})` : ""}` : "-";
}

/** Rows of [name, value]: what ran, and where. */
function factRows(report) {
    const details = report.stages.find((stage) => stage.stage === "sample")?.details ?? {};
    const steps = (details.step_seconds ?? []).flat();
    const rows = SAMPLING_FACTS.filter((name) => name in details).map((name) => [name, String(details[name])]);
    if (details.plan) {
        rows.push(["plan", details.plan.line.replace("plan: ", "")]);
    }
    if (steps.length) {
        rows.push(["seconds per step", steps.map((seconds) => seconds.toFixed(2)).join(", ")]);
    }
    const versions = Object.entries(report.versions).map(([name, version]) => `${name} ${version}`);
    return [...rows, ["device", report.device], ["versions", versions.join(", ")]];
}

function asMarkdown(report) {
    const row = (cells) => `| ${cells.join(" | ")} |`;
    return [
        row(["stage", "time", "peak RAM", "peak VRAM"]),
        row(["---", "---:", "---:", "---:"]),
        ...stageRows(report).map(row),
        "",
        ...factRows(report).map(([name, value]) => `- ${name}: ${value}`),
    ].join("\n");
}

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

function show(content, text) {
    const report = JSON.parse(text);
    content.replaceChildren(
        element(
            "div",
            { style: { display: "flex", gap: "6px" } },
            copyButton("Copy as Markdown", () => asMarkdown(report)),
            copyButton("Copy as JSON", () => text),
        ),
        table([["stage", "time", "peak RAM", "peak VRAM"], ...stageRows(report)], [["left", "nowrap"], ["right", "nowrap"], ["right", "normal"], ["right", "normal"]]),
        table(factRows(report), [["left", "nowrap"], ["left", "normal"]]),
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
            if (output?.text?.length) {
                show(content, output.text.join(""));
                node.setDirtyCanvas(true, true);
            }
        });
    },
});
