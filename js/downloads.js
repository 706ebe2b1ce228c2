// Getting the weights: a button for what the graph names and lacks, one for this card, the other published variants
// folded, and the progress of the download.

import { app } from "../../scripts/app.js";
import { COLORS, button, element, fetchJson, formatSeconds, muted, postJson, progressBar, sayUnanswered } from "./api.js";
import { missingFiles, takeInstead } from "./graph.js";
import { groupByHeading, nameOffer, splitOffers, wantedParameters } from "./offers.js";
import { formatBytes } from "./quantities.js";
import { say } from "./texts.js";

const POLL_MS = 1000;

// The section on the page, and the timer of the one loop that follows a download, on the page or not.
let section;
let timer;
// Whether it is to be seen: somebody asks for a file, by its name.
let isAsked = false;
let asked = "";
// Of the download that was started here: what it brings in place of which files that loaders name.
let instead = {};

/** Unfold the section, now or when it is made, with what brings a file first. */
export function unfoldDownloads(name = "") {
    isAsked = true;
    asked = name;
    if (section?.content.isConnected) {
        showSection();
        offerAnew().then(showSection);
    }
}

/** Look anew at what the graph lacks; a download that runs is followed as it is. */
async function offerAnew() {
    if (section?.content.isConnected && timer === undefined) {
        await refresh();
    }
}

/** A section with what can be downloaded; `onArrival` is called when a download has succeeded. */
export function describeDownloads(isOpen, onArrival) {
    const content = element("div", {}, muted(say("looking")));
    const title = element("summary", { style: { cursor: "pointer", fontWeight: "600", padding: "7px 0" } }, say("get_weights"));
    section = { content, onArrival };
    refresh();
    return element("details", { open: isOpen || isAsked }, title, content);
}

async function refresh(wasRunning = false) {
    const { content, onArrival } = section;
    try {
        const named = missingFiles(asked);
        const found = await fetchJson("downloads", wantedParameters(named));
        const { progress } = found;
        content.replaceChildren(...(progress.is_running ? [describeProgress(progress)] : [...describeEnd(progress), ...describeOffer(found, named)]));
        clearTimeout(timer);
        timer = undefined;
        if (progress.is_running) {
            timer = setTimeout(() => refresh(true), POLL_MS);
        } else if (wasRunning && progress.is_complete) {
            // The loaders' lists are read anew, and with them the plan lines.
            await app.refreshComboInNodes();
            takeInstead(instead);
            onArrival();
        }
    } catch (error) {
        content.replaceChildren(muted(sayUnanswered(error)));
        timer = undefined;
    }
}

async function send(name, parts = []) {
    try {
        await postJson("download", parametersOf(name, parts));
        await refresh(true);
        if (name) {
            showSection();
        }
    } catch (error) {
        section.content.prepend(problem(error.message));
        showSection();
    }
}

/** Unfold the section, and have it in sight. */
function showSection() {
    const whole = section.content.closest("details");
    whole?.setAttribute("open", "");
    whole?.scrollIntoView({ block: "nearest" });
}

/** What the button for this machine says; a card without its maker's name, and nothing where there is none. */
function labelFor(variant, card) {
    const name = variant.name.toUpperCase();
    return card === "CPU" ? say("download", { name }) : say("download_for", { name, card: nameOf(card) });
}

const nameOf = (card) => card.replace(/^NVIDIA (GeForce )?/, "");

/** First what brings the files that are missing, then the file that is fastest here; the other ones folded. */
function describeOffer(found, named) {
    const { wanted, best, others } = splitOffers(found);
    const isWanted = wanted.length > 0;
    // What somebody asks for is in the first button, or in the list.
    const hasButton = isWanted || best.room.missing_bytes > 0;
    const unlisted = found.unlisted.filter((name) => named.own.includes(name)).map((name) => problem(say("not_listed", { name })));
    const first = wanted.flatMap(({ variant, files }) => {
        const label = say("download", { name: nameOffer(variant, files) });
        const isFaster = Object.keys(variant.instead).length > 0;
        const reason = isFaster ? [muted(say("download_faster", { card: nameOf(found.card) }))] : [];
        return [mainButton(variant, label, found, files.join("\n")), ...reason, muted(variant.summary)];
    });
    const usual = best
        ? [heading(best.heading), (isWanted ? variantButton : mainButton)(best, labelFor(best, found.card), found), muted(best.summary)]
        : [];
    const rows = groupByHeading(others).flatMap(([text, variants]) => [
        heading(text),
        ...variants.map((variant) =>
            element("div", { style: { padding: "6px 0" } }, variantButton(variant, say("download", { name: variant.name }), found), muted(variant.summary)),
        ),
    ]);
    const folded = element("summary", { style: { cursor: "pointer", padding: "6px 0" } }, say("other_versions", { count: others.length }));
    return [...unlisted, ...first, ...usual, element("details", { open: isAsked && !hasButton }, folded, ...rows)];
}

