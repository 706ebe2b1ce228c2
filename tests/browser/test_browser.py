"""The pack as a user meets it, in a real browser on a real ComfyUI; session.mjs does it, this says what must come."""

import json
import re

import pytest
from support import examples
from support.chinese import CHINESE_CHARACTER, english_in
from support.llm_server import ENHANCED
from support.node_schemas import read_golden

PANELS = {
    "LightX2VLoadCheckpoint": "lightx2v_plan",
    "LightX2VLoadTransformer": "lightx2v_plan",
    "LightX2VOffload": "lightx2v_plan",
    "LightX2VLora": "lightx2v_lora",
    "LightX2VEnhancePrompt": "lightx2v_enhanced",
    "LightX2VEmptyLatent": "lightx2v_size",
    "LightX2VImageToVideo": "lightx2v_size",
    "LightX2VReport": "lightx2v_report",
}
STEPS = [f"step {step}/4" for step in range(1, 5)]


@pytest.fixture
def step(steps):
    """Return a step's findings; an error in it fails the test."""

    def find(name):
        assert "error" not in steps[name], steps[name]["error"]
        return steps[name]

    return find


@pytest.fixture
def has_panels(steps):
    """Whether this renderer shows DOM widgets: Vue nodes of early frontends show none, not even a prompt's text box."""
    version = tuple(int(part) for part in steps["open"]["version"].split(".")[:2])
    return not steps["open"]["isVue"] or version >= (1, 30)


def test_every_node_can_be_added_and_shows_its_panel(step, has_panels):
    nodes = {node["type"]: node for node in step("addNodes")["nodes"]}
    assert nodes.keys() == read_golden().keys()
    for kind, node in nodes.items():
        panels = [name for name in node["widgets"] if name.startswith("lightx2v_")]
        assert panels == ([PANELS[kind]] if kind in PANELS else [])
        # Last, and not stored: values are stored by position.
        assert node["widgets"][len(node["widgets"]) - len(panels) :] == panels
        assert node["stored"] == len(node["widgets"]) - len(panels)
        if has_panels:
            assert set(panels) <= set(node["shows"])


def test_a_node_can_be_dragged_out_of_the_library(step):
    assert step("dragNode")["types"] == ["LightX2VEmptyLatent"]


def test_a_first_visit_ends_with_the_weights_in_place(step):
    arrival = step("arrive")
    # A panel that is not drawn has no line breaks.
    said = (f"Not here: {examples.CHECKPOINT_NAME}", "Get the weights", "Or put one into models/lightx2v and press R.")
    assert arrival["before"].replace("\n", "") == "".join(said)
    assert re.search(r"Download FP8( for .+)?\n[\d.]+ GiB to models/lightx2v; .*\d GiB free", arrival["offer"])
    assert re.fullmatch(r"Other versions \(\d+\)", arrival["others"])
    # Nothing starts before it was asked.
    assert arrival["asked"] == ""
    assert arrival["after"].startswith("Fits.") and "fp8 file, bf16 compute, 2 blocks" in arrival["after"]


def test_a_download_without_room_cannot_be_started(step):
    full, free = (step("fullDrive")[name] for name in ("full", "free"))
    assert not full["isEnabled"] and "Make room first: 11.5 GiB more are needed" in full["text"]
    # Somebody has made room meanwhile.
    assert free["isEnabled"] and "Make room" not in free["text"]


def test_a_problem_is_said_by_the_node_that_has_it(step):
    waiting = step("waiting")
    for name, start in (("transformer", "Not here: gone"), ("expert", "second_expert is not here: gone")):
        said = waiting[name]
        assert said["loader"]["isRed"] and said["loader"]["text"].startswith(start)
        assert not said["lora"]["isRed"] and said["lora"]["text"].startswith("Waiting for the transformer")
    said = waiting["lora"]
    assert said["lora"]["isRed"] and said["lora"]["text"].startswith("Not here: gone_lora")
    assert not said["loader"]["isRed"] and said["loader"]["text"].startswith("Waiting for the LoRA gone_lora")


def test_a_first_clip_takes_few_clicks_and_no_typing(step):
    first = step("firstClip")
    assert first["ended"] == "execution_success" and any(name.endswith(".mp4") for name in first["files"])
    assert first["clicks"] <= 6 and first["keys"] == 0


