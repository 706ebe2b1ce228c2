// One session of a user in a real browser: node session.mjs CONFIG.json prints one JSON line a step.
//
// CONFIG: {nodeModules, chromium, url, isVue, shots, firstTemplate, loraTemplate, templates: {name: text}, graph, llm, otherKind, steps}
// `firstTemplate` is the name of the one that loads a checkpoint that is not there; the server's HF_ENDPOINT has it;
// `loraTemplate` that of one with LoRAs.
// `graph` is an editor workflow whose transformer takes most of a second a step; it has a report node. `llm` is the URL of
// a language model server. `otherKind` is a file that is offered as a VAE and is none. `steps` names some of the steps
// below; without it all are done.

import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const config = JSON.parse(readFileSync(process.argv[2], "utf-8"));
const { chromium } = createRequire(path.join(config.nodeModules, "_"))("playwright-core");

const NODES = [
    "LightX2VLoadCheckpoint", "LightX2VLoadTransformer", "LightX2VLoadTextEncoder", "LightX2VLoadVAE", "LightX2VOffload",
    "LightX2VLora", "LightX2VEnhancePrompt", "LightX2VTextEncode", "LightX2VEmptyLatent", "LightX2VSampler", "LightX2VDecode",
    "LightX2VReport", "LightX2VImageToVideo", "LightX2VGPUs",
];
const OURS = /extensions\/ComfyUI-LightX2V\/|\/lightx2v\//;
const PANEL_WAIT_MS = 20_000;

const browser = await chromium.launch({
    executablePath: config.chromium,
    args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
});
const context = await browser.newContext({ viewport: { width: 1600, height: 1000 } });
await context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: config.url });
const page = await context.newPage();
await page.addInitScript(() => {
    const allNodes = (graph) => graph.nodes.flatMap((node) => [node, ...(node.subgraph ? allNodes(node.subgraph) : [])]);
    window.findPanel = (type, name) =>
        allNodes(window.app.graph).find((node) => node.type === type)?.widgets.find((widget) => widget.name === name)?.element;
});
await page.addInitScript(() => {
    /** Pairs of nodes of which one lies over the other, as they are drawn. */
    window.overlaps = () => {
        const boxOf = (node) => {
            const drawn = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
            const [x, y, width, height] = drawn ? [drawn.x, drawn.y, drawn.width, drawn.height] : node.getBounding();
            // Frames around nodes are drawn outside of them.
            return { type: node.type, x: x + 1, y: y + 1, right: x + width - 1, bottom: y + height - 1 };
        };
        const boxes = window.app.graph.nodes.map(boxOf);
        const isOver = (one, other) => one.x < other.right && other.x < one.right && one.y < other.bottom && other.y < one.bottom;
        return boxes.flatMap((one, index) => boxes.slice(index + 1).filter((other) => isOver(one, other)).map((other) => `${one.type} and ${other.type}`));
    };
});
const problems = [];
let shots = config.shots;
page.on("console", (message) => {
    if (message.type() === "error" && OURS.test(`${message.location().url} ${message.text()}`)) {
        problems.push(`${message.text()} ${message.location().url}`);
    }
});
page.on("pageerror", (error) => {
    if (OURS.test(error.stack ?? "")) {
        problems.push(error.stack);
    }
});

// The files of this suite are tiny, and their sizes on the list are not: what the drive has room for is pretended.
const EMPTY_DRIVE = { lacking_bytes: 0, free_bytes: 59_000_000_000 };
let drive = EMPTY_DRIVE;
await page.route(/\/lightx2v\/downloads(\?|$)/, async (route) => {
    const found = await (await route.fetch()).json();
    [...found.variants, ...found.wanted, ...(found.offer ? [found.offer] : [])].forEach(({ room }) => Object.assign(room, drive));
    await route.fulfill({ json: found });
});

async function settle() {
    await page.waitForFunction(
        (types) => window.app?.extensionManager && window.app.graph && types.every((type) => window.LiteGraph.registered_node_types[type]),
        NODES,
        { timeout: 120_000 },
    );
    await page.locator(".p-blockui-mask").waitFor({ state: "hidden", timeout: 60_000 });
}

async function setSetting(id, value) {
    const answer = await context.request.post(`${config.url}/api/settings/${id}`, { data: JSON.stringify(value), headers: { "Content-Type": "application/json" } });
    if (!answer.ok()) {
        throw new Error(`setting ${id}: ${answer.status()}`);
    }
}

/** Panels that had to scroll, by the name of the picture. */
const cramped = [];

async function shot(name) {
    await page.waitForTimeout(400);
    const found = await page.evaluate(() => {
        const panels = window.app.graph.nodes.flatMap((node) => (node.widgets ?? []).filter((widget) => widget.name.startsWith("lightx2v_")));
        const isCramped = ({ element }) => element?.isConnected && (element.scrollHeight > element.clientHeight + 1 || element.scrollWidth > element.clientWidth + 1);
        return panels.filter(isCramped).map(({ name, element }) => `${name}: ${element.scrollHeight} of ${element.clientHeight}`);
    });
    cramped.push(...found.map((text) => `${name}: ${text}`));
    await page.screenshot({ path: path.join(shots, `${name}.png`) });
}