function heading(text) {
    return element("div", { style: { fontWeight: "600", padding: "10px 0 2px" } }, text);
}

/** The button of what somebody most likely wants. */
function mainButton(variant, label, found, title) {
    const built = variantButton(variant, label, found, title);
    Object.assign(built.firstChild.style, { padding: "6px 12px", fontWeight: "600", width: "100%", overflowWrap: "anywhere" });
    return built;
}

/** How the routes downloads and download name one variant, or parts of it. */
const parametersOf = (name, parts) => ({ variant: name, parts: parts.join(",") });

/** A button for what is left of a variant that the doctor found begun; `remedy` says it for a terminal. */
export function restButton({ variant: name, parts, remedy }) {
    const place = element("div", { style: { marginTop: "3px" } });
    fetchJson("downloads", parametersOf(name, parts)).then(
        (found) => place.append(variantButton(found.offer, say("download_rest"), found, remedy)),
        (error) => place.append(remedy, problem(error.message)),
    );
    return place;
}

/** A button with size and place beside it, which asks before it starts, if there is room. */
function variantButton(variant, label, { models_folder: models }, title = models) {
    const { room } = variant;
    // What is here is not fetched again.
    const size = { size: formatBytes(room.missing_bytes), folder: variant.folder, free: room.free_bytes === null ? "?" : formatBytes(room.free_bytes) };
    const isTight = room.lacking_bytes > 0;
    const facts = element("div", { title: models, style: { color: isTight ? COLORS.warn : "", margin: "3px 0" } }, say(isTight ? "download_tight" : room.missing_bytes ? "download_size" : "download_arrived", size));
    const built = element("div", {});
    const ask = async () => {
        // Somebody may have made room since.
        const { room: now } = (await fetchJson("downloads", parametersOf(variant.name, variant.parts))).offer;
        const start = button(say("download_start", size), "", () => {
            instead = variant.instead ?? {};
            send(variant.name, variant.parts);
        });
        start.disabled = now.lacking_bytes > 0;
        const stop = button(say("not_now"), "", () => built.replaceChildren(offer, facts));
        const lacks = say("download_lacks", { lacking: formatBytes(now.lacking_bytes), folder: now.folder });
        const style = { display: "flex", flexWrap: "wrap", gap: "6px" };
        const said = start.disabled ? problem(lacks) : element("div", { style: { margin: "3px 0" } }, say("download_ask", size));
        Object.assign(start.style, start.disabled ? { opacity: 0.5, cursor: "not-allowed" } : {});
        built.replaceChildren(element("div", { style }, start, stop), said);
    };
    const offer = button(label, title, () => ask().catch((error) => built.append(problem(error.message))));
    built.append(offer, facts);
    return built;
}

function describeProgress(progress) {
    const amount = say("download_amount", { name: progress.name, done: formatBytes(progress.done_bytes), size: formatBytes(progress.num_bytes) });
    const pace = progress.bytes_per_second
        ? [say("download_pace", { rate: formatBytes(progress.bytes_per_second), time: formatSeconds(progress.seconds_left) })]
        : [];
    const stop = button(say("stop"), say("stop_title"), () => send(""));
    return element("div", {}, element("div", {}, amount), progressBar(progress), ...pace.map((text) => element("div", {}, text)), muted(progress.what), stop);
}

function problem(text) {
    return element("div", { style: { color: COLORS.warn, overflowWrap: "anywhere", whiteSpace: "pre-line", padding: "4px 0" } }, text);
}

function describeEnd(progress) {
    if (progress.is_complete) {
        return [element("div", { style: { color: COLORS.ok } }, say("download_complete", { name: progress.name }))];
    }
    return progress.problem ? [problem(progress.problem)] : [];
}

app.registerExtension({
    name: "lightx2v.downloads",
    // Another graph lacks other files.
    afterConfigureGraph: () => {
        const { names, usesPack } = missingFiles();
        if (usesPack && names.length > 0) {
            section?.content.closest("details")?.setAttribute("open", "");
        }
        offerAnew();
    },
});