def test_what_is_refused_says_what_to_do_first_and_before_the_text_is_encoded(step):
    said = {name: step("refusals")[name] for name in ("size", "kind", "absent")}
    assert not any(each["encoded"] for each in said.values())
    # Newer frontends put the error into a report of theirs.
    size, kind, absent = (each["text"] for each in said.values())
    assert re.search(r"Use \d+x\d+ with 401 frames or .*\n+No offload mode has room for 8192x8192", size)
    assert re.search(r"Load it as the text encoder\. \S*another_vae\.safetensors is a T5 text encoder", kind)
    assert "LightX2V" in absent and absent.count("was not found in the model folders") <= 1
    # The class, and not the folder that the pack is installed in.
    assert "custom_nodes" not in size.partition("Stack Trace")[0]


@pytest.mark.parametrize("workflow", sorted(examples.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_a_dropped_template_loads_unchanged(step, has_panels, workflow):
    found = step("templates")["dropped"][workflow.stem]
    graph = json.loads(workflow.read_text(encoding="utf-8"))
    # A fresh base directory has no example picture, which newer editors mark; the note begins with choosing one.
    assert set(found["marked"]) <= {"LoadImage"}
    assert found["overlaps"] == [] or not has_panels
    assert all(note["pixels"] >= 12 and note["hidden"] <= 1 for note in found["notes"]) or not has_panels
    for node in graph["nodes"]:
        if node["type"].startswith("LightX2V"):
            assert (found["values"][str(node["id"])] or []) == node.get("widgets_values", [])


def test_the_plan_line_follows_a_change_within_300_ms(step):
    plan = step("planLine")
    print({name: round(delay) for name, delay in plan["delays"].items()})
    assert max(plan["delays"].values()) < 300
    assert "bf16, 40 blocks" in plan["before"] and "192x192, 9 frames" in plan["before"]
    # The plan is shown once; the offload node says what it decides.
    assert plan["offload"].startswith("All weights stay in RAM") and "Fits" not in plan["offload"]
    # What to do comes first; what each mode needs is the title's.
    advice, others = plan["refused"].split("No offload mode has room", 1)
    assert "the largest that fit" in advice
    # A panel that is not drawn has no line breaks.
    assert re.fullmatch(r" for 8192x8192 with 4097 frames in BF16\.\s*8192x8192, 4097 frames", others)


def test_a_plan_sees_through_subgraphs(step):
    for text in step("subgraph").values():
        if isinstance(text, str) and "frames" in text:
            assert "192x192, 9 frames" in text and "no size connected" not in text
    assert {"loader", "sampler"} <= step("subgraph").keys()


def test_presets_and_typed_values_give_sizes_the_model_takes(step):
    sizes = step("sizes")
    assert sizes["preset"][:2] == [720, 1280]
    assert sizes["snapped"] == [848, 1280, 85]
    assert "85 frames = 5.3 s of video at 16 fps" in sizes["text"]
    # A panel is none of the inputs that newer editors list beside the graph, where they do.
    assert ("batch size" in sizes["beside"]) != step("open")["version"].startswith("1.27")
    assert "lightx2v" not in sizes["beside"].replace("LightX2V", "")


def test_the_doctor_lists_findings_to_copy(step):
    shown = step("doctor")["shown"]
    # The verdict, what there is to do, and the rest folded.
    assert re.search(r"Ready|thing", shown) and "All right (" in shown and "\nsafetensors\n" not in shown
    lines = step("doctor")["markdown"].splitlines()
    assert lines[1] == "|---|---|---|---|"
    names = {line.split(" | ")[0].removeprefix("| ") for line in lines[2:]}
    assert {"Card", "torch", "LightX2V", "SageAttention", "q8_kernels", "sgl-kernel", "RAM", "Disk"} <= names


def test_what_is_left_of_a_model_has_a_button_and_its_command_behind_it(step):
    assert "Download the rest" in step("doctor")["shown"] and "tools/download.py" not in step("doctor")["shown"]
    assert "tools/download.py get" in step("doctor")["command"]


def test_panels_say_that_comfyui_is_away_and_ask_again_when_it_is_back(step):
    away = step("away")
    for text in (away["plan"], away["doctor"]):
        assert "ComfyUI does not answer. This is asked again when it is back." in text and "fetch" not in text
    assert away["back"].startswith("Fits.")


def test_a_size_of_another_node_is_followed_or_said_to_be_open(step):
    said = step("otherSizes")
    assert said["made"]["text"].startswith("Fits at 832x480, 81 frames.")
    # 1.27.10 draws no panels in Vue nodes: what is not drawn has no line breaks.
    assert "the size is known in the run only" in said["made"]["text"]
    for name, size in (("given", "832x192, 9 frames"), ("bypassed", "192x192, 9 frames")):
        assert said[name]["text"].startswith("Fits.") and size in said[name]["text"]
    assert said["bypassed"]["prompted"] == 192
    assert said["muted"]["text"].startswith("What gives width of ") and "Fits" not in said["muted"]["text"]
    assert "512x512, 1 frame" in said["image"]["text"] and "1 frames" not in said["image"]["text"]


def test_a_checkpoint_can_be_looked_at_in_full(step):
    shown = step("verify")["shown"]
    assert {"block_0.safetensors", "Wan2.1_VAE.pth", "tokenizer.json"} <= set(shown.splitlines())
    assert "nothing wrong inside" in shown or "as published" in shown


def test_an_enhanced_prompt_is_shown_and_a_failure_is_said(step):
    found = step("enhance")
    assert found["ended"] == "execution_success"
    assert found["enhanced"] == ENHANCED
    assert "cannot be reached" in found["kept"] and found["kept"].endswith("a red fox")
    assert "LightX2V Enhance Prompt" in found["message"] and "your own text is used" in found["message"]


def test_a_run_shows_progress_previews_and_then_its_measured_time(step):
    run = step("run")
    assert run["ended"] == "execution_success"
    assert list(dict.fromkeys(text.split(",")[0] for text in run["texts"] if text.startswith("step"))) == STEPS
    others = {"encoding text 2/2", "loading the transformer 12/40", "decoding frames 9/9"}
    assert others <= {text.split(",")[0] for text in run["texts"]}
    blocks = [text for text in run["texts"] if text.startswith("step 2/4, block")]
    assert len(blocks) > 3 and blocks[-1].startswith("step 2/4, block 40/40")
    assert run["left"] == []
    assert run["previews"] == 4
    assert "(measured)" in run["plan"]


def test_the_report_can_be_read_and_copied(step, has_panels):
    report = step("report")
    stages = {stage["stage"] for stage in json.loads(report["JSON"])["stages"]}
    assert {"encode", "sample", "decode"} <= stages
    assert report["withoutClipboard"] == report["JSON"]
    assert "| sample |" in report["Markdown"] and "- engine: portable" in report["Markdown"]
    # A headline, and the rest folded.
    assert "192x192, 9 frames in " in report["text"]
    # A panel that is not drawn has all of its text.
    assert "encode the prompt" not in report["text"] or not has_panels


def test_cancel_ends_the_run(step):
    cancel = step("cancel")
    assert cancel["ended"] == "execution_interrupted"
    assert not any(text.startswith("step 4/4") for text in cancel["texts"])
    assert cancel["left"] == []


def test_a_page_that_is_reloaded_mid_run_sees_the_rest(step):
    reload = step("reload")
    assert reload["ended"] == "execution_success" and "LightX2VReport" in reload["types"]
    assert reload["progress"] and "decoding frames 25/25" in reload["texts"] and "step 1/4" not in reload["texts"]


def test_our_files_log_no_errors(steps):
    assert steps["problems"]["problems"] == []


def test_no_panel_scrolls(steps):
    assert steps["problems"]["cramped"] == []


def test_an_editor_in_chinese_is_answered_in_chinese(step, has_panels):
    shown = step("chinese")
    assert shown["ended"] == "execution_error"
    texts = [*shown["titles"], shown["doctor"], *filter(None, shown["texts"]), shown["said"]]
    texts += [*shown["panels"], shown["report"]] if has_panels else []
    assert {text: found for text in texts if (found := english_in(text))} == {}
    assert all(map(CHINESE_CHARACTER.search, [*shown["panels"], shown["report"], shown["said"], shown["texts"][0]]))
