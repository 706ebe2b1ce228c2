// A sentence of the server in short: what a headline takes of it, and the rest.

// What fits into two lines of a panel, in Latin letters; Chinese characters are twice as wide.
const SHORT = 90;
const WIDE = /[\u2e80-\uffef]/g;
// A folder before a file's name, which says enough; where it lies is in the title. It ends at a blank and at a stop of
// a sentence, whose next words may have slashes too: of "/a/my models/b" what is left is "my models/b".
const FOLDER = /(?<=^|[\s'"(“（：，。])(?:[A-Za-z]:[\\/]|\/)(?:[^\\/:*?"<>|\s;,()[\]{}'=\u3000-\u303f\uff00-\uffef]+[\\/])+(?=[^\\/:*?"<>|\s;,.)\u3000-\u303f\uff00-\uffef])/g;
// Names between quotes, which may have full stops and colons of their own.
const QUOTED = /(?<![^\s(（：，])'[^'\n]*'|"[^"\n]*"/g;
// Where a headline may end: at a full stop or a colon, but not where a list of choices begins.
const END = /\. |(?<!\bof): |。|(?<!之一|现有)：/;

/** Return [headline, rest]: all of a short sentence, else up to its first full stop or colon; a line ends it too. */
export function splitSentence(sentence) {
    const short = sentence.replace(FOLDER, "");
    const width = short.length + (short.match(WIDE)?.length ?? 0);
    const masked = short.replace(QUOTED, (name) => "_".repeat(name.length));
    const cut = short.includes("\n") ? short.indexOf("\n") : width > SHORT ? masked.search(END) + 1 : 0;
    return cut > 0 ? [short.slice(0, cut).replace(/:$/, ".").replace(/：$/, "。"), short.slice(cut).trim()] : [short, ""];
}

/** Of a text with lines of its own, such as one a mode, its first sentence. */
export function firstOf(text) {
    return text.includes("\n") ? text.split("\n")[0].split(/(?<=\. |。)/)[0] : text;
}
