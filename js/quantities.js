// Sizes in words, in the one unit that engine/quantities.py decides, and sizes of videos.

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

const MULTIPLE = 16;

/** [width, height] of about `area` pixels in a picture's shape, as engine/stages/given_frames.py has it. */
export function sizeOfArea({ width, height }, area) {
    const aspect = height / width;
    const whole = (pixels) => Math.max(Math.floor(pixels / MULTIPLE), 1) * MULTIPLE;
    return [whole(Math.sqrt(area / aspect)), whole(Math.sqrt(area * aspect))];
}