/** Drop a file on the page, as from the desktop. */
async function drop(name, text) {
    await page.evaluate(
        ([fileName, content]) => {
            const data = new DataTransfer();
            data.items.add(new File([content], fileName, { type: "application/json" }));
            document.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: data }));
        },
        [name, text],
    );
}

/** Open a tab of the sidebar by its id; null closes it. */
const openTab = (id) => page.evaluate((tab) => (window.app.extensionManager.sidebarTab.activeSidebarTabId = tab), id);

const clear = () => page.evaluate(() => window.app.graph.clear());

async function load(text) {
    await clear();
    await page.evaluate((content) => window.app.loadGraphData(JSON.parse(content)), text);
    await page.evaluate(() => window.app.canvas.setDirty(true, true));
    await fit();
}

/** Show the whole graph. */
async function fit() {
    await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.Canvas.FitView"));
    await page.waitForTimeout(600);
}

/** Zoom so that the nodes of a type fill the window. */
async function zoomTo(type, scale = 1) {
    await page.evaluate(
        ([wanted, factor]) => {
            const { canvas, graph } = window.app;
            const node = graph.nodes.find((each) => each.type === wanted);
            canvas.ds.scale = factor;
            canvas.ds.offset[0] = -node.pos[0] + 500 / factor;
            canvas.ds.offset[1] = -node.pos[1] + 200 / factor;
            canvas.setDirty(true, true);
        },
        [type, scale],
    );
    await page.waitForTimeout(300);
}

/** The text of a panel on the first node of a type. */
function panelText(type, name) {
    return page.evaluate(
        ([wanted, panel]) => {
            return window.findPanel(wanted, panel)?.innerText ?? "";
        },
        [type, name],
    );
}

/** Press a button of a panel: with the mouse where the panel is on the page, else by its own click. */
async function press(type, name, label) {
    const found = await page.evaluateHandle(
        ([wanted, panel, text]) => [...window.findPanel(wanted, panel).querySelectorAll("button")].find((each) => each.textContent === text),
        [type, name, label],
    );
    if (await found.evaluate((each) => each.isConnected)) {
        await found.asElement().click();
    } else {
        await found.evaluate((each) => each.click());
    }
}

const waitForPanel = (type, name, pattern) =>
    page.waitForFunction(
        ([wanted, panel, source]) => {
            return new RegExp(source).test(window.findPanel(wanted, panel)?.innerText ?? "");
        },
        [type, name, pattern],
        { timeout: PANEL_WAIT_MS },
    );

/** Do something in the page and return the milliseconds until the plan line of the loader reads `pattern`. */
function timePlan(action, argument, pattern) {
    return page.evaluate(
        async ([source, value, expected]) => {
            const panel = window.findPanel("LightX2VLoadTransformer", "lightx2v_plan");
            const reads = () => new RegExp(expected).test(panel.innerText);
            if (reads()) {
                throw new Error(`the plan line reads ${expected} already`);
            }
            const start = performance.now();
            const changed = new Promise((resolve, reject) => {
                const observer = new MutationObserver(() => {
                    if (reads()) {
                        observer.disconnect();
                        resolve(performance.now() - start);
                    }
                });
                observer.observe(panel, { childList: true, subtree: true, characterData: true });
                setTimeout(() => reject(new Error(`after 20 s the plan line reads: ${panel.innerText}`)), 20_000);
            });
            new Function("app", "value", source)(window.app, value);
            return changed;
        },
        [action, argument, pattern],
    );
}

const SET = "const node = app.graph.nodes.find((each) => each.type === value.type);" +
    "const widget = node.widgets.find((each) => each.name === value.name);" +
    "widget.value = value.to; widget.callback?.(value.to, app.canvas, node);";
const setWidget = (type, name, to) => page.evaluate(([source, value]) => new Function("app", "value", source)(window.app, value), [SET, { type, name, to }]);

/** Note every event of the run in the page. */
async function watchRun() {
    await page.evaluate(async () => {
        const { api } = window.comfyAPI.api;
        const isWatching = window.seen !== undefined;
        window.seen = { progress: [], texts: [], previews: 0, ended: "", said: "" };
        if (isWatching) {
            return;
        }
        const on = (name, note) => api.addEventListener(name, ({ detail }) => note(detail));
        on("progress", ({ value, max, node }) => window.seen.progress.push([String(node), value, max]));
        on("progress_text", ({ text }) => window.seen.texts.push(text));
        on("b_preview", () => (window.seen.previews += 1));
        on("execution_error", ({ exception_message: message }) => (window.seen.said = message));
        for (const name of ["execution_success", "execution_interrupted", "execution_error"]) {
            on(name, () => (window.seen.ended = name));
        }
    });
}

