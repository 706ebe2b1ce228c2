"""tools/run_workflow.py without nodes: reading, converting, --set, validation. Plain data, no torch."""

import codecs
import io
import json
from datetime import datetime

import pytest
from lightx2v_pack.tools.headless.assignments import apply_assignments
from lightx2v_pack.tools.headless.errors import WorkflowError
from lightx2v_pack.tools.headless.progress import Progress
from lightx2v_pack.tools.headless.saved_graph import with_values
from lightx2v_pack.tools.headless.text_replacements import format_date, replace_in_prefixes
from lightx2v_pack.tools.headless.validation import validate_prompt
from lightx2v_pack.tools.headless.workflow import (
    adopt_separators,
    draw_dynamic_prompt,
    read_workflow,
    silenced_outputs,
    to_prompt,
)

INFOS = {
    "Load": {
        "input": {"required": {"name": [["a", "b"], {}]}},
        "output": ["MODEL"],
        "display_name": "Load It",
    },
    "Sample": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "seed": ["INT", {"default": 0, "min": 0, "max": 99, "control_after_generate": True}],
                "method": ["COMBO", {"options": ["lcm", "euler"]}],
                "shift": ["FLOAT", {"default": 5.0, "min": 0.1, "max": 100.0}],
            },
            "optional": {"text": ["STRING", {"default": "", "dynamicPrompts": True}], "extra": ["MODEL,OTHER", {}]},
        },
        "output": ["LATENT"],
        "display_name": "Sample It",
    },
    "Filter": {"input": {"required": {"latent": ["LATENT", {}], "on": ["BOOLEAN", {}]}}, "output": ["LATENT"]},
    "Save": {"input": {"required": {"latent": ["LATENT", {}]}}, "output": [], "output_node": True},
}


def node(number, kind, widgets=(), inputs=(), outputs=(), **more):
    """An editor node; inputs are (name, type, link number), outputs are types."""
    return {
        "id": number,
        "type": kind,
        "widgets_values": list(widgets),
        "inputs": [{"name": name, "type": type_, "link": link} for name, type_, link in inputs],
        "outputs": [{"name": type_, "type": type_} for type_ in outputs],
        **more,
    }


def graph(*nodes, links):
    return {"nodes": list(nodes), "links": [list(link) for link in links], "version": 0.4}


def chain(**filter_node):
    """Load -> Sample -> Filter -> Save."""
    return graph(
        node(1, "Load", ["b"], outputs=["MODEL"]),
        node(
            2, "Sample", [7, "randomize", "euler", 2.5, "hi"], [("model", "MODEL", 1)], ["LATENT"], title="My sampler"
        ),
        node(3, "Filter", [True], [("latent", "LATENT", 2)], ["LATENT"], **filter_node),
        node(4, "Save", [], [("latent", "LATENT", 3)]),
        links=[(1, 1, 0, 2, 0, "MODEL"), (2, 2, 0, 3, 0, "LATENT"), (3, 3, 0, 4, 0, "LATENT")],
    )


def test_editor_graph_becomes_prompt():
    prompt = to_prompt(chain(), INFOS)
    assert prompt == {
        "1": {"class_type": "Load", "inputs": {"name": "b"}, "_meta": {"title": "Load It"}},
        "2": {
            "class_type": "Sample",
            "inputs": {"model": ["1", 0], "seed": 7, "method": "euler", "shift": 2.5, "text": "hi"},
            "_meta": {"title": "My sampler"},
        },
        "3": {"class_type": "Filter", "inputs": {"latent": ["2", 0], "on": True}, "_meta": {"title": "Filter"}},
        "4": {"class_type": "Save", "inputs": {"latent": ["3", 0]}, "_meta": {"title": "Save"}},
    }


def test_version_1_stores_links_as_objects():
    old = chain()
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    new = old | {"version": 1, "links": [dict(zip(names, link, strict=True)) for link in old["links"]]}
    assert to_prompt(new, INFOS) == to_prompt(old, INFOS)


def test_muted_node_takes_its_links_away_and_bypassed_node_passes_through():
    muted = to_prompt(chain(mode=2), INFOS)
    assert "3" not in muted
    assert muted["4"]["inputs"] == {}
    bypassed = to_prompt(chain(mode=4), INFOS)
    assert "3" not in bypassed
    assert bypassed["4"]["inputs"] == {"latent": ["2", 0]}


