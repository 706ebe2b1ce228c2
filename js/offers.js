// What the list of downloads shows, and in which order: values only, no elements.

// What the route takes: names, and characters of each.
const MOST_NAMES = 20;
const MOST_CHARACTERS = 300;

/** Parameters of GET /lightx2v/downloads for the files that the graph names and lacks. */
export function wantedParameters({ names }) {
    const asked = names.filter((name) => name.length <= MOST_CHARACTERS).slice(0, MOST_NAMES);
    return Object.fromEntries(asked.map((name, index) => [`file_${index + 1}`, name]));
}

/**
 * What comes first, what is best for this machine, and the rest. Where the best is all that is wanted it has its usual
 * place; it is undefined where it is among several that are.
 */
export function splitOffers({ variants, wanted }) {
    const [first, ...others] = variants;
    if (wanted.length === 1 && isSame(wanted[0], first)) {
        return { wanted: [], best: first, others };
    }
    // A variant of which only a part is wanted is offered as a whole too.
    const names = wanted.filter(({ parts }) => parts.length === 0).map(({ name }) => name);
    return {
        wanted: wanted.map(({ files, ...variant }) => ({ variant, files })),
        best: names.includes(first.name) ? undefined : first,
        others: others.filter(({ name }) => !names.includes(name)),
    };
}

/** Whether two offers fetch the same. */
function isSame(one, other) {
    return one.name === other.name && one.parts.join() === other.parts.join();
}

/** What a button is named by: the variant, or where parts of it are wanted alone the first file, without its folder. */
export function nameOffer({ name, parts }, [first]) {
    return parts.length ? first.split(/[\\/]/).at(-1) : name;
}

/** Neighbours with the same heading together: [[heading, variants], ...]. */
export function groupByHeading(variants) {
    const groups = [];
    for (const variant of variants) {
        if (groups.at(-1)?.[0] !== variant.heading) {
            groups.push([variant.heading, []]);
        }
        groups.at(-1)[1].push(variant);
    }
    return groups;
}