/** What was noted, and the nodes that still show a text. */
const seen = () =>
    page.evaluate(() => {
        const shows = (node) => node.widgets?.some((widget) => widget.name === "$$node-text-preview");
        return {
            ...window.seen,
            left: window.app.graph.nodes.filter(shows).map((node) => node.type),
        };
    });
const waitForEnd = () => page.waitForFunction(() => window.seen.ended, null, { timeout: 180_000 });
/** What the editor says of a failure: early frontends in a dialog, newer ones in a panel behind a notice. */
async function readError(name) {
    const dialog = page.locator(".p-dialog").filter({ hasText: "Show Report" }).first();
    const more = page.getByRole("button", { name: /^(View details|See Errors?)$/i }).first();
    await dialog.or(more).first().waitFor({ timeout: 60_000 });
    await shot(`refused_${name}`);
    if (await dialog.isVisible()) {
        const text = await dialog.innerText();
        await page.keyboard.press("Escape");
        await dialog.waitFor({ state: "hidden" });
        return text;
    }
    await more.click();
    await page.waitForTimeout(1000);
    await shot(`refused_${name}_details`);
    return textBeside();
}
/** What newer editors show of a node beside the graph. */
async function textBeside() {
    const text = await page.locator("[data-testid='properties-panel'], .right-side-panel, aside").allInnerTexts();
    return text.join("\n");
}
const queue = () => page.evaluate(() => window.app.queuePrompt(0, 1));
const waitForStep = (step) =>
    page.waitForFunction((wanted) => window.seen.texts.some((text) => text.startsWith(`step ${wanted}/4`)), step, { timeout: 120_000 });