def test_reroutes_primitives_and_notes_dissolve():
    prompt = to_prompt(
        graph(
            node(1, "Load", ["a"], outputs=["MODEL"]),
            node(2, "Reroute", inputs=[("", "*", 1)], outputs=["MODEL"]),
            node(3, "PrimitiveNode", [13, "fixed"], outputs=["INT"]),
            node(4, "Sample", [7, "fixed", "lcm", 5], [("model", "MODEL", 2), ("seed", "INT", 3)], ["LATENT"]),
            node(5, "MarkdownNote", ["text"]),
            links=[(1, 1, 0, 2, 0, "MODEL"), (2, 2, 0, 4, 0, "MODEL"), (3, 3, 0, 4, 1, "INT")],
        ),
        INFOS,
    )
    assert set(prompt) == {"1", "4"}
    assert prompt["4"]["inputs"]["model"] == ["1", 0]
    assert prompt["4"]["inputs"]["seed"] == 13


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([7, "fixed", "euler", 2.5], {"seed": 7, "method": "euler", "shift": 2.5, "text": ""}),
        ([7, "euler"], {"seed": 7, "method": "euler", "shift": 5.0, "text": ""}),
        ([], {"seed": 0, "method": "lcm", "shift": 5.0, "text": ""}),
    ],
)
def test_widgets_without_control_and_widgets_newer_than_the_file(stored, expected):
    prompt = to_prompt(graph(node(1, "Sample", stored), links=[]), INFOS)
    assert prompt["1"]["inputs"] == expected


def test_widget_values_by_name():
    named = node(1, "Sample") | {"widgets_values": {"seed": 3, "shift": 1.5}}
    assert to_prompt(graph(named, links=[]), INFOS)["1"]["inputs"] == {
        "seed": 3, "method": "lcm", "shift": 1.5, "text": "",
    }  # fmt: skip


def stored(data, *assignments):
    """Return the graph that is stored in the results of a run."""
    prompt = to_prompt(data, INFOS)
    assigned = apply_assignments(prompt, assignments, INFOS)
    return with_values(data, prompt, INFOS, assigned)


def test_a_stored_graph_shows_the_values_that_were_queued():
    data = chain()
    found = stored(data, "Sample.seed=9", "2.text=a boat", "Load.name=c")
    expected = chain()
    expected["nodes"][0]["widgets_values"] = ["c"]
    expected["nodes"][1]["widgets_values"] = [9, "randomize", "euler", 2.5, "a boat"]
    assert found == expected and data == chain()
    # What the editor makes of it is what was queued.
    prompt = to_prompt(chain(), INFOS)
    apply_assignments(prompt, ["Sample.seed=9", "2.text=a boat", "Load.name=c"], INFOS)
    assert to_prompt(found, INFOS) == prompt


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7, "fixed", "euler"], [7, "fixed", "euler", 5.0, "a boat"]),
        ([7], [7, "lcm", 5.0, "a boat"]),
        (None, [0, "lcm", 5.0, "a boat"]),
        ({"seed": 3}, {"seed": 3, "text": "a boat"}),
    ],
)
def test_a_stored_graph_gets_widgets_newer_than_the_file(values, expected):
    data = graph(node(1, "Sample") | {"widgets_values": values}, links=[])
    assert stored(data, "Sample.text=a boat")["nodes"][0]["widgets_values"] == expected


def test_a_stored_graph_names_values_where_the_file_does():
    data = graph(node(1, "Load", ["a"]) | {"widgets_values_named": {"name": "a"}}, links=[])
    assert stored(data, "Load.name=b")["nodes"][0]["widgets_values_named"] == {"name": "b"}


def test_a_stored_graph_has_the_choice_that_was_drawn():
    data = graph(node(1, "Sample", [7, "fixed", "lcm", 5.0, "a {red|blue} boat"]), links=[])
    assert stored(data)["nodes"][0]["widgets_values"][-1] in ("a red boat", "a blue boat")


