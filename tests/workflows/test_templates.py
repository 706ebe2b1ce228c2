"""The template browser's files: each is complete, converts as the editor does, fits the card it names, and runs."""

import colorsys
import functools
import json
import os
import re
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from lightx2v_pack.engine import engines
from lightx2v_pack.engine.backends.table import Machine
from lightx2v_pack.engine.checkpoints.published import (
    ALL_PUBLISHED,
    COMFY_REPOSITORY,
    SINGLE_FILE_REPOSITORY,
    WAN21_LORA_REPOSITORY,
    WAN22_REPOSITORY,
)
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.engine.memory.clip import Clip
from lightx2v_pack.engine.memory.plan import Budget, Wish, plan_run
from lightx2v_pack.engine.panel.advice import rank_files
from lightx2v_pack.tools import prompts_cli
from lightx2v_pack.tools.headless.errors import Cancelled
from lightx2v_pack.tools.headless.places import Here, Task
from lightx2v_pack.tools.headless.progress import Progress
from lightx2v_pack.tools.headless.report import RunLog
from lightx2v_pack.tools.headless.workflow import read_workflow, to_prompt
from lightx2v_pack.tools.pictures import take
from PIL import Image
from support import checkpoints, examples
from support.chinese import CHINESE_CHARACTER
from support.examples import frames_of, set_options
from support.wan_14b import choose_kernels, make_sizes

GOLDEN = Path(__file__).parent / "golden"
TEMPLATES = sorted(examples.FOLDER.glob("*.json"))
TINY = examples.TINY[examples.TEXT_TO_VIDEO]
TINY_FILM = set_options(*(f"LightX2VImageToVideo.{size}" for size in ("width=48", "height=32", "num_frames=5")))

# What ComfyUI_frontend 1.58.1 draws of a node below its title at the least, in Vue nodes; LiteGraph takes less. A note
# is as high as its text.
VUE_HEIGHTS = {
    "CLIPLoader": 114,
    "CLIPTextEncode": 102,
    "CLIPVisionLoader": 62,
    "CreateVideo": 82,
    "EmptyHunyuanLatentVideo": 146,
    "LightX2VDecode": 106,
    "LightX2VEmptyLatent": 254,
    "LightX2VImageToVideo": 398,
    "LightX2VLoadCheckpoint": 322,
    "LightX2VLoadTextEncoder": 114,
    "LightX2VLoadTransformer": 326,
    "LightX2VLoadVAE": 106,
    "LightX2VLora": 258,
    "LightX2VReport": 252,
    "LightX2VSampler": 234,
    "LightX2VTextEncode": 154,
    "LoadImage": 322,
    "MarkdownNote": 0,
    "SaveVideo": 126,
    "VAEDecode": 54,
    "VAELoader": 62,
}
# Of those heights a strip that is there already, "Show advanced inputs", takes 24.
WITH_STRIP = {"CLIPLoader", "LightX2VLoadCheckpoint", "LightX2VLoadTransformer", "LightX2VSampler"}
STRIP = 24
# A strip with its rim, below a node.
STRIP_AND_RIM = 32
VUE_LEAST_WIDTH = 225
TITLE = 30


def contrast(one, other):
    """Return the contrast of two colours of three parts from 0 to 1, by WCAG 2.1."""
    linear = [
        [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in each] for each in (one, other)
    ]
    dark, light = sorted(0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in linear)
    return (light + 0.05) / (dark + 0.05)


def values_of(path, kind):
    """Return the widget values of the only node of a class."""
    nodes = [node for node in json.loads(path.read_text(encoding="utf-8"))["nodes"] if node["type"] == kind]
    assert len(nodes) == 1
    return nodes[0]["widgets_values"]


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory):
    """A models folder with every file the templates name, in every precision."""
    folder = examples.write_models(tmp_path_factory.mktemp("models"))
    checkpoint = folder / "lightx2v" / examples.CHECKPOINT_NAME
    for precision in ("distill_int8", "distill_models"):
        shutil.copytree(checkpoints.repository() / precision, checkpoint / precision)
    return folder


@pytest.fixture
def picture(models_dir):
    """The picture that every ComfyUI comes with, in the folder beside models."""
    (models_dir.parent / "input").mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(models_dir.parent / "input" / "example.png")


# Of a card: free GiB of VRAM and of RAM, and the offload mode that the plan of the starter then takes.
CARDS = {"RTX 4060": (7.3, 18, "block"), "RTX 4060 Ti": (15.0, 18, "block"), "RTX 4090": (23.0, 24, "none")}


