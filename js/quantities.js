// Sizes in words, in the one unit that engine/quantities.py decides.

const UNITS = [
    ["GiB", 2 ** 30, 0.1],
    ["MiB", 2 ** 20, 1],
    ["KiB", 2 ** 10, 1],
];

/** A size as one reads it, on a drive or in memory: 13.4 GiB, 931 GiB, 80 MiB. */
export function formatBytes(bytes) {
    const [unit, divisor] = UNITS.find(([, size, least]) => bytes >= least * size) ?? ["B", 1];
    const size = bytes / divisor;
    if (divisor === 1 || size >= (unit === "GiB" ? 100 : 10)) {
        return `${Math.round(size)} ${unit}`;
    }
    return `${Number(size.toPrecision(unit === "GiB" ? 3 : 2))} ${unit}`;
}