@pytest.mark.parametrize("version", [0.4, 1])
def test_a_link_to_a_value_that_was_set_goes_from_the_stored_graph(version):
    data = graph(
        node(3, "PrimitiveNode", [13, "fixed"], outputs=["INT"]),
        node(4, "Sample", [7, "fixed", "lcm", 5, ""], [("seed", "INT", 3)], ["LATENT"]),
        links=[(3, 3, 0, 4, 1, "INT")],
    )
    data["nodes"][0]["outputs"][0]["links"] = [3]
    if version == 1:
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        data |= {"version": 1, "links": [dict(zip(names, link, strict=True)) for link in data["links"]]}
    assert stored(data) == data
    found = stored(data, "Sample.seed=8")
    assert to_prompt(found, INFOS)["4"]["inputs"]["seed"] == 8
    assert found["links"] == [] and found["nodes"][0]["outputs"][0]["links"] == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            graph(node(5, "Nowhere", outputs=["X"]), links=[(1, 5, 0, 6, 0, "X")]),
            ["Node 5", "'Nowhere'", "--server"],
        ),
        (graph(node(5, "workflow>Mine"), links=[]), ["group node", "Export (API)"]),
        (
            graph(node(5, "abc-def"), links=[]) | {"definitions": {"subgraphs": [{"id": "abc-def", "name": "Tools"}]}},
            ["subgraph 'Tools'", "Export (API)"],
        ),
        (graph(node(5, "Save", inputs=[("latent", "LATENT", 9)]), links=[]), ["link 9"]),
        (graph(node(5, "Save", inputs=[("latent", "LATENT", 9)]), links=[(9, 8, 0, 5, 0, "LATENT")]), ["node 8"]),
        (
            graph(
                node(1, "Reroute", inputs=[("", "*", 1)]),
                node(2, "Save", inputs=[("latent", "LATENT", 2)]),
                links=[(1, 1, 0, 1, 0, "*"), (2, 1, 0, 2, 0, "*")],
            ),
            ["loop"],
        ),
    ],
)
def test_unusable_graph_gets_a_sentence(data, words):
    with pytest.raises(WorkflowError) as caught:
        to_prompt(data, INFOS)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "not JSON"), ("[]", "not a workflow"), ("{}", "not a workflow"), ('{"a": 1}', "not a workflow")],
)
def test_unusable_file_gets_a_sentence(tmp_path, content, words):
    file = tmp_path / "graph.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(WorkflowError, match=words):
        read_workflow(file)
    with pytest.raises(WorkflowError, match=r"missing\.json"):
        read_workflow(tmp_path / "missing.json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("kind", ["editor", "api"])
def test_a_workflow_may_have_a_mark_of_its_encoding(tmp_path, encoding, kind):
    data = chain() if kind == "editor" else to_prompt(chain(), INFOS)
    file = tmp_path / "graph.json"
    file.write_bytes(json.dumps(data, ensure_ascii=False).replace("My sampler", "M\u00e9in").encode(encoding))
    assert to_prompt(read_workflow(file), INFOS)["2"]["_meta"]["title"] == "M\u00e9in"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a":\n "\xe9"}', "Save graph.json as UTF-8, which editors offer in Save As: line 2 of "),
        ('{"a": 1}'.encode("utf-16-le"), "a zero byte, as UTF-16 has"),
        (codecs.BOM_UTF16_LE + b"\x00\xd8\x00", "that is no UTF-16-LE"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"nodes": ' * 100_000, "nested too deeply"),
    ],
    ids=["latin-1", "no mark", "cut", "deep list", "deep object"],
)
def test_a_workflow_that_cannot_be_read_gets_a_sentence(tmp_path, content, words):
    file = tmp_path / "graph.json"
    file.write_bytes(content)
    with pytest.raises(WorkflowError) as caught:
        read_workflow(file)
    assert words in str(caught.value) and str(file) in str(caught.value)


@pytest.mark.parametrize("beside", [{"_comment": "mine"}, {"version": 1, "note": None}, {"extra": {"a": 1}, "l": [1]}])
def test_what_people_note_beside_the_nodes_is_left_out_with_a_warning(tmp_path, caplog, beside):
    prompt = to_prompt(chain(), INFOS)
    file = tmp_path / "api.json"
    file.write_text(json.dumps({**beside, **prompt}), encoding="utf-8")
    assert read_workflow(file) == prompt
    assert caplog.messages == [f"LightX2V: left out of the workflow, as they are no nodes: {', '.join(beside)}."]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"inputs": {}}, "Give node 9 its class_type, a text, or take it out of the file: it has none."),
        ({"class_type": "Save"}, "Give node 9 its inputs, an object, or take it out of the file: it has none."),
        ({"class_type": "Save", "inputs": [1]}, "it is [1]."),
        ({"class_type": ["Save"], "inputs": {}}, 'it is ["Save"].'),
        ({"class_type": None, "inputs": {}}, "it is null."),
    ],
)
def test_a_node_that_is_not_whole_is_named(tmp_path, entry, words):
    file = tmp_path / "api.json"
    file.write_text(json.dumps({**to_prompt(chain(), INFOS), "9": entry}), encoding="utf-8")
    with pytest.raises(WorkflowError) as caught:
        read_workflow(file)
    assert words in str(caught.value)


