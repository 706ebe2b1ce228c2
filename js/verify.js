// A checkpoint looked at in full: every byte, by hash and content, with progress.

import { button, element, fetchJson, muted, postJson, progressBar, sayUnanswered } from "./api.js";
import { formatBytes } from "./quantities.js";
import { say } from "./texts.js";

const POLL_MS = 1000;

/** A button that checks a checkpoint in full; `describeItem` makes a row of each finding. */
export function describeCheck(name, describeItem) {
    const place = element("div", {});
    const show = (...rows) => place.replaceChildren(...rows);
    const start = button(say("check"), say("check_title"), async () => {
        try {
            await postJson("verify", { checkpoint: name });
            follow();
        } catch (error) {
            show(start, muted(error.message));
        }
    });
    const stop = button(say("stop"), say("check_stop_title"), () => postJson("verify", {}));

    async function follow() {
        try {
            const state = await fetchJson("verification");
            if (state.name !== name) {
                show(start);
            } else if (state.is_running) {
                const amount = say("check_amount", { done: formatBytes(state.done_bytes), size: formatBytes(state.num_bytes), file: state.what });
                // Until it is known what there is to read.
                const isCounted = state.num_bytes > 0;
                show(...(isCounted ? [muted(amount)] : []), progressBar(state), stop);
                setTimeout(() => place.isConnected && follow(), POLL_MS);
            } else {
                show(start, ...(state.problem ? [muted(state.problem)] : []), ...state.items.map(describeItem));
            }
        } catch (error) {
            show(start, muted(sayUnanswered(error)));
        }
    }

    show(start);
    follow();
    return place;
}
