"""What the panels say: every text is there in both languages, with the same holes; every one that is said exists. And
which nodes they follow."""

import importlib
import json
import pkgutil
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from lightx2v_pack.engine import sentences
from lightx2v_pack.engine.quantities import format_bytes
from lightx2v_pack.engine.sentences import LANGUAGES, Sentence, translated
from lightx2v_pack.engine.sentences.comfyui import Lists
from lightx2v_pack.engine.sentences.folders import Folders
from lightx2v_pack.engine.sentences.kinds import Parts
from lightx2v_pack.engine.sentences.settings import Settings
from lightx2v_pack.engine.stages import given_frames
from support.node_schemas import read_golden

JS = Path(__file__).resolve().parents[2] / "js"
SOURCE = (JS / "texts.js").read_text(encoding="utf-8")
CHINESE = re.compile("[\u4e00-\u9fff]")


def texts(language):
    block = SOURCE.split(f"    {language}: {{\n", 1)[1].split("    },\n", 1)[0]
    return dict(re.findall(r'^        (\w+): "((?:[^"\\]|\\.)*)",$', block, re.MULTILINE))


def holes(text):
    return sorted(re.findall(r"\{(\w+)\}", text))


def test_both_languages_say_the_same():
    english, chinese = texts("en"), texts("zh")
    assert english and english.keys() == chinese.keys()
    for name, text in english.items():
        assert holes(text) == holes(chinese[name]), name
        words = re.sub(r"\{\w+\}|LoRA|GiB|GB|MB|Markdown|JSON|VRAM|RAM|fps|\bof\b|\bx\b|[\W\d]", "", text)
        assert not words or CHINESE.search(chinese[name]), name