@pytest.mark.parametrize("where", ["nodes", "links", "inputs", "outputs", "subgraphs"])
def test_holes_are_passed_over(where):
    data = chain()
    if where == "subgraphs":
        data["definitions"] = {"subgraphs": [None]}
    else:
        for holder in [data] if where in data else data["nodes"]:
            holder[where] = [None, *holder[where], None]
    assert to_prompt(data, INFOS) == to_prompt(chain(), INFOS)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: data["nodes"].append(5), "nodes[4] is 5; expected an object"),
        (lambda data: data["nodes"].append({"id": 9}), '{"id": 9} has no id or no type'),
        (lambda data: data["nodes"][1].update(inputs="x"), 'inputs of node 2 is "x"; expected a list'),
        (lambda data: data["nodes"][1].update(inputs=[7]), "inputs of node 2[0] is 7; expected an object"),
        (lambda data: data["links"].append([3]), "the link [3] is none"),
        (lambda data: data["links"].append({"id": 3}), 'the link {"id": 3} is none'),
        (lambda data: data["links"].append("x"), 'the link "x" is none'),
        (lambda data: data.update(definitions={"subgraphs": 5}), "subgraphs is 5; expected a list"),
    ],
)
def test_what_is_no_object_is_named(spoil, words):
    data = chain()
    spoil(data)
    with pytest.raises(WorkflowError) as caught:
        to_prompt(data, INFOS)
    assert str(caught.value).startswith("Save the workflow again in ComfyUI's editor: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["Label (rgthree)", "Bookmark (rgthree)", "Fast Groups Muter (rgthree)", "Any label"])
@pytest.mark.parametrize("has_server", [False, True])
def test_nodes_of_the_editor_alone_are_left_out(kind, has_server):
    data = chain()
    data["nodes"].append(node(9, kind, ["text"], [("", "*", None)], ["*"]))
    assert to_prompt(data, INFOS, has_server=has_server) == to_prompt(chain(), INFOS)


@pytest.mark.parametrize("kind", ["Fast Muter (rgthree)", "Fast Bypasser (rgthree)", "Node Collector (rgthree)"])
def test_switches_that_are_linked_to_what_they_mute_are_left_out(kind):
    data = chain()
    data["nodes"].append(node(9, kind, [], [("Filter", "*", 9)], ["*"]))
    data["links"].append([9, 3, 0, 9, 0, "*"])
    assert to_prompt(data, INFOS) == to_prompt(chain(), INFOS)


@pytest.mark.parametrize(("has_server", "words"), [(False, "--server URL"), (True, "which this server does not have")])
@pytest.mark.parametrize("as_origin", [False, True])
def test_a_linked_node_that_is_not_there_is_what_the_place_lacks(has_server, words, as_origin):
    data = chain()
    data["nodes"].append(node(9, "VHS_VideoCombine", [], [("latent", "LATENT", None if as_origin else 9)], ["X"]))
    data["links"].append([9, 9, 0, 4, 1, "X"] if as_origin else [9, 3, 0, 9, 0, "LATENT"])
    with pytest.raises(WorkflowError) as caught:
        to_prompt(data, INFOS, has_server=has_server)
    assert "Node 9 is of type 'VHS_VideoCombine'" in str(caught.value) and words in str(caught.value)
    assert ("--server" in str(caught.value)) is not has_server


def set_and_get(setter="SetNode", getter="GetNode", name="latent", wanted="latent", last=6):
    """Load -> Sample -> Set, Get -> Save."""
    return graph(
        node(1, "Load", ["b"], outputs=["MODEL"]),
        node(2, "Sample", [7, "fixed", "euler", 2.5, "hi"], [("model", "MODEL", 1)], ["LATENT"]),
        node(5, setter, [name], [("LATENT", "LATENT", 2)], ["*"]),
        node(6, getter, [wanted], outputs=["LATENT"]),
        node(4, "Save", [], [("latent", "LATENT", 3)]),
        links=[(1, 1, 0, 2, 0, "MODEL"), (2, 2, 0, 5, 0, "LATENT"), (3, last, 0, 4, 0, "LATENT")],
    )


@pytest.mark.parametrize(
    "data",
    [
        set_and_get(),
        set_and_get("easy setNode", "easy getNode"),
        set_and_get(name="a b", wanted="a b"),
        # Out of the Set node itself.
        set_and_get(last=5),
    ],
)
def test_set_and_get_are_links(data):
    prompt = to_prompt(data, INFOS)
    assert prompt.keys() == {"1", "2", "4"}
    assert prompt["4"]["inputs"] == {"latent": ["2", 0]}


def test_a_get_without_its_set_is_named():
    with pytest.raises(WorkflowError) as caught:
        to_prompt(set_and_get(wanted="latents"), INFOS)
    assert str(caught.value) == "Give the Get node 6 the name of a Set node (latent): it names 'latents'."


def test_a_set_that_follows_itself_is_a_loop():
    data = set_and_get()
    data["links"][1] = [2, 6, 0, 5, 0, "LATENT"]
    with pytest.raises(WorkflowError, match="loop"):
        to_prompt(data, INFOS)


@pytest.mark.parametrize(("mode", "named"), [(0, []), (2, ["'Save' (node 4)"]), (4, ["'Save' (node 4)"])])
def test_muted_outputs_are_known(mode, named):
    data = chain()
    data["nodes"][3]["mode"] = mode
    data["nodes"][1]["mode"] = mode
    assert silenced_outputs(data, INFOS) == named
    assert silenced_outputs(to_prompt(chain(), INFOS), INFOS) == []


@pytest.mark.parametrize(
    ("value", "choices", "expected"),
    [
        ("wan\\a.safetensors", ["x", "wan/a.safetensors"], "wan/a.safetensors"),
        ("wan/a.safetensors", ["x", "wan\\a.safetensors"], "wan\\a.safetensors"),
        ("a\\b/c", ["a/b\\c"], "a/b\\c"),
        ("wan\\a", ["wan/a", "wan\\a"], "wan\\a"),
        ("gone\\a", ["wan/a"], "gone\\a"),
    ],
)
@pytest.mark.parametrize("is_v3", [False, True])
def test_names_of_another_system_become_those_that_are_offered(value, choices, expected, is_v3):
    kind = ["COMBO", {"options": choices}] if is_v3 else [choices]
    infos = {"Load": {"input": {"required": {"name": kind, "text": ["STRING", {}]}}}}
    loader = {"class_type": "Load", "inputs": {"name": value, "text": "a\\b"}}
    adopt_separators({"1": loader, "2": {"class_type": "X", "inputs": {}}}, infos)
    assert loader["inputs"] == {"name": expected, "text": "a\\b"}


MOMENT = datetime(2026, 3, 5, 7, 8, 9)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("yyyy-MM-dd", "2026-03-05"),
        ("yy.M.d", "26.3.5"),
        ("hh:mm:ss", "07:08:09"),
        ("h:m:s", "7:8:9"),
        ("yyyyMMdd_hhmmss", "20260305_070809"),
    ],
)
def test_dates_are_as_the_editor_writes_them(pattern, expected):
    assert format_date(pattern, MOMENT) == expected


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("video/%date:yyyy-MM-dd%/wan", "video/2026-03-05/wan"),
        ("%date:yyyy/MM%/%date:hh:mm:ss%", "2026/03/07_08_09"),
        ("a_%date:dd.MM.yyyy%", "a_05.03.2026"),
        ("%My sampler.seed%_%Sample.method%", "7_euler"),
        ("%Sample.shift%", "2.5"),
        ("%Sample.text%", "hi_ __there_"),
        ("%Filter.on%", "true"),
        ("%width%x%height%_%year%", "%width%x%height%_%year%"),
        ("%Nobody.seed%_%Sample.nothing%_%Sample.model%", "%Nobody.seed%_%Sample.nothing%_%Sample.model%"),
        ("100%", "100%"),
    ],
)
@pytest.mark.parametrize("is_editor", [True, False])
def test_placeholders_in_a_filename_prefix(prefix, expected, is_editor, caplog):
    data = chain()
    data["nodes"][1]["widgets_values"][4] = 'hi: ?*there"'
    prompt = to_prompt(data, INFOS)
    prompt["4"]["inputs"]["filename_prefix"] = prefix
    replace_in_prefixes(prompt, data if is_editor else dict(prompt), MOMENT)
    assert prompt["4"]["inputs"]["filename_prefix"] == expected
    assert len(caplog.messages) == (3 if "Nobody" in prefix else 0)


