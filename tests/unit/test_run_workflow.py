"""tools/run_workflow.py without nodes: reading, converting, --set, validation. Plain data, no torch."""

import io
import json

import pytest
from lightx2v_pack.tools.headless.assignments import apply_assignments
from lightx2v_pack.tools.headless.errors import WorkflowError
from lightx2v_pack.tools.headless.progress import Progress
from lightx2v_pack.tools.headless.validation import validate_prompt
from lightx2v_pack.tools.headless.workflow import draw_dynamic_prompt, read_workflow, to_prompt

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


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (graph(node(5, "Nowhere"), links=[]), ["Node 5", "'Nowhere'", "--server"]),
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
        ("Nope.seed=9", "no node 'Nope'. It has: 1 'Load It' (Load); 2 'My sampler' (Sample)"),
        ("Sample It.seed=9", "no node"),
        ("2.sed=9", "no value 'sed'. It has: seed, method, shift, text"),
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
        (changed("2", method="dpm"), "input 'method' is 'dpm'; available: lcm, euler"),
        (changed("1", name="c"), "input 'name' is 'c'; available: a, b"),
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
