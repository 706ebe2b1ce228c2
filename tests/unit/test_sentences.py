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
from lightx2v_pack.engine.sentences import LANGUAGES, Sentence, fields_of, joined, translated
from lightx2v_pack.engine.sentences.between import Between
from lightx2v_pack.engine.sentences.comfyui import Inputs, Lists, Routes

ROOT = Path(__file__).resolve().parents[2]
# Modules whose every sentence is in engine/sentences.
MOVED = sorted(
    file
    for file in (ROOT / "engine").rglob("*.py")
    if "sentences" not in file.parts and re.search(r"^from \.+sentences\.", file.read_text(encoding="utf-8"), re.M)
)
# Two words in a row: text, and no name or key. These are keys of tables, though they have a blank in them.
_TEXT = re.compile(r"[A-Za-z]{2,} [a-z]{2,}")
CHINESE = re.compile("[\u4e00-\u9fff]")
_NAMES = {"text encoder", "image encoder", "in the way"}


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
    """Return the texts that a module builds itself, but for docstrings."""
    passed_over: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            passed_over.add(id(node.value))
        # Regular expressions, the marks of kinds.py among them, and what only a contributor can meet.
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("re.", "_Kind")):
            passed_over |= {id(each) for each in ast.walk(node)}
        if isinstance(node, ast.Assert) and node.msg is not None:
            passed_over |= {id(each) for each in ast.walk(node.msg)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in passed_over:
            found.append((node.lineno, node.value))
    return [(line, text) for line, text in found if _TEXT.search(text) and text not in _NAMES]


@pytest.mark.parametrize("file", MOVED, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_a_module_that_has_moved_builds_no_text(file):
    assert texts_of(ast.parse(file.read_text(encoding="utf-8"))) == []


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


def test_a_list_is_joined_in_each_language():
    parts = [Lists.NOT_FOUND(), "b.safetensors", Lists.IS_OUTSIDE()]
    said = joined(parts, Between.AND)
    assert said == "was not found in the model folders and b.safetensors and is a path outside the model folders"
    first, third = translated(parts[0], "zh"), translated(parts[2], "zh")
    assert re.fullmatch(f"{first}(.)b.safetensors(.){third}", translated(said, "zh")) and CHINESE.search(third)
    assert joined(["a", "b"], Between.COMMA) == "a, b" and joined(["a"], Between.OR) == "a"
    assert joined([], Between.BLANK) == ""


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_texts_of_another_language_are_of_the_catalogues_sentences_in_its_order(language):
    texts = json.loads((ROOT / "engine" / "sentences" / f"{language}.json").read_text(encoding="utf-8"))
    known = catalogue()
    assert texts.keys() - known.keys() == set()
    assert list(texts) == [each for each in known if each in texts]
    for name, text in texts.items():
        assert fields_of(text) == known[name].fields, name
        # Names and punctuation are the same everywhere.
        words = re.sub(r"\{[^}]*\}|LoRA|VAE|[Tt]ransformer|GiB|GB|none found", "", known[name].text)
        assert CHINESE.search(text) or not re.search("[A-Za-z]{2}", words), name