def test_the_editors_own_name_of_a_node_goes_before_titles():
    data = chain()
    data["nodes"][1]["properties"] = {"Node name for S&R": "Filter"}
    prompt = to_prompt(data, INFOS)
    prompt["4"]["inputs"]["filename_prefix"] = "%Filter.seed%"
    replace_in_prefixes(prompt, data, MOMENT)
    assert prompt["4"]["inputs"]["filename_prefix"] == "7"


def test_prompt_file_is_read_as_it_is(tmp_path):
    prompt = to_prompt(chain(), INFOS)
    file = tmp_path / "api.json"
    file.write_text(json.dumps(prompt), encoding="utf-8")
    assert to_prompt(read_workflow(file), {}) == prompt


def test_dynamic_prompt_draws_every_choice():
    drawn = {draw_dynamic_prompt("a {red|{dark|light} blue} fox // not this\n/* nor\nthis */") for _ in range(200)}
    assert drawn == {"a red fox \n", "a dark blue fox \n", "a light blue fox \n"}
    assert draw_dynamic_prompt(r"keep \{a\|b\}") == "keep {a|b}"


@pytest.mark.parametrize(
    ("assignment", "node_id", "name", "value"),
    [
        ("2.seed=9", "2", "seed", 9),
        ("My sampler.seed=9", "2", "seed", 9),
        ("Sample.method=euler", "2", "method", "euler"),
        ("2.text=12", "2", "text", "12"),
        ('2.text="12"', "2", "text", "12"),
        ("2.text=a = b, {c}", "2", "text", "a = b, {c}"),
        ("2.shift=3", "2", "shift", 3),
        ("Filter.on=false", "3", "on", False),
    ],
)
def test_set(assignment, node_id, name, value):
    prompt = to_prompt(chain(), INFOS)
    apply_assignments(prompt, [assignment], INFOS)
    assert prompt[node_id]["inputs"][name] == value
    assert type(prompt[node_id]["inputs"][name]) is type(value)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("seed=9", "expected node.input=value"),
        ("2.seed", "expected node.input=value"),
        ("Nope.seed=9", "; the workflow has no node 'Nope'."),
        ("Sample It.seed=9", "no node"),
        ("My samplr.seed=9", "use one of 2 'My sampler' (Sample); "),
        ("Sampel.seed=9", "use one of 2 'My sampler' (Sample); "),
        ("2.sed=9", "use seed, method, shift; Sample has no value 'sed'."),
        ("2.model=9", "no value 'model'"),
        ("2.seed=many", "not a value of type INT"),
        ("2.seed=1.5", "not a value of type INT"),
        ("2.seed=true", "not a value of type INT"),
        ("Filter.on=False", "not a value of type BOOLEAN"),
    ],
)
def test_set_errors(assignment, words):
    with pytest.raises(WorkflowError) as caught:
        apply_assignments(to_prompt(chain(), INFOS), [assignment], INFOS)
    assert words in str(caught.value)


