"""One catalogue of sentences: modules that have moved there build no text of their own, and every sentence is used."""

import ast
import copy
import importlib
import json
import pickle
import pkgutil
import re
from pathlib import Path

import pytest
from lightx2v_pack.engine import sentences
from lightx2v_pack.engine.errors import CheckpointError
from lightx2v_pack.engine.sentences import LANGUAGES, Sentence, fields_of, joined, read_again, shortened, translated
from lightx2v_pack.engine.sentences.between import Between
from lightx2v_pack.engine.sentences.checkpoints import Reading
from lightx2v_pack.engine.sentences.comfyui import Inputs, Lists, Routes
from lightx2v_pack.engine.sentences.folders import Folders
from lightx2v_pack.engine.sentences.kernels import Running
from lightx2v_pack.engine.sentences.kinds import Parts

ROOT = Path(__file__).resolve().parents[2]
# Who meets what these say works on the pack itself: measurements, comparisons, pictures, tiny files.
FOR_CONTRIBUTORS = tuple(
    f"tools/{name}" for name in ("bench/", "cards/", "net/", "pictures/", "docker_lines.py", "make_tiny_checkpoint.py")
)
# What a user meets: nodes, panels, the log and commands.
MODULES = {
    name: file
    for folder in ("engine", "nodes", "tools")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if "sentences" not in file.parts and not (name := file.relative_to(ROOT).as_posix()).startswith(FOR_CONTRIBUTORS)
}
# Texts that stay where they are, by module, and why.
STAYS = {
    "engine/adapters/lightx2v/bootstrap.py": ("^pip install ", "a command"),
    "engine/backends/table.py": ("^(pip install|git clone) ", "commands"),
    "engine/backends/trial_process.py": ("^\nimport sys", "a program"),
    "engine/backends/trials.py": ("^(driver|torch|pack) {}$", "what findings are remembered by"),
    "engine/parallel/channel.py": ("the connection has ended", "no message shows it"),
    "engine/parallel/exchange.py": ("Another GPU has stopped|Connection closed", "no message shows it; what gloo says"),
    "engine/parallel/group.py": ("^rank {}$", "only in tests are there ranks without a GPU"),
    "engine/system.py": (
        "out of memory|when calling|unable to find|model name",
        "what CUDA, its libraries and Linux say",
    ),
    "nodes/image_to_video.py": ("made for|Number of videos", "tooltips"),
    "nodes/latent.py": ("made for|Number of videos", "tooltips"),
    "nodes/load.py": ("compute one clip together|decode together", "tooltips"),
    "tools/__main__.py": ("", "help; it runs before the pack has a name to import by"),
    "tools/generate_cli.py": ("^A red fox trots|^as on the nodes$|^example_workflows/", "a prompt, help, files"),
    "tools/headless/text_replacements.py": ("Node name for S&R", "a key of ComfyUI's"),
    "tools/headless/workflow.py": ("^easy [gs]etNode$", "node types"),
    "tools/prompts_cli.py": ("^1 Wan text to video.json$", "a file"),
}
# Two words in a row, or one beside a value: text, and no name or key.
_TEXT = re.compile(r"[A-Za-z]{2,} [a-z]{2,}|\b[a-z]{2,}[,;]? \{\}|\{\}[,;]? (?!ms$|min$)[a-z]{2,}\b")
# Keys of tables, though they have a blank in them.
_NAMES = {"text encoder", "image encoder", "in the way"}
CHINESE = re.compile("[\u4e00-\u9fff]")
# What argparse shows as help, and what the editor shows of a node's schema, which locales/ translates.
_HELP = {"help", "description", "epilog", "tooltip", "search_aliases", "placeholder", "display_name"}


def catalogue() -> dict[str, Sentence]:
    """Return every sentence by its id."""
    found = {}
    for module in pkgutil.iter_modules(sentences.__path__):
        content = importlib.import_module(f"{sentences.__name__}.{module.name}")
        for group in vars(content).values():
            if isinstance(group, type) and group.__module__ == content.__name__:
                entries = {each.id: each for each in vars(group).values() if isinstance(each, Sentence)}
                assert not entries.keys() & found.keys()
                found |= entries
    return found


