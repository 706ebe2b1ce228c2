// What the doctor makes of all it found: how much there is to do, and how bad the worst of it is. Values only.

export const STATES = ["missing", "warn", "note", "ok"];
export const NO_CHECKPOINTS = "no_checkpoints";

export const isProblem = (item) => ["missing", "warn"].includes(item.state);

/**
 * Return {count, worst} of the server's items and what the open graph lacks. Files that it lacks are one thing to do, and
 * the same one as having no checkpoint at all.
 */
export function judge(items, { names, usesPack }) {
    const toDo = items.filter((item) => isProblem(item) && item.remedy);
    const lacks = usesPack && names.length > 0;
    const isCounted = toDo.some((item) => item.kind === NO_CHECKPOINTS);
    const found = STATES.find((state) => items.some((item) => item.state === state && (state === "ok" || item.remedy))) ?? "ok";
    return { count: toDo.length + (lacks && !isCounted ? 1 : 0), worst: lacks ? STATES[0] : found, lacks };
}