def test_set_asks_for_an_id_where_a_name_is_not_unique():
    prompt = to_prompt(graph(node(1, "Load", ["a"]), node(2, "Load", ["b"]), links=[]), INFOS)
    with pytest.raises(WorkflowError, match="names 2 nodes; use an id: 1, 2"):
        apply_assignments(prompt, ["Load.name=b"], INFOS)


def check(prompt, complaint=None, checked=frozenset()):
    return validate_prompt(
        prompt, INFOS, custom_check=lambda kind, values: complaint, checked_by_node=lambda kind: checked
    )


def changed(node_id, **inputs):
    prompt = to_prompt(chain(), INFOS)
    prompt[node_id]["inputs"] |= inputs
    return prompt


def test_order_runs_outputs_after_what_they_need_and_leaves_out_the_rest():
    prompt = to_prompt(chain(), INFOS)
    prompt = {"8": {"class_type": "Load", "inputs": {}}} | {key: prompt[key] for key in reversed(prompt)}
    assert check(prompt) == ["1", "2", "3", "4"]


def test_values_are_converted():
    prompt = changed("2", seed="12", shift="2", text=3)
    check(prompt)
    assert prompt["2"]["inputs"] | {"model": None} == {
        "model": None, "seed": 12, "method": "euler", "shift": 2.0, "text": "3",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (changed("2", seed=100), "Node 2 (My sampler): input 'seed' is 100; expected at most 99."),
        (changed("2", shift=0), "expected at least 0.1"),
        (changed("2", seed="many"), "input 'seed' is 'many'; expected a value of type INT"),
        (changed("2", method="dpm"), "choose one of: lcm, euler; input 'method' is 'dpm'."),
        (changed("1", name="c"), "choose one of: a, b; input 'name' is 'c'."),
        (changed("4", latent=["1", 0]), "expects LATENT and is linked to node 1, which gives MODEL"),
        (changed("4", latent=["1", 5]), "which has 1 output"),
        (changed("4", latent=["77", 0]), "no output of this workflow"),
        (changed("2", model=["4", 0]), "form a loop: 4 -> 3 -> 2 -> 4"),
        ({"1": {"class_type": "Save", "inputs": {}}}, "required input 'latent' (LATENT) is missing"),
        ({"1": {"class_type": "Load", "inputs": {"name": "a"}}}, "no output node"),
        ({"1": {"class_type": "Gone", "inputs": {}}}, "'Gone'"),
        ({"1": {"inputs": {}}}, "no class_type"),
    ],
)
def test_validation_errors(prompt, words):
    with pytest.raises(WorkflowError) as caught:
        check(prompt)
    assert words in str(caught.value)