def texts_of(tree: ast.AST) -> list[tuple[int, str]]:
    """Return the texts that a module builds itself, but for docstrings and help."""
    passed_over: set[int] = set()
    helping: set[str] = set()

    def pass_over(node: ast.AST) -> None:
        passed_over.update(id(each) for each in ast.walk(node))

    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            pass_over(node)
        # Regular expressions, the marks of kinds.py among them, and what only a contributor can meet.
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("re.", "_Kind", "AssertionError")):
            pass_over(node)
        if isinstance(node, ast.Assert) and node.msg is not None:
            pass_over(node.msg)
        if isinstance(node, ast.keyword) and node.arg in _HELP:
            pass_over(node.value)
            helping |= {each.id for each in ast.walk(node.value) if isinstance(each, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and helping & {ast.unparse(target) for target in node.targets}:
            pass_over(node.value)
        if isinstance(node, ast.JoinedStr) and id(node) not in passed_over:
            passed_over |= {id(each) for each in node.values if isinstance(each, ast.Constant)}
    found = []
    for node in ast.walk(tree):
        if id(node) in passed_over:
            continue
        if isinstance(node, ast.JoinedStr):
            parts = [each.value if isinstance(each, ast.Constant) else "{}" for each in node.values]
            found.append((node.lineno, "".join(map(str, parts))))
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append((node.lineno, node.value))
    return [(line, text) for line, text in found if _TEXT.search(text) and text not in _NAMES]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_builds_no_text_of_its_own(name):
    stays, _ = STAYS.get(name, ("(?!)", ""))
    found = texts_of(ast.parse(MODULES[name].read_text(encoding="utf-8")))
    assert [(line, text) for line, text in found if not re.search(stays, text)] == []
    # What has moved is listed no longer.
    assert bool(found) == (name in STAYS)


def test_every_module_that_keeps_a_text_is_there():
    assert STAYS.keys() <= MODULES.keys()


@pytest.mark.parametrize(
    ("source", "is_text"),
    [
        ("say('two words')", True),
        ("say(f'{count} more words')", True),
        ("say(f'{count} words')", True),
        ("say(f'all {words}')", True),
        ("say(f'{name}: {value}')", False),
        ("say(f'tool: {error}')", False),
        ("say(f'{seconds} ms')", False),
        ("NOTE = 'two words'\nsay(NOTE)", True),
        ("raise ValueError('two words')", True),
        ("raise AssertionError('two words')", False),
        ("assert x, 'two words'", False),
        ("def f():\n    'Two words.'", False),
        ("re.compile('two words')", False),
        ("add('--x', help='two words')", False),
        ("NOTE = 'two words'\nadd('--x', help=NOTE)", False),
        ("Subject.TWO_WORDS()", False),
        ("say('key')", False),
    ],
)
def test_what_is_text(source, is_text):
    assert bool(texts_of(ast.parse(source))) == is_text


def test_every_sentence_is_used_and_has_an_id_of_its_own():
    source = "".join(
        file.read_text(encoding="utf-8")
        for folder in ("engine", "nodes", "tools")
        for file in (ROOT / folder).rglob("*.py")
    )
    used = {
        f"{group}.{name}".lower() for group, name in re.findall(r"\b([A-Z][A-Za-z0-9]+)\.([A-Z][A-Z0-9_]+)\b", source)
    }
    assert catalogue().keys() - used == set()
    assert len(catalogue()) > 50 and all(re.fullmatch(r"[a-z0-9]+\.[a-z0-9_]+", each) for each in catalogue())


def test_every_sentence_can_be_said():
    for sentence in catalogue().values():
        said = sentence(**{name: 1 if spec else "x" for name, spec in sentence.fields.items()})
        assert said.sentence is sentence and "{" not in said.replace("{...}", "")


def test_what_is_said_is_a_text_that_knows_where_it_is_from():
    class Group:
        ONE = Sentence("{path} has {count:d} of {what!r}.")

    said = Group.ONE(path=Path("a.b"), count=3, what="it")
    assert said == "a.b has 3 of 'it'." and json.dumps([said]) == "[\"a.b has 3 of 'it'.\"]"
    assert (said.sentence.id, said.values) == ("group.one", {"path": "a.b", "count": 3, "what": "it"})
    assert copy.deepcopy(said) is said
    error = CheckpointError(said)
    assert str(error) is said and f"{error}, {said}" == f"{said}, {said}" and type(f"{error}, {said}") is str
    nested = Group.ONE(path=said, count=1, what=2)
    assert nested.values["path"].sentence is Group.ONE
    for wrong in ({"path": 1}, {"path": 1, "count": 2, "what": 3, "more": 4}):
        with pytest.raises(TypeError, match=r"group.one takes \['count', 'path', 'what'\]"):
            Group.ONE(**wrong)
    with pytest.raises(ValueError, match="Unknown format code"):
        Group.ONE(path="a", count="three", what="it")


def test_what_is_said_can_be_said_in_chinese_wherever_it_has_been():
    use = Inputs.USE_VAE()
    said = Inputs.NO_VAE(name="ModelPatcher", use=use)
    chinese = translated(said, "zh")
    assert CHINESE.search(chinese) and "ModelPatcher" in chinese and chinese.endswith(translated(use, "zh"))
    assert CHINESE.search(translated(use, "zh")) and "wan_2.1_vae.safetensors" in chinese
    # In English it stays what it is, and so does what is no sentence.
    assert translated(said, "en") is said and translated("The VAE", "zh") == "The VAE"
    # An error of another process, a value of another sentence by way of an error, and JSON data.
    assert translated(pickle.loads(pickle.dumps(said)), "zh") == chinese
    outer = Routes.ODD_PARAMETER(name="vae", problem=ValueError(said))
    assert CHINESE.search(translated(outer, "zh")) and chinese in translated(outer, "zh")
    data = {"name": "vae", "found": (said, 3, None), "more": [{"remedy": use}]}
    assert translated(data, "zh") == {
        "name": "vae",
        "found": [chinese, 3, None],
        "more": [{"remedy": translated(use, "zh")}],
    }
    assert json.loads(json.dumps(data))["found"][0] == said


def test_what_comes_back_from_a_file_in_english_is_what_was_said():
    timed = Running.ATTENTION_OF(num_tokens=32768, num_heads=40, width=128, blocks="triton")
    again = read_again(str.__str__(timed), Running.LINEARS_OF, Running.ATTENTION_OF)
    assert again == timed and translated(again, "zh") == translated(timed, "zh") != timed
    ended = Running.WITH_LAST_WORDS(how=Running.NOT_BACK(patience=60.0), words="a word")
    ways = (Running.WITH_LAST_WORDS, Running.NOT_BACK)
    assert translated(read_again(str.__str__(ended), *ways), "zh") == translated(ended, "zh")
    for other in ("", "32768 tokens", "it did not come back within a s"):
        assert type(read_again(other, Running.ATTENTION_OF, Running.NOT_BACK)) is str


def test_a_foreign_text_is_cut_and_a_sentence_is_not():
    said = Lists.IS_OUTSIDE()
    assert shortened(ValueError(said), 3) is said and shortened(ValueError("a long one"), 3) == "a l"


def test_a_list_is_joined_in_each_language():
    parts = [Lists.NOT_FOUND(), "b.safetensors", Lists.IS_OUTSIDE()]
    said = joined(parts, Between.AND)
    assert said == "was not found in the model folders and b.safetensors and is a path outside the model folders"
    first, third = translated(parts[0], "zh"), translated(parts[2], "zh")
    assert re.fullmatch(f"{first}. b.safetensors .{third}", translated(said, "zh")) and CHINESE.search(third)
    assert joined(["a", "b"], Between.COMMA) == "a, b" and joined(["a"], Between.OR) == "a"
    assert joined([], Between.BLANK) == ""


def test_a_value_stands_apart_from_chinese_if_it_is_none():
    """Text and value meet without a blank where both are Chinese, and with one where a name or a number begins."""

    def missing(part):
        return translated(Folders.PART_IS(part=part, found="x"), "zh")

    chinese, latin = missing(Parts.TOKENIZER()), missing("VAE")
    assert " " not in chinese.partition(" x")[0] and latin.startswith("VAE ") and "  " not in latin
    # What is within a value is the user's.
    path = "D:/\u6a21\u578bA/b.safetensors"
    assert path in translated(Reading.MISSING(path=path), "zh")


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_texts_of_another_language_are_of_the_catalogues_sentences_in_its_order(language):
    texts = json.loads((ROOT / "engine" / "sentences" / f"{language}.json").read_text(encoding="utf-8"))
    known = catalogue()
    assert known.keys() - texts.keys() == set(), "say these in the other languages too"
    assert list(texts) == list(known)
    for name, text in texts.items():
        assert fields_of(text) == known[name].fields, name
        # Names and punctuation are the same everywhere.
        words = re.sub(r"\{[^}]*\}|LoRA|VAE|CPU|[Tt]ransformer|GiB|GB|none found", "", known[name].text)
        assert CHINESE.search(text) or not re.search("[A-Za-z]{2}", words), name
