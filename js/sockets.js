// Colours of the pack's own socket types; ComfyUI has them for its own.

import { app } from "../../scripts/app.js";

const SOCKETS = { LIGHTX2V_TEXT_ENCODER: "#FFD500", LIGHTX2V_OFFLOAD: "#8FBC8F" };

function paint() {
    for (const [type, color] of Object.entries(SOCKETS)) {
        const links = window.LGraphCanvas?.link_type_colors;
        if (links) {
            links[type] = color;
        }
        const slots = app.canvas?.default_connection_color_byType;
        if (slots) {
            slots[type] = color;
        }
        // Newer nodes are drawn by the browser.
        document.documentElement.style.setProperty(`--color-datatype-${type}`, color);
    }
    app.canvas?.setDirty(true, true);
}

/** Loading a palette, which comes after every extension's setup, sets the colour of every node's types back. */
function repaint() {
    const slots = app.canvas?.default_connection_color_byType ?? {};
    if (Object.entries(SOCKETS).some(([type, color]) => slots[type] !== color)) {
        paint();
    }
}

app.registerExtension({
    name: "lightx2v.sockets",
    setup() {
        paint();
        app.ui.settings.addEventListener("Comfy.ColorPalette.change", () => setTimeout(paint));
    },
    nodeCreated: repaint,
    afterConfigureGraph: repaint,
});