def test_all_problems_are_listed():
    prompt = changed("2", seed=100, method="dpm")
    prompt["1"]["inputs"]["name"] = "c"
    with pytest.raises(WorkflowError) as caught:
        check(prompt)
    assert len(str(caught.value).splitlines()) == 3


def test_node_checks_its_own_inputs():
    with pytest.raises(WorkflowError, match="seed is unlucky"):
        check(changed("2", seed=13), complaint="seed is unlucky")
    # As in ComfyUI, what validate_inputs names is not checked for range or choices.
    assert check(changed("2", seed=100), checked=frozenset({"seed"}))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show_a_run(stream, *, quiet=False):
    progress = Progress(stream, quiet=quiet)
    progress.start_run(2)
    progress.start_node("Sampler")
    progress.note("step 1/4\nmore")
    progress.update(1, 4)
    progress.finish_node()
    return stream.getvalue()


def test_progress_is_one_line_a_node_in_a_log_file():
    (line,) = show_a_run(io.StringIO()).splitlines()
    assert line.startswith("[1/2] Sampler ")
    assert line.endswith(" s")


def test_progress_is_live_on_a_terminal_and_fits_its_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    shown = show_a_run(Terminal())
    assert "step 1/4" in shown
    assert "[######---" in shown
    assert all(len(part.rstrip()) < 50 for part in shown.replace("\n", "\r").split("\r"))


def test_quiet_shows_nothing():
    assert show_a_run(io.StringIO(), quiet=True) == show_a_run(Terminal(), quiet=True) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"definitions": 5},
        {"definitions": {"subgraphs": [{"id": {}}]}},
        {"links": 5},
        {"links": [{"id": {}, "origin_id": 1, "origin_slot": 0}]},
        {"nodes": [{**node(1, "Load"), "widgets_values": 5}]},
        {"nodes": [{**node(1, "Save", inputs=[("latent", "LATENT", 1)]), "inputs": [{"name": [], "link": {}}]}]},
    ],
)
def test_what_no_editor_writes_is_a_sentence(change):
    data = {"nodes": [node(1, "Load", ["a"], outputs=["MODEL"])], "links": [], "version": 0.4} | change
    with pytest.raises(WorkflowError, match=r"Save the workflow again in ComfyUI's editor|form a loop"):
        to_prompt(data, INFOS)
