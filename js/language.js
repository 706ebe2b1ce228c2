// Tells the server the editor's language: errors and progress of its prompts come in it.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { postJson } from "./api.js";
import { language } from "./texts.js";

let told = "";

async function tell() {
    const editor = { client: api.clientId, language: language() };
    const now = JSON.stringify(editor);
    if (!editor.client || told === now) {
        return;
    }
    told = now;
    try {
        await postJson("language", editor);
    } catch {
        // Said again with the next status; until then the server speaks English.
        told = "";
    }
}

app.registerExtension({
    name: "lightx2v.language",
    setup() {
        tell();
        // The first one brings the client id.
        api.addEventListener("status", tell);
        api.addEventListener("reconnected", () => {
            // A server that was started anew knows no editor.
            told = "";
            tell();
        });
        app.ui.settings.addEventListener("Comfy.Locale.change", tell);
    },
});