@pytest.mark.parametrize("card", CARDS)
def test_the_starter_fits_every_card_with_the_file_that_its_note_names(card):
    vram_gib, ram_gib, expected_mode = CARDS[card]
    machine = Machine(capability=(8, 9), packages={"triton": "3.6.0"})
    best = rank_files(machine, f"NVIDIA GeForce {card}")[0].variant
    (note, *_) = values_of(examples.TEXT_TO_VIDEO, "MarkdownNote")
    assert f"`python tools/download.py get {best.name}`" in note and f"**{best.name}** for RTX" in note
    width, height, num_frames, batch = values_of(examples.TEXT_TO_VIDEO, "LightX2VEmptyLatent")
    clip = Clip(width=width, height=height, num_frames=num_frames, batch=batch)
    budget = Budget(vram=int(vram_gib * GIB), ram=int(ram_gib * GIB))
    plan = plan_run(make_sizes(clip, choose_kernels(best.precision)), budget, Wish())
    assert plan.placement.mode == expected_mode
    assert all(need.fits(budget) for need in plan.needs.values())


def test_templates_are_few_the_starter_comes_first_and_all_are_ready_to_run():
    """Named as people read them: the browser shows the file's name as the title, in the folder's order."""
    assert len(TEMPLATES) <= 6 and TEMPLATES[0] == examples.TEXT_TO_VIDEO
    for path in TEMPLATES:
        assert re.fullmatch(r"\d Wan[\w. ]+", path.stem)
        graph = json.loads(path.read_text(encoding="utf-8"))
        kinds = [node["type"] for node in graph["nodes"]]
        assert not {"LightX2VOffload", "LightX2VGPUs"} & set(kinds), "these change nothing as they come"
        for node in graph["nodes"]:
            if node["type"] == "LightX2VSampler":
                assert node["widgets_values"][1] == "randomize"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_is_read_at_one_glance_and_a_preview_covers_nothing(path):
    """Boxes of nodes with their titles, as they are saved; a preview of the sampler takes 300 pixels."""
    graph = json.loads(path.read_text(encoding="utf-8"))
    boxes = []
    for node in graph["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        boxes.append((node["type"], x, y - TITLE, x + width, y + height))
        if node["type"] == "LightX2VSampler":
            assert height >= 460
    assert max(right for *_, right, _ in boxes) - min(box[1] for box in boxes) <= 1640
    assert max(box[4] for box in boxes) - min(box[2] for box in boxes) <= 960
    for index, (one, left, top, right, bottom) in enumerate(boxes):
        for other, left2, top2, right2, bottom2 in boxes[index + 1 :]:
            apart = right <= left2 or right2 <= left or bottom <= top2 or bottom2 <= top
            assert apart, f"{one} covers {other}"
    # As it opens, whole on a screen of 1366 x 768, of which the bar on top takes 40.
    scale, (x, y) = graph["extra"]["ds"]["scale"], graph["extra"]["ds"]["offset"]
    assert all((right + x) * scale <= 1366 and (bottom + y) * scale <= 768 - 40 for *_, right, bottom in boxes)
    # A preview of any shape has the room below.
    save = next(box for box in boxes if box[0] == "SaveVideo")
    assert not any(box[2] >= save[4] and box[1] < save[3] and save[1] < box[3] for box in boxes)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_what_vue_nodes_say_below_a_node_covers_no_title(path):
    """A strip with "Issues" or "Error" hangs below a node, or takes half of the one that is there."""
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    for node in nodes:
        (left, y), (width, height), kind = node["pos"], node["size"], node["type"]
        assert height >= VUE_HEIGHTS[kind] and width >= VUE_LEAST_WIDTH, f"{kind} is drawn larger than it is saved"
        bottom = y + height - (STRIP if kind in WITH_STRIP else 0)
        for other in nodes:
            (left2, y2), (width2, _) = other["pos"], other["size"]
            if y2 > y and left < left2 + width2 and left2 < left + width:
                gap = y2 - TITLE - bottom
                assert gap >= STRIP_AND_RIM, f"{gap} pixels from {kind} to {other['type']}"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_conversion_equals_the_editors(path, infos):
    """golden/*.api.json are what ComfyUI_frontend 1.27.10 sends for these graphs."""
    golden = json.loads((GOLDEN / f"{path.stem}.api.json").read_text(encoding="utf-8"))
    assert to_prompt(read_workflow(path), infos) == golden


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_is_complete(path):
    graph = json.loads(path.read_text(encoding="utf-8"))
    assert graph["version"] == 0.4
    # The browser lists every file as a template of its name, an index too.
    assert path.stem.isascii() and path.stem != "index"
    picture = path.with_suffix(".jpg")
    assert picture.read_bytes()[:3] == b"\xff\xd8\xff"
    assert picture.stat().st_size < 120_000
    note = next(node for node in graph["nodes"] if node["type"] == "MarkdownNote")
    assert "python tools/download.py get " in note["widgets_values"][0]
    for name in re.findall(r"download\.py get ([\w.-]+)", note["widgets_values"][0]):
        assert name in ALL_PUBLISHED
    for node in graph["nodes"]:
        if node["type"].startswith("LightX2V"):
            assert node["properties"]["cnr_id"] == "lightx2v-nodes"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_notes_are_read_in_both_languages(path):
    """The editor draws a note's paragraphs at 10 pixels: what is to be done is in headings."""
    graph = json.loads(path.read_text(encoding="utf-8"))
    (note,) = [node for node in graph["nodes"] if node["type"] == "MarkdownNote"]
    english, chinese = note["widgets_values"][0].split("\n---\n")
    steps = [re.findall(r"^## (\d)\. (.+)$", text, re.MULTILINE) for text in (english, chinese)]
    assert [number for number, _ in steps[0]] == [number for number, _ in steps[1]] and 2 <= len(steps[0]) <= 3
    assert not any(map(CHINESE_CHARACTER.search, english)) and all(
        CHINESE_CHARACTER.search(text) for _, text in steps[1]
    )
    assert all(not CHINESE_CHARACTER.search(text) for _, text in steps[0])
    # The commands, the names of files, sizes and GiB of the one are in the other.
    facts = [
        re.findall(r"`python [^`]+`|\d+ GiB|\bCFG\b|RTX|H100|(?<=\*\*)[a-z0-9][\w.-]+(?=\*\*)", text)
        for text in (english, chinese)
    ]
    assert sorted(set(facts[0])) == sorted(set(facts[1]))
    # A title of a file is the same in every language.
    titles = [node["title"] for node in graph["nodes"] if "title" in node]
    assert all(re.fullmatch(r"[ -~]+ / .*[\u4e00-\u9fff]+", title) for title in titles), titles


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_note_stands_out_from_its_ground_in_the_dark_and_in_the_light_palette(path):
    """Vue nodes write in one grey on every colour. The yellow of a note that names none swallows that of the dark
    palette; the light one draws a colour lighter by half of the scale.
    """
    (note,) = [node for node in json.loads(path.read_text(encoding="utf-8"))["nodes"] if node["type"] == "MarkdownNote"]
    for name in ("color", "bgcolor"):
        dark = [int(part, 16) / 255 for part in re.findall("[0-9a-f]{2}", note[name])]
        hue, lightness, saturation = colorsys.rgb_to_hls(*dark)
        light = colorsys.hls_to_rgb(hue, min(1, lightness + 0.5), saturation)
        assert contrast(dark, [160 / 255] * 3) >= 4.5
        assert contrast(light, [68 / 255] * 3) >= 4.5


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_note_says_how_to_get_what_the_template_needs(path):
    """Every file that a loader names is part of what the note says to download, and a picture is to be chosen."""
    graph = json.loads(path.read_text(encoding="utf-8"))
    kinds = {node["type"] for node in graph["nodes"]}
    (note,) = [node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote"]
    named = [ALL_PUBLISHED[name] for name in re.findall(r"download\.py get ([\w.-]+)", note)]
    alike = [each for each in ALL_PUBLISHED.values() for one in named if each.parts[1:] == one.parts[1:]]
    files = {name for variant in (*named, *alike) if not variant.is_folder for name in variant.file_names}
    for node in graph["nodes"]:
        if node["type"] in ("MarkdownNote", "LoadImage"):
            continue
        chosen = [value for value in node["widgets_values"] or () if str(value).endswith(".safetensors")]
        assert set(chosen) <= files, node["type"]
    assert "LoadImage" not in kinds or ("## 1. Choose" in note and "not every ComfyUI has" in note)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_links_and_ids_are_consistent(path):
    graph = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert len(nodes) == len(graph["nodes"])
    assert graph["last_node_id"] == max(nodes)
    assert graph["last_link_id"] == max(link[0] for link in graph["links"])
    for number, origin, slot, target, entry, kind in graph["links"]:
        assert number in nodes[origin]["outputs"][slot]["links"]
        assert nodes[target]["inputs"][entry]["link"] == number
        assert nodes[origin]["outputs"][slot]["type"] == kind
    ids = [json.loads(other.read_text(encoding="utf-8"))["id"] for other in TEMPLATES]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_files_that_can_be_offered_for_download_are_published_ones(path):
    """The editor's missing-model dialog reads properties.models; only single files can be offered."""
    parts = {
        part.patterns[0]: part
        for variant in ALL_PUBLISHED.values()
        for part in variant.parts
        if not variant.is_folder
        and part.repository in (SINGLE_FILE_REPOSITORY, COMFY_REPOSITORY, WAN21_LORA_REPOSITORY, WAN22_REPOSITORY)
    }
    for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
        for model in node["properties"].get("models", ()):
            assert model["name"] in node["widgets_values"]
            repository, _, file = model["url"].removeprefix("https://huggingface.co/").partition("/resolve/main/")
            assert parts[file].repository == repository
            assert parts[file].folder == model["directory"]


@pytest.mark.parametrize(("num_takes", "tiling"), [(1, "auto"), (4, "on")])
def test_the_starter_makes_its_video_and_as_many_takes_as_asked_for(num_takes, tiling, models_dir, tmp_path, capsys):
    report_file = tmp_path / "report.json"
    folders = ("--models-dir", models_dir, "--output-dir", tmp_path / "output")
    more = set_options(f"LightX2VEmptyLatent.batch_size={num_takes}", f"LightX2VDecode.tiling={tiling}")
    done = examples.run_command(capsys, examples.TEXT_TO_VIDEO, *folders, *TINY, *more, "--report", report_file)
    assert done.code == 0, done.stderr
    assert len(done.results) == 1
    with av.open(str(done.results[0])) as video:
        stream = video.streams.video[0]
        assert (stream.width, stream.height, stream.frames, stream.average_rate) == (48, 32, 5 * num_takes, 16)
    report = json.loads(report_file.read_text(encoding="utf-8"))
    details = {stage["stage"]: stage["details"] for stage in report["engine"]["stages"]}
    assert details["sample"]["precision"] == "fp8"
    assert len(details["sample"]["step_seconds"]) == num_takes
    assert details["decode"]["tiled"] == (tiling == "on")


@pytest.mark.usefixtures("picture")
def test_the_template_of_image_to_video_makes_its_video(models_dir, tmp_path, capsys):
    report_file = tmp_path / "report.json"
    folders = ("--models-dir", models_dir, "--output-dir", tmp_path / "output")
    workflow = examples.without_clip_vision(tmp_path)
    done = examples.run_command(capsys, workflow, *folders, *TINY_FILM, "--report", report_file)
    assert done.code == 0, done.stderr
    with av.open(str(done.results[0])) as video:
        stream = video.streams.video[0]
        assert (stream.width, stream.height, stream.frames) == (48, 32, 5)
    stages = [stage["stage"] for stage in json.loads(report_file.read_text(encoding="utf-8"))["engine"]["stages"]]
    assert "encode" in stages and "encode_video" in stages and stages[-1] == "decode"


def test_every_template_has_a_plan_for_its_picture():
    """For the file that the template loads, on a card that it fits."""
    assert set(take.PLANS) == {path.stem for path in TEMPLATES}
    for answer in take.PLANS.values():
        assert answer["ok"] and "40 blocks" in answer["detected"] and answer["seconds"]


@pytest.mark.usefixtures("picture")
def test_first_and_last_frame_become_a_video_of_both_experts(models_dir, tmp_path, capsys):
    report_file = tmp_path / "report.json"
    folders = ("--models-dir", models_dir, "--output-dir", tmp_path / "output")
    done = examples.run_command(capsys, examples.FIRST_LAST_FRAME, *folders, *TINY_FILM, "--report", report_file)
    assert done.code == 0, done.stderr
    assert frames_of(Path(done.results[0])).shape[0] == 5
    stages = json.loads(report_file.read_text(encoding="utf-8"))["engine"]["stages"]
    details = next(stage["details"] for stage in stages if stage["stage"] == "sample")
    assert details["experts"] == ["high", "high", "low", "low"]


def test_every_template_is_run():
    assert {*examples.TINY, examples.IMAGE_TO_VIDEO, examples.FIRST_LAST_FRAME} == set(TEMPLATES)


@pytest.fixture
def prompts(models_dir, tmp_path, capsys):
    """Call tools/run_prompts.py: prompts(text, *arguments) -> (exit code, results file's lines, stderr)."""
    file = tmp_path / "prompts.txt"

    def call(text, *arguments):
        file.write_text(text, encoding="utf-8")
        folders = ["--models-dir", str(models_dir), "--output-dir", str(tmp_path / "output")]
        capsys.readouterr()
        code = prompts_cli.main([str(file), *folders, *TINY, *arguments, "--quiet"])
        results = file.with_suffix(".results.jsonl")
        lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
        return code, [json.loads(line) for line in lines], capsys.readouterr().err

    return call


def test_every_prompt_of_a_list_gets_its_video_once(prompts):
    code, first, _ = prompts('# a list\na red fox\n\n"3.0"\n', "--seed", "7")
    assert code == 0
    assert [(line["prompt"], line["seed"], line["status"]) for line in first] == [
        ("a red fox", 7, "ok"),
        ('"3.0"', 8, "ok"),
    ]
    files = [Path(output) for line in first for output in line["outputs"]]
    assert len(set(files)) == 2 and all(file.exists() for file in files)
    code, again, _ = prompts('a red fox\n"3.0"\na blue boat\n', "--seed", "7")
    assert code == 0
    assert again[:2] == first
    assert [(line["prompt"], line["seed"]) for line in again[2:]] == [("a blue boat", 9)]
    with av.open(str(files[1])) as video:
        saved, drawn = (json.loads(video.metadata[name]) for name in ("prompt", "workflow"))
    assert [node["inputs"]["text"] for node in saved.values() if "text" in node["inputs"]] == ['"3.0"']
    # Dropped on the editor, the file shows what made it.
    values = {node["type"]: node.get("widgets_values") for node in drawn["nodes"]}
    assert values["LightX2VTextEncode"][0] == '"3.0"' and values["LightX2VSampler"][:2] == [8, "randomize"]
    assert values["LightX2VEmptyLatent"][:3] == [48, 32, 5]


@pytest.fixture
def built(monkeypatch):
    """Names of what was built of models."""
    names = []

    def build(name, original, *arguments):
        names.append(name)
        return original(*arguments)

    for name in ("build_transformer", "build_decoder"):
        monkeypatch.setattr(engines, name, functools.partial(build, name, getattr(engines, name)))
    return names


@pytest.mark.slow
def test_models_stay_loaded_from_prompt_to_prompt(prompts, built, tmp_path):
    code, together, _ = prompts("a red fox\na blue boat\na kite\n", "--seed", "7")
    assert code == 0 and built == ["build_transformer", "build_decoder"]
    (tmp_path / "prompts.results.jsonl").unlink()
    code, alone, _ = prompts("a blue boat\n", "--seed", "8", "--output-dir", str(tmp_path / "alone"))
    assert built == 2 * ["build_transformer", "build_decoder"]
    frames = [examples.frames_of(Path(line["outputs"][0])) for line in (together[1], *alone)]
    assert code == 0 and np.array_equal(*frames)


@pytest.mark.slow
def test_a_file_that_has_changed_is_loaded_anew(models_dir, tmp_path, built):
    place = Here(models_dir, tmp_path, keeps_models=True)
    task = Task(workflow=examples.TEXT_TO_VIDEO, assignments=TINY[1::2], output_dir=tmp_path / "out")
    for number, expected in ((1, 1), (2, 1), (3, 2)):
        if number == 3:
            for file in (models_dir / "lightx2v").rglob("*.pth"):
                os.utime(file, (1, file.stat().st_mtime + 5))
        place.run(task, Progress(None, quiet=True), RunLog())
        assert built.count("build_decoder") == expected
    place.stop()
    with pytest.raises(Cancelled):
        place.run(task, Progress(None, quiet=True), RunLog())


def test_a_wrong_value_stops_the_list_at_once(prompts):
    code, results, error = prompts("a red fox\na blue boat\n", "--set", "LightX2VSampler.method=dpm")
    assert code == 2
    assert [line["status"] for line in results] == ["failed"]
    assert "method is 'dpm'" in error


def test_a_prompt_that_fails_leaves_the_others_and_is_tried_again(prompts, tmp_path):
    code, results, error = prompts("a red fox\na blue boat\n", "--timeout", "0.001")
    assert code == 3
    assert [line["status"] for line in results] == ["failed", "failed"]
    assert "2 of 2 prompts failed" in error
    code, results, _ = prompts("a red fox\na blue boat\n")
    assert code == 0
    assert [line["status"] for line in results[2:]] == ["ok", "ok"]


def test_an_empty_list_is_refused(prompts):
    code, _, error = prompts("# nothing\n")
    assert code == 2
    assert "has no prompt" in error
