// Takes the pictures of the help pages in a real editor: node take.mjs CONFIG.json (see take.py).
//
// CONFIG: {nodeModules, chromium, url, root, plans: {locale: {name: answer of /lightx2v/plan}}}

import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const config = JSON.parse(readFileSync(process.argv[2], "utf-8"));
const { chromium } = createRequire(path.join(config.nodeModules, "_"))("playwright-core");

const NODE_SCALE = 1.4;
const MARGIN = 14;
const TITLE = 30;
const BADGE = 26;
const BASE = "1 Wan text to video";
const NATIVE = "4 Wan with native nodes";
// Template -> nodes whose pictures come from it, the report last, as it needs a run. Nodes that no template has are
// added beside the graph.
const NODES = {
    [BASE]: [
        "LightX2VLoadCheckpoint", "LightX2VOffload", "LightX2VTextEncode", "LightX2VEmptyLatent", "LightX2VSampler",
        "LightX2VLora", "LightX2VDecode", "LightX2VReport",
    ],
    [NATIVE]: [
        "LightX2VLoadTransformer", "LightX2VLoadTextEncoder", "LightX2VLoadVAE", "LightX2VEnhancePrompt",
        "LightX2VImageToVideo", "LightX2VGPUs",
    ],
};
const SETTINGS = {
    "Comfy.TutorialCompleted": true,
    "Comfy.UseNewMenu": "Top",
    "Comfy.Minimap.Visible": false,
    "Comfy.Graph.CanvasInfo": false,
    "Comfy.Graph.CanvasMenu": false,
    "Comfy.VueNodes.Enabled": false,
};

const browser = await chromium.launch({
    executablePath: config.chromium,
    args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
});
const page = await browser.newPage({ viewport: { width: 2760, height: 1280 } });
let plan;
await page.route("**/lightx2v/plan*", (route) => (plan ? route.fulfill({ json: plan }) : route.continue()));

async function open(locale) {
    for (const [id, value] of Object.entries({ ...SETTINGS, "Comfy.Locale": locale })) {
        await page.request.post(`${config.url}/api/settings/${id}`, { data: JSON.stringify(value), headers: { "Content-Type": "application/json" } });
    }
    await page.goto(config.url, { waitUntil: "domcontentloaded" });
    await page.waitForFunction(() => window.app?.extensionManager && window.app.graph && window.LiteGraph?.registered_node_types.LightX2VReport, null, { timeout: 120_000 });
    await page.locator(".p-blockui-mask").waitFor({ state: "hidden", timeout: 60_000 });
}

async function load(name, locale) {
    plan = config.plans[locale][name];
    const graph = JSON.parse(readFileSync(path.join(config.root, "example_workflows", `${name}.json`), "utf-8"));
    // While the editor starts it may still replace the graph by the last one.
    const isThere = (types) => types.every((type) => window.app.graph._nodes.some((node) => node.type === type));
    const types = graph.nodes.map((node) => node.type);
    do {
        await page.evaluate((data) => window.app.loadGraphData(data), graph);
        await page.waitForTimeout(2000);
    } while (!(await page.evaluate(isThere, types)));
}

/** Show the rectangle [x, y, width, height] of the graph, and return where it is on the page. */
async function show([x, y, width, height], scale) {
    const place = await page.evaluate(
        ([left, top, factor]) => {
            const { canvas, ds } = window.app.canvas;
            const corner = canvas.getBoundingClientRect();
            ds.scale = factor;
            // Free of the sidebar and the menu.
            ds.offset = [100 / factor - left, 100 / factor - top];
            window.app.canvas.setDirty(true, true);
            return [corner.x + 100, corner.y + 100];
        },
        [x, y, scale],
    );
    await page.waitForTimeout(700);
    return { x: place[0], y: place[1], width: width * scale, height: height * scale };
}