def test_choices_that_are_phrases_have_words_in_every_language():
    """The panels show these words; tooltips name the choices by them."""
    texts_of = json.loads((JS.parent / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    for name, node in read_golden().items():
        for each in node["inputs"]:
            for option in each.get("options", ()):
                if " " in option and not option.endswith(".safetensors"):
                    described = texts_of[name]["inputs"][each["id"]]
                    assert CHINESE.search(described["options"][option]), (name, option)
                    assert described["options"][option] in described["tooltip"] and option not in described["tooltip"]


def test_every_text_that_is_said_exists_and_every_text_is_said():
    code = {path.name: path.read_text(encoding="utf-8") for path in JS.glob("*.js") if path.name != "texts.js"}
    said = {name for text in code.values() for name in re.findall(r'say\("(\w+)"', text)}
    assert said <= texts("en").keys()
    # Names that are put together: say(`basis_${...}`), or chosen by a condition.
    loose = {name for text in code.values() for name in re.findall(r'"(\w+)"', text)}
    begun = {name for text in code.values() for name in re.findall(r"[`](\w+_)\$\{", text)}
    unused = {name for name in texts("en").keys() - said - loose if not any(name.startswith(start) for start in begun)}
    assert not unused


def test_panels_write_no_words_of_their_own():
    """A text between quotes that a panel shows goes through say()."""
    for path in JS.glob("*.js"):
        if path.name == "texts.js":
            continue
        text = path.read_text(encoding="utf-8")
        shown = re.findall(r'(?:button|muted|copyButton|headline)\((?:[\w.]+, )?"([A-Z][^"]* [^"]*)"', text)
        assert not shown, path.name


def test_the_plan_line_follows_every_node_that_says_how_a_loader_loads():
    graph, nodes = (JS / "graph.js").read_text(encoding="utf-8"), read_golden()
    watched = graph.split("export const WATCHED = [", 1)[1].split("]", 1)[0]
    names = {node for constant, node in re.findall(r'const (\w+) = "(\w+)";', graph) if f" {constant}," in watched}
    given = {each["type"] for name, node in nodes.items() if "Load" in name for each in node["inputs"]}
    own = {name for name, node in nodes.items() for each in node["outputs"] if each["type"] in given}
    assert own == {"LightX2VOffload", "LightX2VGPUs"} and own <= names


def split(*said):
    """Return what the panels make of sentences of the server: a headline and the rest of each."""
    return evaluate("sentence.js", "splitSentence", f"{json.dumps(said)}.map(splitSentence)")


def evaluate(file, names, expression):
    """Return the value of an expression of what a file of js/ exports; without a browser."""
    if not shutil.which("node"):
        pytest.skip("node is not on the PATH")
    script = f'import {{ {names} }} from "{(JS / file).as_uri()}"; console.log(JSON.stringify({expression}));'
    done = subprocess.run(
        ["node", "--input-type=module", "-"], input=script, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_the_panels_read_sizes_as_the_server_does():
    sizes = [0, 250, 21_000, 999_999, 4_310_000, 9_999_999, 83_000_000, 107_374_182, 633_000_000, 22_300_000_000]
    sizes += [99_990_000_000, 2_147_000_000_000, 9 * 2**40]
    assert evaluate("quantities.js", "formatBytes", f"{sizes}.map(formatBytes)") == list(map(format_bytes, sizes))


def test_the_panel_knows_the_size_that_comes_out():
    pictures = [(4000, 3000), (3000, 4000), (1024, 1024), (1, 5000), (90, 60), (833, 479), (1920, 817)]
    cases = [(*picture, area) for picture in pictures for area in (832 * 480, 1280 * 720, 16 * 16)]
    shown = evaluate(
        "quantities.js",
        "sizeOfArea",
        f"{json.dumps(cases)}.map(([w, h, a]) => sizeOfArea({{ width: w, height: h }}, a))",
    )
    assert shown == [list(given_frames.size_of_area(height, width, area)) for width, height, area in cases]


NAMES = (
    "wan2.2_i2v_A14b_low_noise_scaled_fp8_e4m3_lightx2v_4step.safetensors",
    "my lora v1. final: it's mine.safetensors",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_headline_about_a_file_names_it(name, language):
    listed, fetch = "one.safetensors, two.safetensors (12 in all)", ""
    said = [
        Lists.CHOOSE_ANOTHER(what="LoRA", name=name, found=found(), listed=listed, fetch=fetch)
        for found in (Lists.NOT_FOUND, Lists.IS_OUTSIDE)
    ]
    said.append(Lists.CHOOSE_PART(parts="wan/distill_fp8 or wan/distill_int8", name=name, what="transformer"))
    for headline, rest in split(*(translated(each, language) for each in said)):
        assert name in headline and "one.safetensors" not in headline
        assert headline.endswith((".", "\u3002")) and rest != headline


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_headline_does_not_end_where_a_list_of_choices_begins(language):
    said = Settings.NO_CHOICE(name="attention", value="x" * 60, choices="auto, sdpa, triton, sage_attn2, flash_attn3")
    ((headline, _),) = split(translated(said, language))
    assert "auto" in headline


def test_a_path_in_a_headline_is_the_files_name():
    said = "/home/me/ComfyUI/models/lightx2v/wan/block_1.safetensors ends after 12 bytes; download it again, please."
    assert split(said)[0][0].startswith("block_1.safetensors ends")


FOLDERS = ("/models/lightx2v/i2v", "C:\\ComfyUI\\models\\lightx2v\\i2v", "/my models/lightx2v/i2v, the first")


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_panel_says_every_word_of_a_sentence_about_a_folder(language):
    """Whatever the values are: only what is before the last name of a path is left out."""
    for folder in FOLDERS:
        said = [
            sentence(**{name: 1 if spec else folder for name, spec in sentence.fields.items()})
            for sentence in catalogue()
        ]
        whole = [translated(each, language) for each in said]
        for text, (headline, rest) in zip(whole, split(*whole), strict=True):
            shown = plain(headline + rest)
            assert folder not in text or "i2v" in shown, text
            # A word that meets a value goes on with its path.
            for word in re.split(r"[\s;:.,()\u3000-\u303f\uff00-\uffef]+", text.replace(folder, "\0")):
                kept = word.rpartition("/")[2] if word.startswith("/") else word
                assert "\0" in word or kept in shown, text


def catalogue():
    modules = [
        importlib.import_module(f"{sentences.__name__}.{each.name}")
        for each in pkgutil.iter_modules(sentences.__path__)
    ]
    classes = {each for module in modules for each in vars(module).values() if isinstance(each, type)}
    return [value for each in classes for value in vars(each).values() if isinstance(value, Sentence)]


def plain(text):
    """Return a text without blanks, and without the stops that a headline may end with instead of a colon."""
    return re.sub(r"[\s:.\uff1a\u3002]", "", text)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("home", FOLDERS[:2])
def test_a_missing_part_is_said_with_its_place(home, language):
    said = Folders.PART_MISSING(
        part=Parts.TEXT_ENCODER(),
        file="models_t5_umt5-xxl-enc-fp8.pth",
        home=home,
        at_root=Folders.AT_ROOT(),
        folder="google",
        model_repository="lightx2v/Wan2.1-Distill-Models",
    )
    ((headline, rest),) = split(translated(said, language))
    assert " i2v" in rest and "google/" in rest and "lightx2v/Wan2.1-Distill-Models" in rest
    assert (
        headline
        == {"en": "The text encoder is missing.", "zh": "\u7f3a\u5c11\u6587\u672c\u7f16\u7801\u5668\u3002"}[language]
    )


def test_sentences_of_the_plan_line_meet_as_their_language_has_it():
    """Chinese has no blank between sentences, nor between words."""
    assert texts("zh")["sentences"] == "{first}{second}" and texts("en")["sentences"] == "{first} {second}"
    for name, text in texts("zh").items():
        assert not re.search(
            "[\u3000-\u303f\uff00-\uffef] | [\u3000-\u303f\uff00-\uffef]|[\u4e00-\u9fff] [\u4e00-\u9fff]", text
        ), name
        # A name that is Chinese too.
        assert "{name} " not in text or name.startswith(("download_", "waiting")) or "LoRA" in text, name
    panel = (JS / "plan_line.js").read_text(encoding="utf-8")
    assert not re.search(r"`\$\{say\([^`]*\} |join\(\", ?\"\)|join\(\" \"\)|`\(\$\{", panel)


def offers(variants, *wanted):
    found = {
        "variants": [{"name": name, "parts": []} for name in variants],
        "wanted": [{"name": name, "parts": parts, "files": []} for name, *parts in map(str.split, wanted)],
    }
    shown = evaluate("offers.js", "splitOffers", f"splitOffers({json.dumps(found)})")
    first = [each["variant"]["name"] for each in shown["wanted"]]
    return first, shown.get("best", {}).get("name"), [each["name"] for each in shown["others"]]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([], ([], "fp8", ["int8", "image", "lora"])),
        # The usual offer is what is wanted.
        (["fp8"], ([], "fp8", ["int8", "image", "lora"])),
        (["image"], (["image"], "fp8", ["int8", "lora"])),
        (["lora", "image"], (["lora", "image"], "fp8", ["int8"])),
        (["lora", "fp8"], (["lora", "fp8"], None, ["int8", "image"])),
        # A part alone, of what is offered as a whole too.
        (["fp8 vae"], (["fp8"], "fp8", ["int8", "image", "lora"])),
        (["image vae clip-vision"], (["image"], "fp8", ["int8", "image", "lora"])),
    ],
)
def test_what_is_wanted_is_offered_first_and_nothing_twice(wanted, expected):
    assert offers(["fp8", "int8", "image", "lora"], *wanted) == expected


@pytest.mark.parametrize(
    ("parts", "files", "name"),
    [([], ["wan/high", "low"], "pair"), (["vae", "clip-vision"], ["a\\vae", "clip"], "vae")],
)
def test_a_download_is_named_by_its_variant_and_parts_of_one_by_the_file(parts, files, name):
    variant = json.dumps({"name": "pair", "parts": parts})
    assert evaluate("offers.js", "nameOffer", f"nameOffer({variant}, {json.dumps(files)})") == name


def test_variants_are_listed_under_their_headings():
    variants = [{"name": name, "heading": heading} for name, heading in (("a", "x"), ("b", "x"), ("c", "y"))]
    groups = evaluate("offers.js", "groupByHeading", f"groupByHeading({json.dumps(variants)})")
    assert [(heading, [each["name"] for each in group]) for heading, group in groups] == [
        ("x", ["a", "b"]),
        ("y", ["c"]),
    ]


def test_files_that_the_open_graph_lacks_are_a_thing_to_do():
    """Once, whether or not there is any checkpoint at all; of graphs without nodes of the pack nothing is said."""
    fine, slow = {"state": "ok", "remedy": ""}, {"state": "warn", "remedy": "do"}
    none = {"state": "missing", "remedy": "get", "kind": "no_checkpoints"}
    lacks, whole = {"names": ["a"], "usesPack": True}, {"names": [], "usesPack": True}
    foreign = {"names": ["a"], "usesPack": False}
    for items, named, expected in (
        ([fine], whole, {"count": 0, "worst": "ok", "lacks": False}),
        ([fine], lacks, {"count": 1, "worst": "missing", "lacks": True}),
        ([fine], foreign, {"count": 0, "worst": "ok", "lacks": False}),
        ([slow, fine], lacks, {"count": 2, "worst": "missing", "lacks": True}),
        ([none, slow], lacks, {"count": 2, "worst": "missing", "lacks": True}),
        ([none], whole, {"count": 1, "worst": "missing", "lacks": False}),
    ):
        assert evaluate("verdict.js", "judge", f"judge({json.dumps(items)}, {json.dumps(named)})") == expected


def test_no_more_is_asked_for_than_the_route_takes():
    names = ["x" * 301, *(f"{number}.safetensors" for number in range(30))]
    asked = evaluate("offers.js", "wantedParameters", f"wantedParameters({json.dumps({'names': names})})")
    assert asked == {f"file_{number + 1}": f"{number}.safetensors" for number in range(20)}


# A graph that the panels read: nodes as (type, mode, {input: (node, slot) it is linked to, or a value}, output types).
SAMPLING = {"steps": 4, "shift": 5, "high_steps": 2}
T2V = {
    1: ("LightX2VLoadTransformer", 0, {"transformer": "wan"}, ["MODEL"]),
    2: ("LightX2VLora", 0, {"transformer": (1, 0), "lora": "fast", "strength": 1, "expert": "both"}, ["MODEL"]),
    3: ("LightX2VLora", 0, {"transformer": (2, 0), "lora": "fast", "strength": 1, "expert": "both"}, ["MODEL"]),
    4: ("CLIPTextEncode", 0, {}, ["CONDITIONING"]),
    5: ("LoadImage", 0, {}, ["IMAGE"]),
    6: (
        "LightX2VImageToVideo",
        0,
        {"positive": (4, 0), "start_image": (5, 0), "width": 64, "height": 48, "num_frames": 5, "batch_size": 1},
        ["CONDITIONING", "CONDITIONING", "LATENT"],
    ),
    7: ("LightX2VSampler", 0, {"transformer": (3, 0), "conditioning": (6, 0), "latent": (6, 2)} | SAMPLING, ["LATENT"]),
}


@pytest.fixture
def read_graph(tmp_path):
    """Return a function that builds a graph of the nodes above and what graph.js makes of it."""
    if not shutil.which("node"):
        pytest.skip("node is not on the PATH")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "app.js").write_text("export const app = {};")
    shutil.copytree(JS, tmp_path / "extensions" / "pack", ignore=shutil.ignore_patterns("docs"))

    def read_graph(nodes, expression):
        described = [[number, *node] for number, node in nodes.items()]
        script = f"""
            import * as graphs from "./extensions/pack/graph.js";
            import {{ app }} from "./scripts/app.js";
            const graph = {{ links: {{}}, nodes: [] }};
            app.graph = graph;
            const find = (id) => graph.nodes.find((node) => node.id === id);
            graph.getNodeById = find;
            for (const [id, type, mode, inputs, outputs] of {json.dumps(described)}) {{
                const node = {{ id, type, mode, graph, inputs: [], widgets: [] }};
                node.outputs = outputs.map((each) => ({{ type: each, links: [] }}));
                for (const [name, value] of Object.entries(inputs)) {{
                    if (!Array.isArray(value)) {{
                        node.widgets.push({{ name, value }});
                        continue;
                    }}
                    const [origin_id, origin_slot] = value;
                    const link = Object.keys(graph.links).length + 1;
                    const output = find(origin_id).outputs[origin_slot];
                    graph.links[link] = {{ origin_id, origin_slot, target_id: id, target_slot: node.inputs.length }};
                    output.links.push(link);
                    node.inputs.push({{ name, type: output.type, link }});
                }}
                graph.nodes.push(node);
            }}
            console.log(JSON.stringify({expression} ?? null));
        """
        (tmp_path / "ask.js").write_text(script)
        done = subprocess.run(["node", tmp_path / "ask.js"], capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    return read_graph


def changed(number, mode=None, **inputs):
    """Return the graph with another mode or other inputs of one node."""
    kind, usual, given, outputs = T2V[number]
    return T2V | {number: (kind, usual if mode is None else mode, given | inputs, outputs)}


def test_the_plan_is_asked_with_what_the_sampler_is_set_to(read_graph):
    ask = "graphs.describeRun(find(1)).parameters"
    asked = read_graph(T2V, ask)
    assert asked["steps"] == 4 and asked["shift"] == 5 and asked["high_steps"] == 2 and asked["has_picture"] == 1
    assert read_graph(changed(5, mode=4), ask)["has_picture"] == 0
    sampler = ("KSampler", 0, {"model": (3, 0), "positive": (6, 0), "latent_image": (6, 2)} | SAMPLING, ["LATENT"])
    asked = read_graph(T2V | {7: sampler}, ask)
    assert "shift" not in asked and asked["has_own_sampler"] == asked["has_picture"] == 1


@pytest.mark.parametrize(
    ("condition", "asked"),
    [
        (("LightX2VTextEncode", 0, {}, ["CONDITIONING"]), 0),
        (("ConditioningSetMask", 0, {"conditioning": (4, 0)}, ["CONDITIONING"]), 0),
        (("ConditioningCombine", 0, {"conditioning_1": (4, 0), "conditioning_2": (6, 0)}, ["CONDITIONING"]), 1),
        (("ConditioningCombine", 0, {"conditioning_1": (4, 0), "conditioning_2": (8, 0)}, ["CONDITIONING"]), None),
        (("Unknown", 0, {"conditioning": (6, 0)}, ["CONDITIONING"]), 1),
        (("Unknown", 0, {"conditioning": (4, 0)}, ["CONDITIONING"]), None),
        (("LightX2VImageToVideo", 0, {"positive": (4, 0), "negative": (6, 0)}, ["CONDITIONING"] * 2), 0),
        (("WanImageToVideo", 0, {"positive": (6, 0)}, ["CONDITIONING"] * 2), 1),
    ],
)
def test_the_plan_is_asked_with_a_picture_only_where_that_is_known(read_graph, condition, asked):
    """1: a picture reaches the sampler; 0: none can; nothing where another pack's node decides."""
    ask = "graphs.describeRun(find(1)).parameters.has_picture"
    other = ("Unknown", 0, {"text": "a fox"}, ["CONDITIONING"])
    kind, mode, given, outputs = T2V[7]
    first = {number: T2V[number] for number in range(1, 7)} | {8: other, 9: condition}
    guider = ("BasicGuider", 0, {"model": (3, 0), "conditioning": (9, 0)}, ["GUIDER"])
    assert read_graph(first | {7: (kind, mode, given | {"conditioning": (9, 0)}, outputs)}, ask) == asked
    sampler = ("SamplerCustomAdvanced", 0, {"guider": (10, 0), "latent_image": (6, 2)}, ["LATENT"])
    assert read_graph(first | {10: guider, 7: sampler}, ask) == asked


def test_it_is_known_which_files_the_graph_lacks(read_graph):
    ask = """(() => {
        Object.assign(find(1).widgets[0], { options: { values: ["other"] }, value: "wan.safetensors" });
        return graphs.missingFiles();
    })()"""
    found = read_graph(T2V, ask)
    assert found == {
        "names": ["wan.safetensors"],
        "own": ["wan.safetensors"],
        "usesPack": True,
    }
    foreign = {1: ("VAELoader", 0, {"vae_name": "wan.safetensors"}, ["VAE"])}
    assert read_graph(foreign, ask) == {"names": ["wan.safetensors"], "own": [], "usesPack": False}


def test_a_size_in_a_pictures_shape_is_known_to_be_an_area(read_graph):
    ask = "[graphs.describeRun(find(1)), graphs.isAnArea(find(6)), graphs.SIZE]"
    of_picture, exact = (read_graph(changed(6, size=size), ask) for size in ("from the picture", "width x height"))
    (run, is_area, kinds), (plain, is_plain_area, _) = of_picture, exact
    assert is_area and not is_plain_area
    assert (run["size"], plain["size"]) == (kinds["AREA"], kinds["KNOWN"])
    assert run["parameters"] == plain["parameters"] and plain["parameters"]["width"] == 64


NUMBER = ("PrimitiveInt", 0, {"value": 128}, ["INT"])
SIZE_KEYS = ("width", "height", "frames", "batch")


def sampled(latent, *, sampler="KSampler", before=None, **others):
    """Return a graph of a loader, a sampler and the node that makes its latent, which is the 6th."""
    names = {"LightX2VSampler": ("transformer", "latent")}.get(sampler, ("model", "latent_image"))
    return {
        1: T2V[1],
        **(before or {}),
        6: latent,
        7: (sampler, 0, {names[0]: (1, 0), names[1]: (6, others.get("slot", 0)), "steps": 4}, ["LATENT"]),
    }


def size_of(read_graph, graph):
    run, kinds = read_graph(graph, "[graphs.describeRun(find(1)), graphs.SIZE]")
    (kind,) = (name for name, value in kinds.items() if value == run["size"])
    return kind, [run["parameters"].get(name) for name in SIZE_KEYS], run.get("lacks")


OWN_SIZE = {"width": 64, "height": 48, "num_frames": 5, "batch_size": 2}
LENGTH_SIZE = {"width": 64, "height": 48, "length": 9, "batch_size": 1}
IMAGE_SIZE = {"width": 512, "height": 256}
UNKNOWN = [None] * 4


@pytest.mark.parametrize(
    ("latent", "kind", "size"),
    [
        (("LightX2VEmptyLatent", 0, OWN_SIZE, ["LATENT"]), "KNOWN", [64, 48, 5, 2]),
        (
            ("EmptyLatentImage", 0, IMAGE_SIZE | {"batch_size": 3}, ["LATENT"]),
            "KNOWN",
            [512, 256, 1, 3],
        ),
        (("EmptySD3LatentImage", 0, IMAGE_SIZE, ["LATENT"]), "KNOWN", [512, 256, 1, None]),
        (("EmptyHunyuanLatentVideo", 0, LENGTH_SIZE, ["LATENT"]), "KNOWN", [64, 48, 9, 1]),
        (("WanVaceToVideo", 0, LENGTH_SIZE | {"start_image": (2, 0)}, ["LATENT"]), "KNOWN", [64, 48, 9, 1]),
        (("OfAnotherPack", 0, LENGTH_SIZE, ["LATENT"]), "KNOWN", [64, 48, 9, 1]),
        # What ComfyUI's nodes round, and its samplers fill up.
        (("WanImageToVideo", 0, LENGTH_SIZE | {"length": 12}, ["LATENT"]), "KNOWN", [64, 48, 9, 1]),
        (("EmptyLatentImage", 0, {"width": 520, "height": 263}, ["LATENT"]), "AREA", [528, 256, 1, None]),
        (("LatentUpscale", 0, {"samples": (3, 0), "width": 64, "height": 48}, ["LATENT"]), "IN_RUN", UNKNOWN),
        (("VAEEncode", 0, {"pixels": (2, 0)}, ["LATENT"]), "IN_RUN", UNKNOWN),
        (("KSampler", 0, {"latent_image": (3, 0)}, ["LATENT"]), "KNOWN", [32, 16, 1, None]),
        (("LightX2VEmptyLatent", 2, OWN_SIZE, ["LATENT"]), "LACKS", UNKNOWN),
        (("LightX2VEmptyLatent", 4, OWN_SIZE, ["LATENT"]), "NONE", UNKNOWN),
        (("SetLatentNoiseMask", 4, {"samples": (3, 0)}, ["LATENT"]), "KNOWN", [32, 16, 1, None]),
    ],
)
def test_a_size_is_followed_whatever_node_makes_the_latent(read_graph, latent, kind, size):
    before = {
        2: ("LoadImage", 0, {}, ["IMAGE"]),
        3: ("EmptyLatentImage", 0, {"width": 32, "height": 16}, ["LATENT"]),
    }
    assert size_of(read_graph, sampled(latent, before=before))[:2] == (kind, size)


MADE = ("GetImageSize", 0, {"image": (3, 0)}, ["INT", "INT", "INT"])


@pytest.mark.parametrize(
    ("name", "number", "kind", "value"),
    [
        ("width", NUMBER, "KNOWN", 128),
        # What the prompt has: the widget's own value.
        ("height", ("PrimitiveInt", 4, {"value": 128}, ["INT"]), "KNOWN", 16),
        ("num_frames", ("PrimitiveInt", 2, {"value": 128}, ["INT"]), "LACKS", None),
        ("width", ("PrimitiveInt", 0, {"value": (2, 0), "kept": 1}, ["INT"]), "IN_RUN", None),
        ("width", ("Reroute", 0, {"": (4, 0)}, ["*"]), "KNOWN", 256),
        *((name, MADE, "IN_RUN", None) for name in OWN_SIZE),
    ],
)
def test_a_linked_size_is_what_the_prompt_will_have_or_is_not_known(read_graph, name, number, kind, value):
    """Never numbers of the graph beside ones that stand for what nobody knows."""
    before = {
        2: ("Math", 0, {}, ["INT"]),
        3: ("LoadImage", 0, {}, ["IMAGE"]),
        4: ("PrimitiveInt", 0, {"value": 256}, ["INT"]),
        5: number,
    }
    given = OWN_SIZE | {name: (5, 0), "kept": 16}
    graph = sampled(("LightX2VEmptyLatent", 0, given, ["LATENT"]), sampler="LightX2VSampler", before=before)
    # A linked widget keeps the value that it had.
    ask = """(() => {
        for (const [node, name] of [[find(6), "%s"], [find(5), "value"]]) {
            node.widgets.filter((each) => each.name === "kept").forEach((widget) => (widget.name = name));
        }
        return [graphs.describeRun(find(1)), graphs.SIZE];
    })()"""
    run, kinds = read_graph(graph, ask % name)
    size = list((OWN_SIZE | {name: value}).values())
    assert run["size"] == kinds[kind]
    assert [run["parameters"].get(each) for each in SIZE_KEYS] == (UNKNOWN if value is None else size)
    assert run.get("lacks") == ({"input": name, "node": "LightX2VEmptyLatent"} if kind == "LACKS" else None)


def test_one_size_that_is_not_known_leaves_the_plan_open(read_graph):
    """Though another sampler's is known, with which it is reckoned."""
    graph = sampled(("LightX2VEmptyLatent", 0, OWN_SIZE, ["LATENT"]))
    graph[8] = ("LatentUpscale", 0, {"samples": (7, 0), "width": 640, "height": 480}, ["LATENT"])
    graph[9] = ("KSampler", 0, {"model": (1, 0), "latent_image": (8, 0), "steps": 4}, ["LATENT"])
    assert size_of(read_graph, graph)[:2] == ("IN_RUN", [64, 48, 5, 2])


@pytest.mark.parametrize("length", [1, 250])
def test_every_lora_is_counted_or_it_is_said_how_many_are(host, read_graph, length):
    """As many as the route takes and fit into a request's line."""
    from lightx2v_pack.engine.panel import editor

    graph = {1: T2V[1]}
    for number in range(2, 72):
        given = {"transformer": (number - 1, 0), "lora": f"{number}" + "x" * length, "strength": 1, "expert": "both"}
        graph[number] = ("LightX2VLora", 0, given, ["MODEL"])
    graph[72] = ("LightX2VEmptyLatent", 0, OWN_SIZE, ["LATENT"])
    graph[73] = ("LightX2VSampler", 0, {"transformer": (71, 0), "latent": (72, 0)} | SAMPLING, ["LATENT"])
    ask = "[graphs.describeRun(find(1)), String(new URLSearchParams(graphs.describeRun(find(1)).parameters))]"
    run, line = read_graph(graph, ask)
    counted = [name for name in run["parameters"] if re.fullmatch(r"lora_\d+", name)]
    assert run["numLoras"] == 70 and run["numCounted"] == len(counted) and len(line) < 8000
    assert len(counted) == 64 if length == 1 else 10 < len(counted) < 64
    assert set(run["parameters"]) <= set(editor.PLAN.fields)


LOOPS = {
    "bypassed": [("LightX2VLora", 4), ("LightX2VLora", 4)],
    "reroutes": [("Reroute", 0), ("Reroute", 0)],
    "itself": [("Reroute", 0)],
    "nodes": [("LightX2VLora", 0), ("LoraLoaderModelOnly", 0)],
    "numbers": [("PrimitiveInt", 0), ("PrimitiveInt", 0)],
    "conditions": [("ConditioningCombine", 0), ("ConditioningCombine", 0)],
    "samplers": [("KSampler", 0), ("KSampler", 0)],
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("is_inside", [False, True], ids=["flat", "subgraphs"])
def test_a_loop_ends_every_walk(read_graph, loop, is_inside):
    """Whatever is asked of nodes that lead to each other in a ring, each of them in a subgraph of its own too."""
    ask = """(() => {
        const types = ["MODEL", "CONDITIONING", "LATENT", "INT"];
        const names = ["model", "positive", "latent_image", "width"];
        const ring = [];
        let count = 100;
        const join = (owner, from, out, to, slot) => {
            const id = count++;
            owner.links[id] = { id, origin_id: from.id, origin_slot: out, target_id: to.id, target_slot: slot };
            (from.outputs?.[out]?.links ?? from.list).push(id);
            if (to.inputs) {
                to.inputs[slot].link = id;
            } else {
                to.list.push(id);
            }
        };
        const make = (owner, type, mode) => {
            const node = { id: count++, type, mode, graph: owner, widgets: [{ name: "value", value: 1 }] };
            const nameOf = (index) => (type.startsWith("Primitive") ? "value" : names[index]);
            node.inputs = types.map((each, index) => ({ name: nameOf(index), type: each, link: null }));
            node.outputs = types.map((each) => ({ type: each, links: [] }));
            owner.nodes.push(node);
            return node;
        };
        for (const [type, mode] of %s) {
            if (!%s) {
                ring.push(make(graph, type, mode));
                continue;
            }
            const inner = { links: {}, nodes: [], rootGraph: graph };
            inner.getNodeById = (id) => inner.nodes.find((node) => node.id === id);
            const node = make(inner, type, mode);
            const around = Object.assign(make(graph, "subgraph", 0), { subgraph: inner });
            inner.inputs = types.map((each, slot) => ({ name: names[slot], linkIds: [] }));
            inner.outputs = types.map(() => ({ linkIds: [] }));
            types.forEach((each, slot) => {
                join(inner, { id: -10, list: inner.inputs[slot].linkIds }, slot, node, slot);
                join(inner, node, slot, { id: -20, list: inner.outputs[slot].linkIds }, slot);
            });
            // One that lies in itself.
            inner.nodes.push(Object.assign({}, around, { id: 7, graph: inner }));
            ring.push(around);
        }
        ring.forEach((node, index) => {
            types.forEach((each, slot) => join(graph, node, slot, ring[(index + 1) %% ring.length], slot));
        });
        const slotOf = (wanted) => find(7).inputs.findIndex(({ name }) => name === wanted);
        [0, 1, 2].forEach((slot) => join(graph, ring[0], slot, find(7), slotOf(names[slot])));
        join(graph, find(1), 0, ring[0], 0);
        join(graph, ring[0], 0, find(8), 0);
        const lora = find(8);
        for (const node of [find(1), ...ring, lora, find(7)]) {
            for (const name of names) {
                graphs.inputNode(node, name);
                graphs.widgetValue(node, name);
            }
            graphs.findLoader(node);
        }
        graphs.describeLora(lora);
        graphs.isPutOnBefore(lora);
        graphs.missingFiles();
        graphs.describeRun(find(1));
        return true;
    })()"""
    graph = {
        1: T2V[1],
        2: ("Unknown", 0, {}, ["CONDITIONING", "LATENT"]),
        7: ("KSampler", 0, {"model": (1, 0), "positive": (2, 0), "latent_image": (2, 1), "steps": 4}, ["LATENT"]),
        8: ("LightX2VLora", 0, {"transformer": (1, 0), "lora": "x", "strength": 1, "expert": "both"}, ["MODEL"]),
    }
    assert read_graph(graph, ask % (json.dumps(loop), json.dumps(is_inside)))


def test_a_loader_takes_what_was_fetched_in_place_of_what_it_names(read_graph):
    """Only where that is not there, and the other is."""
    kind, mode, given, outputs = T2V[1]
    (name,) = (key for key in ("checkpoint", "transformer") if key in given)
    ask = """(() => {
        const widget = find(1).widgets.find((each) => each.name === "%s");
        return [["new", "other"], ["new", "old"], ["other"]].map((values) => {
            Object.assign(widget, { value: "old", options: { values } });
            graphs.takeInstead({ new: "old", unrelated: "x" });
            return widget.value;
        });
    })()"""
    loaded = T2V | {1: (kind, mode, given | {name: "old"}, outputs)}
    assert read_graph(loaded, ask % name) == ["new", "old", "old"]


@pytest.mark.parametrize(
    ("graph", "is_twice"),
    [
        (T2V, True),
        (changed(2, lora="other"), False),
        (changed(2, mode=4), False),
        (changed(3, mode=4), False),
        (changed(2, strength=0), False),
        (changed(2, expert="high"), True),
        (changed(2, expert="high") | {3: changed(3, expert="low")[3]}, False),
    ],
)
def test_a_file_that_another_node_puts_on_is_known(read_graph, graph, is_twice):
    assert read_graph(graph, "graphs.isPutOnBefore(find(3))") is is_twice
    assert read_graph(graph, "graphs.isPutOnBefore(find(2))") is False


def test_a_lora_of_strength_0_is_known_to_be_switched_off(read_graph):
    ask = "[2, 3].map((id) => graphs.isWithoutStrength(find(id)))"
    assert read_graph(changed(2, strength=0), ask) == [
        True,
        False,
    ]


def test_a_lora_finds_its_loader_behind_a_bypassed_one(read_graph):
    ask = "graphs.describeLora(find(3))"
    assert read_graph(changed(2, mode=4), ask)["transformer"] == "wan"
    assert read_graph(changed(2, mode=2), ask) is None
    assert read_graph(changed(3, mode=4), "graphs.isSwitchedOff(find(3))")