const steps = {
    async open() {
        await setSetting("Comfy.TutorialCompleted", true);
        await setSetting("Comfy.UseNewMenu", "Top");
        await setSetting("Comfy.VueNodes.Enabled", config.isVue);
        await page.goto(config.url, { waitUntil: "domcontentloaded", timeout: 120_000 });
        await settle();
        const version = await page.evaluate(() => window.__COMFYUI_FRONTEND_VERSION__);
        shots = path.join(config.shots, `${version}-${config.isVue ? "vue" : "litegraph"}`);
        mkdirSync(shots, { recursive: true });
        return { version, isVue: config.isVue };
    },

    async addNodes() {
        await clear();
        await page.evaluate((types) => {
            types.forEach((type, index) => {
                const node = window.LiteGraph.createNode(type);
                node.pos = [(index % 4) * 480, Math.floor(index / 4) * 520];
                window.app.graph.add(node);
            });
        }, NODES);
        await fit();
        await shot("nodes");
        const nodes = await page.evaluate(() =>
            window.app.graph.nodes.map((node) => ({
                type: node.type,
                widgets: node.widgets?.map((widget) => widget.name) ?? [],
                stored: node.serialize().widgets_values?.length ?? 0,
                shows: (node.widgets ?? []).filter((widget) => widget.element?.isConnected).map((widget) => widget.name),
            })),
        );
        return { nodes };
    },

    /** Drag a node out of the library with the mouse. */
    async dragNode() {
        await clear();
        await openTab("node-library");
        const search = page.locator(".side-bar-panel input, .sidebar-content-container input, [data-testid='node-library'] input").first();
        await search.fill("LightX2V Empty");
        const leaf = page.getByText("LightX2V Empty Latent").first();
        await leaf.waitFor();
        await page.waitForTimeout(500);
        const box = await leaf.boundingBox();
        await page.mouse.move(box.x + 20, box.y + 8);
        await page.mouse.down();
        await page.mouse.move(700, 500, { steps: 8 });
        await page.mouse.move(900, 500, { steps: 4 });
        await page.mouse.up();
        await page.waitForFunction(() => window.app.graph.nodes.length > 0, null, { timeout: 10_000 });
        await shot("dragged");
        await openTab(null);
        return { types: await page.evaluate(() => window.app.graph.nodes.map((node) => node.type)) };
    },

    /** Drop a template on a ComfyUI without the weights, be told so, fetch them with the doctor's button. */
    async arrive() {
        const type = "LightX2VLoadCheckpoint";
        await clear();
        await drop("first.json", config.templates[config.firstTemplate]);
        await waitForPanel(type, "lightx2v_plan", "Not here");
        const before = await panelText(type, "lightx2v_plan");
        await zoomTo(type);
        await shot("weights_missing");
        await press(type, "lightx2v_plan", "Get the weights");
        // One button for this machine, which says what it costs and asks.
        const first = page.getByRole("button", { name: /^Download FP8( for |$)/ });
        await first.waitFor({ timeout: 30_000 });
        const offer = await first.locator("xpath=..").innerText();
        const others = await page.getByText(/^Other versions/).innerText();
        await shot("weights_offered");
        await first.click();
        const start = page.getByRole("button", { name: /^Start: / });
        await start.waitFor();
        await shot("weights_asked");
        const { progress } = await context.request.get(`${config.url}/lightx2v/downloads`).then((answer) => answer.json());
        // The last one's name stays.
        const asked = progress.is_running ? progress.name : "";
        await start.click();
        await waitForPanel(type, "lightx2v_plan", "Fits");
        await shot("weights_arrived");
        await openTab(null);
        return { before, offer, others, asked, after: await panelText(type, "lightx2v_plan") };
    },

    /** The same where the drive is too full, and then has room. */
    async fullDrive() {
        drive = { lacking_bytes: 12_300_000_000, free_bytes: 10_000_000_000 };
        await openTab("lightx2v-doctor");
        const tab = page.locator(".side-bar-panel, .sidebar-content-container").first();
        const offer = tab.getByRole("button", { name: /^Download FP8( for |$)/ });
        await tab.locator("details").first().evaluate((element) => (element.open = true));
        await offer.waitFor({ timeout: 30_000 });
        const found = {};
        for (const name of ["full", "free"]) {
            await offer.click();
            const start = tab.getByRole("button", { name: /^Start: / });
            await start.waitFor();
            await shot(`drive_${name}`);
            found[name] = { isEnabled: await start.isEnabled(), text: await start.locator("xpath=../..").innerText() };
            await tab.getByRole("button", { name: "Not now" }).click();
            drive = EMPTY_DRIVE;
        }
        await openTab(null);
        return found;
    },

    /** From an empty graph to a finished clip with the mouse alone, the weights being there. */
    async firstClip() {
        await clear();
        await page.evaluate(() => {
            window.input = { clicks: 0, keys: 0 };
            const count = (event, name) => document.addEventListener(event, ({ isTrusted }) => (window.input[name] += isTrusted), true);
            count("mousedown", "clicks");
            count("keydown", "keys");
        });
        await page.getByRole("button", { name: "Templates", exact: true }).first().click();
        await page.getByText("ComfyUI-LightX2V", { exact: true }).first().click();
        await page.waitForTimeout(1000);
        await shot("first_templates");
        await page.getByTestId(`template-workflow-${config.firstTemplate}`).click();
        await waitForPanel("LightX2VLoadCheckpoint", "lightx2v_plan", "Fits");
        await page.waitForTimeout(1000);
        await shot("first_opened");
        // A tiny model for a tiny clip: what the template says takes a processor minutes.
        for (const [name, value] of [["width", 64], ["height", 64], ["num_frames", 17]]) {
            await setWidget("LightX2VEmptyLatent", name, value);
        }
        await watchRun();
        await page.getByRole("button", { name: /^Run$/ }).first().click();
        await waitForEnd();
        await page.waitForTimeout(1500);
        await shot("first_clip");
        const { clicks, keys } = await page.evaluate(() => window.input);
        const files = await page.evaluate(() => {
            const found = Object.values(window.app.nodeOutputs).flatMap((output) => output.images ?? output.video ?? []);
            return found.map((file) => file.filename);
        });
        return { clicks, keys, files, ended: (await seen()).ended };
    },

    /** What is said of a size that does not fit, of a file of another kind, and of a file that is not there. */
    async refusals() {
        const type = "LightX2VLoadTransformer";
        const cases = {
            size: [["LightX2VEmptyLatent", "width", 8192], ["LightX2VEmptyLatent", "height", 8192], ["LightX2VEmptyLatent", "num_frames", 401]],
            kind: [["LightX2VLoadVAE", "vae", config.otherKind]],
            absent: [[type, "transformer", "gone.safetensors"]],
        };
        const said = {};
        for (const [name, values] of Object.entries(cases)) {
            await load(config.graph);
            await setWidget("LightX2VTextEncode", "text", `not encoded yet: ${name}`);
            for (const value of values) {
                await setWidget(...value);
            }
            await watchRun();
            await page.evaluate(() => window.app.queuePrompt(0, 1).catch(() => {}));
            said[name] = { text: await readError(name), encoded: (await seen()).texts.some((text) => text.startsWith("encoding text")) };
        }
        return said;
    },

    async templates() {
        const dropped = {};
        for (const [name, text] of Object.entries(config.templates)) {
            await clear();
            await drop(`${name}.json`, text);
            const expected = JSON.parse(text).nodes.length;
            await page.waitForFunction((count) => window.app.graph.nodes.length === count, expected, { timeout: 30_000 });
            await page.waitForTimeout(500);
            await fit();
            await shot(`template_${name}`);
            dropped[name] = await page.evaluate(() => ({
                overlaps: window.overlaps(),
                // What the steps of the note are drawn in, and whether all of it is to be seen.
                notes: window.app.graph.nodes.filter((node) => node.type === "MarkdownNote").map((node) => {
                    const drawn = document.querySelector(`[data-node-id="${node.id}"]`) ?? node.widgets[0].element;
                    const note = drawn?.querySelector(".tiptap, .comfy-markdown-content");
                    const step = note?.querySelector("h2");
                    return { pixels: step ? parseFloat(getComputedStyle(step).fontSize) : 0, hidden: note ? note.scrollHeight - note.clientHeight : 0 };
                }),
                marked: window.app.graph.nodes.filter((node) => node.has_errors).map((node) => node.type),
                values: Object.fromEntries(window.app.graph.serialize().nodes.map((node) => [node.id, node.widgets_values ?? null])),
            }));
        }
        return { dropped };
    },

    async planLine() {
        await load(config.graph);
        const type = "LightX2VLoadTransformer";
        await waitForPanel(type, "lightx2v_plan", "Fits");
        const before = await panelText(type, "lightx2v_plan");
        const offload = await panelText("LightX2VOffload", "lightx2v_plan");
        await zoomTo(type);
        await shot("plan_fits");
        const delays = {
            width: await timePlan(SET, { type: "LightX2VEmptyLatent", name: "width", to: 832 }, "832x"),
            frames: await timePlan(SET, { type: "LightX2VEmptyLatent", name: "num_frames", to: 41 }, "41 frames"),
            engine: await timePlan(SET, { type, name: "engine", to: "lightx2v" }, "engine is 'lightx2v', but"),
        };
        await shot("plan_refused");
        delays.engineBack = await timePlan(SET, { type, name: "engine", to: "portable" }, "Fits");
        const unlink = "const node = app.graph.nodes.find((each) => each.type === 'LightX2VSampler');" +
            "node.disconnectInput(node.inputs.findIndex((input) => input.name === 'latent'));";
        delays.unlinked = await timePlan(unlink, null, "no size connected");
        const link = "const find = (type) => app.graph.nodes.find((each) => each.type === type);" +
            "find('LightX2VEmptyLatent').connect(0, find('LightX2VSampler'), find('LightX2VSampler').inputs.findIndex((input) => input.name === 'latent'));";
        delays.linked = await timePlan(link, null, "832x192, 41 frames");
        await setWidget("LightX2VEmptyLatent", "width", 8192);
        await setWidget("LightX2VEmptyLatent", "height", 8192);
        delays.huge = await timePlan(SET, { type: "LightX2VEmptyLatent", name: "num_frames", to: 4097 }, "No offload mode has room");
        const refused = await panelText(type, "lightx2v_plan");
        await shot("plan_does_not_fit");
        return { before, offload, refused, delays };
    },

    /** What loader and LoRA say while something is wrong with one of them, and which of them is red. */
    async waiting() {
        const [loader, lora] = ["LightX2VLoadTransformer", "LightX2VLora"];
        const panels = { [loader]: "lightx2v_plan", [lora]: "lightx2v_lora" };
        const cases = {
            transformer: [loader, "transformer", "gone.safetensors"],
            expert: [loader, "second_expert", "gone_low_noise_of_the_second_expert_of_wan_with_a_long_name.safetensors"],
            lora: [lora, "lora", "gone_lora_with_a_name_as_long_as_the_names_of_loras_are_in_general.safetensors"],
        };
        const said = {};
        for (const [name, value] of Object.entries(cases)) {
            await clear();
            await drop("loras.json", config.templates[config.loraTemplate]);
            await waitForPanel(loader, panels[loader], "Fits");
            await waitForPanel(lora, panels[lora], "apply");
            await setWidget(...value);
            await waitForPanel(value[0], panels[value[0]], "gone");
            const other = value[0] === loader ? lora : loader;
            await waitForPanel(other, panels[other], "Waiting");
            await fit();
            await shot(`waiting_${name}`);
            const isRed = ([type, panel]) => [...window.findPanel(type, panel).querySelectorAll("*")]
                .some(({ style }) => [style.color, style.background].includes("rgb(248, 81, 73)"));
            const describe = async (type) => ({ text: await panelText(type, panels[type]), isRed: await page.evaluate(isRed, [type, panels[type]]) });
            said[name] = { loader: await describe(loader), lora: await describe(lora) };
        }
        return said;
    },

    /** Put the loader and its offload node into a subgraph; size and sampler stay outside. */
    async subgraph() {
        await load(config.graph);
        await waitForPanel("LightX2VLoadTransformer", "lightx2v_plan", "Fits");
        await page.evaluate(() => {
            const { graph } = window.app;
            const wanted = ["LightX2VLoadTransformer", "LightX2VOffload"];
            graph.convertToSubgraph(new Set(graph.nodes.filter((node) => wanted.includes(node.type))));
        });
        await waitForPanel("LightX2VLoadTransformer", "lightx2v_plan", "192x192, 9 frames");
        const loader = await panelText("LightX2VLoadTransformer", "lightx2v_plan");
        // The same the other way round: the size in a subgraph, everything else outside.
        await load(config.graph);
        await page.evaluate(() => {
            const { graph } = window.app;
            const wanted = ["LightX2VEmptyLatent", "LightX2VSampler"];
            graph.convertToSubgraph(new Set(graph.nodes.filter((node) => wanted.includes(node.type))));
        });
        await waitForPanel("LightX2VLoadTransformer", "lightx2v_plan", "192x192, 9 frames");
        await fit();
        await shot("subgraph");
        return { loader, sampler: await panelText("LightX2VLoadTransformer", "lightx2v_plan") };
    },

    async sizes() {
        await load(config.graph);
        await zoomTo("LightX2VEmptyLatent", 1.3);
        await press("LightX2VEmptyLatent", "lightx2v_size", "720x1280");
        const read = () =>
            page.evaluate(() => {
                const node = window.app.graph.nodes.find((each) => each.type === "LightX2VEmptyLatent");
                return ["width", "height", "num_frames"].map((name) => node.widgets.find((widget) => widget.name === name).value);
            });
        const preset = await read();
        await setWidget("LightX2VEmptyLatent", "width", 850);
        await setWidget("LightX2VEmptyLatent", "num_frames", 84);
        // Newer editors list a chosen node's inputs beside the graph; a press in its panel chooses it in one renderer only.
        await page.evaluate(() => window.app.canvas.selectNodes(window.app.graph.nodes.filter((each) => each.type === "LightX2VEmptyLatent")));
        await page.waitForTimeout(500);
        await shot("sizes");
        const text = await panelText("LightX2VEmptyLatent", "lightx2v_size");
        return { preset, snapped: await read(), text, beside: await textBeside() };
    },

    async doctor() {
        await openTab("lightx2v-doctor");
        await page.getByText("Copy as Markdown").first().waitFor({ timeout: 30_000 });
        const tab = page.locator(".side-bar-panel, .sidebar-content-container").first();
        // What is left of a model that is here in part; the files of this suite are too small to be whole.
        const rest = tab.getByRole("button", { name: "Download the rest" }).first();
        await rest.waitFor({ timeout: 30_000 });
        await page.waitForTimeout(500);
        const shown = await tab.innerText();
        await shot("doctor");
        const command = await rest.getAttribute("title");
        await rest.click();
        await tab.getByRole("button", { name: /^Start: / }).waitFor();
        await shot("doctor_rest");
        await tab.getByRole("button", { name: "Not now" }).click();
        await page.getByText("Copy as Markdown").first().click();
        await page.waitForTimeout(200);
        const markdown = await page.evaluate(() => navigator.clipboard.readText());
        await openTab(null);
        return { markdown, shown, command };
    },

    /** What panels and doctor say while ComfyUI is away, and when it is back. */
    async away() {
        await load(config.graph);
        const type = "LightX2VLoadTransformer";
        await waitForPanel(type, "lightx2v_plan", "Fits");
        await openTab("lightx2v-doctor");
        const tab = page.locator(".side-bar-panel, .sidebar-content-container").first();
        await tab.getByText("Copy as Markdown").waitFor({ timeout: 30_000 });
        const routes = /\/lightx2v\/(plan|doctor|downloads)/;
        await page.route(routes, (route) => route.abort());
        await setWidget(type, "engine", "portable");
        await waitForPanel(type, "lightx2v_plan", "does not answer");
        await tab.getByRole("button", { name: "Look again" }).click();
        await tab.getByText("does not answer").first().waitFor();
        await shot("away");
        const said = { plan: await panelText(type, "lightx2v_plan"), doctor: await tab.innerText() };
        await page.unroute(routes);
        // The browser says so too.
        problems.splice(0, problems.length, ...problems.filter((text) => !text.includes("net::ERR_FAILED")));
        await page.evaluate(() => window.comfyAPI.api.api.dispatchEvent(new CustomEvent("reconnected")));
        await waitForPanel(type, "lightx2v_plan", "Fits");
        await tab.getByText("Copy as Markdown").waitFor({ timeout: 30_000 });
        await openTab(null);
        return { ...said, back: await panelText(type, "lightx2v_plan") };
    },

    /** Sizes that other nodes give. */
    async otherSizes() {
        const type = "LightX2VLoadTransformer";
        const said = {};
        const add = (kind, mode, value) => page.evaluate(([wanted, nodeMode, given]) => {
            const { LiteGraph, app } = window;
            const node = LiteGraph.createNode(wanted);
            node.pos = [0, 900];
            app.graph.add(node);
            node.mode = nodeMode;
            if (given !== null) {
                node.widgets[0].value = given;
            }
            const latent = app.graph.nodes.find((each) => each.type === "LightX2VEmptyLatent");
            node.connect(0, latent, latent.inputs.findIndex((input) => input.name === "width"));
            app.graph.change?.();
        }, [kind, mode, value]);
        const prompted = () => page.evaluate(async () => {
            const { output } = await window.app.graphToPrompt();
            return Object.values(output).find((node) => node.class_type === "LightX2VEmptyLatent").inputs.width ?? null;
        });
        const cases = {
            made: ["GetImageSize", 0, null, "known in the run"],
            given: ["PrimitiveInt", 0, 832, "832x192"],
            bypassed: ["PrimitiveInt", 4, 832, "192x192"],
            muted: ["PrimitiveInt", 2, 832, "muted"],
        };
        for (const [name, [kind, mode, value, pattern]] of Object.entries(cases)) {
            await load(config.graph);
            await waitForPanel(type, "lightx2v_plan", "192x192, 9 frames");
            await add(kind, mode, value);
            await waitForPanel(type, "lightx2v_plan", pattern);
            await zoomTo(type);
            await shot(`size_${name}`);
            said[name] = { text: await panelText(type, "lightx2v_plan"), prompted: await prompted() };
        }
        await load(config.graph);
        await page.evaluate(() => {
            const { LiteGraph, app } = window;
            const sampler = app.graph.nodes.find((each) => each.type === "LightX2VSampler");
            const [other, latent] = ["KSampler", "EmptyLatentImage"].map((kind, index) => {
                const node = LiteGraph.createNode(kind);
                node.pos = [index * 400, 1100];
                app.graph.add(node);
                return node;
            });
            app.graph.nodes.find((each) => each.type === "LightX2VLoadTransformer").connect(0, other, 0);
            latent.connect(0, other, other.inputs.findIndex((input) => input.name === "latent_image"));
            app.graph.remove(sampler);
        });
        await waitForPanel(type, "lightx2v_plan", "512x512");
        await shot("size_image");
        said.image = { text: await panelText(type, "lightx2v_plan") };
        return said;
    },

    /** Look at a checkpoint in full, from the doctor. */
    async verify() {
        await openTab("lightx2v-doctor");
        const panel = page.locator(".side-bar-panel, .sidebar-content-container").first();
        await page.getByText(/^All right/).first().click({ timeout: 30_000 });
        await panel.getByRole("button", { name: "Check in full" }).first().click();
        await panel.getByText("tokenizer.json", { exact: true }).first().waitFor({ timeout: 60_000 });
        await shot("verified");
        const shown = await panel.innerText();
        await openTab(null);
        return { shown };
    },

    /** Enhance a prompt with a server that answers, then with one that is not there. */
    async enhance() {
        const type = "LightX2VEnhancePrompt";
        await clear();
        await page.evaluate((wanted) => {
            const { LiteGraph, app } = window;
            const [enhancer, preview] = [wanted, "PreviewAny"].map((name, index) => {
                const node = LiteGraph.createNode(name);
                node.pos = [index * 600, 0];
                app.graph.add(node);
                return node;
            });
            enhancer.connect(0, preview, 0);
        }, type);
        await setWidget(type, "text", "a red fox");
        await setWidget(type, "url", config.llm);
        await fit();
        await watchRun();
        await queue();
        await waitForEnd();
        await waitForPanel(type, "lightx2v_enhanced", "snow");
        await shot("enhanced");
        const enhanced = await panelText(type, "lightx2v_enhanced");
        await setWidget(type, "url", "http://127.0.0.1:9");
        await watchRun();
        await queue();
        await waitForEnd();
        await waitForPanel(type, "lightx2v_enhanced", "cannot be reached");
        // The toast of early frontends, and of newer ones.
        const toast = page.locator(".p-toast-message, ol > li", { hasText: "cannot be reached" }).first();
        const message = await toast.innerText();
        await shot("not_enhanced");
        await toast.getByRole("button").click();
        return { enhanced, kept: await panelText(type, "lightx2v_enhanced"), message, ended: (await seen()).ended };
    },

    async run() {
        await load(config.graph);
        await setWidget("LightX2VSampler", "seed", 1);
        await watchRun();
        await queue();
        await waitForStep(2);
        await shot("running");
        await waitForEnd();
        await waitForPanel("LightX2VReport", "lightx2v_report", "Details");
        await fit();
        await shot("finished");
        await waitForPanel("LightX2VLoadTransformer", "lightx2v_plan", "measured");
        return { ...(await seen()), plan: await panelText("LightX2VLoadTransformer", "lightx2v_plan") };
    },

    async report() {
        await zoomTo("LightX2VReport", 1.2);
        await shot("report");
        const text = await panelText("LightX2VReport", "lightx2v_report");
        const copies = {};
        for (const kind of ["JSON", "Markdown"]) {
            await press("LightX2VReport", "lightx2v_report", `Copy as ${kind}`);
            await page.waitForTimeout(200);
            copies[kind] = await page.evaluate(() => navigator.clipboard.readText());
        }
        // The button reads "Copied" for a moment.
        await page.waitForTimeout(1500);
        // A page that is served over plain http from another machine has no clipboard.
        await page.evaluate(async () => {
            window.realClipboard = navigator.clipboard;
            await window.realClipboard.writeText("");
            Object.defineProperty(navigator, "clipboard", { value: undefined, configurable: true });
        });
        await press("LightX2VReport", "lightx2v_report", "Copy as JSON");
        await page.waitForTimeout(200);
        const withoutClipboard = await page.evaluate(() => {
            Object.defineProperty(navigator, "clipboard", { value: window.realClipboard, configurable: true });
            return navigator.clipboard.readText();
        });
        return { text, ...copies, withoutClipboard };
    },

    async cancel() {
        await load(config.graph);
        await setWidget("LightX2VSampler", "seed", 2);
        await watchRun();
        await queue();
        await waitForStep(1);
        const start = Date.now();
        await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.Interrupt"));
        await waitForEnd();
        const milliseconds = Date.now() - start;
        await shot("cancelled");
        return { ...(await seen()), milliseconds };
    },

    async reload() {
        await load(config.graph);
        await setWidget("LightX2VSampler", "seed", 3);
        await setWidget("LightX2VEmptyLatent", "num_frames", 25);
        await watchRun();
        await queue();
        await waitForStep(1);
        await page.reload({ waitUntil: "domcontentloaded" });
        await settle();
        await page.waitForFunction(() => window.app.graph.nodes.length > 0, null, { timeout: 30_000 });
        await watchRun();
        await waitForPanel("LightX2VLoadTransformer", "lightx2v_plan", "Fits");
        await shot("reloaded");
        await waitForEnd();
        await waitForPanel("LightX2VReport", "lightx2v_report", "Details");
        await shot("reloaded_finished");
        return { ...(await seen()), types: await page.evaluate(() => window.app.graph.nodes.map((node) => node.type)) };
    },

    /** The same in Chinese: what panels, doctor, a run, its report and its error say. */
    async chinese() {
        await setSetting("Comfy.Locale", "zh");
        await page.reload({ waitUntil: "domcontentloaded" });
        await settle();
        await load(config.graph);
        const loader = "LightX2VLoadTransformer";
        await waitForPanel(loader, "lightx2v_plan", "放得下");
        await fit();
        await shot("zh_plan");
        const titles = await page.evaluate(
            (type) => [...window.findPanel(type, "lightx2v_plan").querySelectorAll("[title]")].map((each) => each.title),
            loader,
        );
        const panels = [
            await panelText(loader, "lightx2v_plan"),
            await panelText("LightX2VOffload", "lightx2v_plan"),
            await panelText("LightX2VEmptyLatent", "lightx2v_size"),
        ];
        await openTab("lightx2v-doctor");
        await page.getByText("复制为 Markdown").first().waitFor({ timeout: 30_000 });
        const tab = page.locator(".side-bar-panel, .sidebar-content-container").first();
        await tab.evaluate((element) => element.querySelectorAll("details").forEach((each) => (each.open = true)));
        const doctor = await tab.innerText();
        await shot("zh_doctor");
        await openTab(null);
        await setWidget("LightX2VSampler", "seed", 4);
        await setWidget("LightX2VEmptyLatent", "num_frames", 1);
        await watchRun();
        await queue();
        await page.waitForFunction(() => window.seen.texts.some((text) => text.startsWith("第 2/4 步")), null, { timeout: 120_000 });
        await shot("zh_running");
        await waitForEnd();
        const run = await seen();
        await waitForPanel("LightX2VReport", "lightx2v_report", "详情");
        await zoomTo("LightX2VReport");
        await shot("zh_report");
        const unfold = (isOpen) => (window.findPanel("LightX2VReport", "lightx2v_report").querySelector("details").open = isOpen);
        await page.evaluate(unfold, true);
        const report = await panelText("LightX2VReport", "lightx2v_report");
        await page.evaluate(unfold, false);
        await setWidget(loader, "engine", "lightx2v");
        await watchRun();
        await queue();
        await waitForEnd();
        await shot("zh_error");
        const { ended, said } = await seen();
        await setSetting("Comfy.Locale", "en");
        return { panels, titles, doctor, texts: run.texts, report, ended, said };
    },
};

const wanted = config.steps ?? Object.keys(steps);
for (const name of wanted) {
    const start = Date.now();
    let result;
    try {
        result = await steps[name]();
    } catch (error) {
        await page.screenshot({ path: path.join(shots, `failed_${name}.png`) }).catch(() => {});
        result = { error: String(error.stack ?? error) };
    }
    if (result.error && name === "open") {
        throw new Error(result.error);
    }
    console.log(JSON.stringify({ step: name, seconds: (Date.now() - start) / 1000, ...result }));
}
console.log(JSON.stringify({ step: "problems", problems, cramped }));
await browser.close();