/** Write a part of the page as a JPEG of a given width. */
async function save(file, clip, width) {
    const png = await page.screenshot({ clip });
    const jpeg = await page.evaluate(
        async ([data, target]) => {
            const image = await createImageBitmap(await (await fetch(`data:image/png;base64,${data}`)).blob());
            const height = Math.round((image.height * target) / image.width);
            const small = await createImageBitmap(image, { resizeWidth: target, resizeHeight: height, resizeQuality: "high" });
            const canvas = new OffscreenCanvas(target, height);
            canvas.getContext("2d").drawImage(small, 0, 0);
            const bytes = new Uint8Array(await (await canvas.convertToBlob({ type: "image/jpeg", quality: 0.85 })).arrayBuffer());
            return btoa(bytes.reduce((text, byte) => text + String.fromCharCode(byte), ""));
        },
        [png.toString("base64"), Math.round(width)],
    );
    writeFileSync(file, Buffer.from(jpeg, "base64"));
    console.log(`${path.relative(config.root, file)} ${Math.round((jpeg.length * 3) / 4 / 1024)} kB`);
}

/** Run the graph at a tiny size, so that the report has something to show; leave out what names this machine. */
async function run() {
    await page.evaluate(async () => {
        const { app } = window;
        const find = (type) => app.graph._nodes.find((node) => node.type === type);
        const widgets = find("LightX2VEmptyLatent").widgets;
        const sizes = { width: 192, height: 112, num_frames: 17 };
        const before = widgets.map((widget) => widget.value);
        widgets.forEach((widget) => (widget.value = sizes[widget.name] ?? widget.value));
        // ComfyUI shows a result that it has in the language of the first run.
        find("LightX2VSampler").widgets.find((widget) => widget.name === "seed").value = Date.now();
        const done = new Promise((resolve) => app.api.addEventListener("execution_success", resolve, { once: true }));
        await app.queuePrompt(0, 1);
        await done;
        widgets.forEach((widget, index) => (widget.value = before[index]));
    });
    await page.waitForTimeout(1500);
    await page.evaluate(() => {
        for (const cell of document.querySelectorAll("td")) {
            if (cell.textContent === "card") {
                cell.nextSibling.textContent = cell.nextSibling.textContent.split(",")[0];
            }
            if (cell.textContent === "system") {
                cell.parentElement.remove();
            }
        }
    });
}

async function takeNode(type, locale) {
    const box = await page.evaluate((name) => {
        const { app, LiteGraph } = window;
        app.graph._groups.slice().forEach((group) => app.graph.remove(group));
        let node = app.graph._nodes.find((other) => other.type === name);
        if (!node) {
            node = LiteGraph.createNode(name);
            app.graph.add(node);
            node.pos = [3000, 1000 * app.graph._nodes.length];
            node.setSize([400, node.size[1]]);
            const values = {
                text_encoder: "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
                vae: "wan_2.1_vae.safetensors",
                text: "a red fox in the snow",
            };
            node.widgets.forEach((widget) => (widget.value = values[widget.name] ?? widget.value));
            if ((node.inputs ?? []).some((input) => input.type === "MODEL")) {
                app.graph._nodes.find((other) => other.type === "LightX2VLoadCheckpoint").connect(0, node, "transformer");
            }
        }
        return [...node.pos, ...node.size];
    }, type);
    await page.waitForTimeout(800);
    const [x, y, width, height] = box;
    const clip = await show([x - MARGIN, y - TITLE - BADGE, width + 2 * MARGIN, height + TITLE + BADGE + MARGIN], NODE_SCALE);
    await save(path.join(config.root, "js", "docs", type, `${locale}.jpg`), clip, clip.width);
}

try {
    await open("en");
    for (const locale of ["en", "zh"]) {
        await open(locale);
        for (const [template, types] of Object.entries(NODES)) {
            await load(template, locale);
            for (const type of types) {
                if (type === "LightX2VReport") {
                    await run();
                }
                await takeNode(type, locale);
            }
        }
    }
} finally {
    await browser.close();
}
