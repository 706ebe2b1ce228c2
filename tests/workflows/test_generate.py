"""tools/generate.py: a prompt becomes a video without a graph, and a benchmark becomes a post."""

import errno
import os
import shutil
import signal
import tempfile

import av
import numpy as np
import pytest
from lightx2v_pack.engine.checkpoints.published import PUBLISHED
from lightx2v_pack.tools import generate_cli
from lightx2v_pack.tools.headless.progress import Progress
from support import checkpoints
from support.examples import CHECKPOINT_NAME, TEXT_TO_VIDEO, TINY, frames_of, set_options

PROMPT = "a red fox in the snow"
SIZE = ("--size", "48x32", "--frames", "5")


@pytest.fixture
def generate(models_dir, tmp_path, capsys):
    """generate(*arguments) -> (exit code, stdout, stderr), on the tiny checkpoint unless told otherwise."""

    def call(*arguments):
        words = [str(argument) for argument in arguments]
        if "--checkpoint" not in words and "--models-dir" not in words:
            words += ["--checkpoint", str(models_dir / "lightx2v" / CHECKPOINT_NAME)]
        capsys.readouterr()
        code = generate_cli.main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_prompt_becomes_a_video(generate, tmp_path):
    out = tmp_path / "fox.mp4"
    code, said, error = generate(PROMPT, *SIZE, "--out", out)
    assert (code, said) == (0, f"{out}\n"), error
    with av.open(str(out)) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 48, 32)
        assert (stream.frames, stream.average_rate) == (5, 16)
    assert os.listdir(tmp_path) == ["fox.mp4"]


def test_it_is_the_video_of_the_nodes(generate, run, tmp_path):
    out = tmp_path / "fox.mp4"
    assert generate(PROMPT, *SIZE, "--seed", "3", "--out", out)[0] == 0
    settings = set_options(f"LightX2VTextEncode.text={PROMPT}", "LightX2VSampler.seed=3")
    done = run(TEXT_TO_VIDEO, *TINY[TEXT_TO_VIDEO], *settings)
    assert done.code == 0, done.stderr
    assert np.array_equal(frames_of(out), frames_of(done.results[0]))
    assert generate(PROMPT, *SIZE, "--seed", "4", "--out", out, "--overwrite")[0] == 0
    assert not np.array_equal(frames_of(out), frames_of(done.results[0]))


def test_the_first_checkpoint_of_the_models_folder_is_taken(generate, models_dir, tmp_path):
    out = tmp_path / "fox.mp4"
    code, _, error = generate(PROMPT, *SIZE, "--out", out, "--models-dir", models_dir)
    assert code == 0 and CHECKPOINT_NAME in error


def test_a_benchmark_is_a_post_of_a_second_run(generate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, post, error = generate("--benchmark", *SIZE, "--quiet")
    assert (code, error) == (0, "")
    lines = post.splitlines()
    assert lines[0].startswith("**48x32, 5 frames in ") and "| stage | time | peak RAM | peak VRAM |" in lines
    facts = dict(line.removeprefix("- ").split(": ", 1) for line in lines if line.startswith("- "))
    assert facts["file"] == f"{CHECKPOINT_NAME}/distill_fp8" and facts["size"] == "48x32, 5 frames"
    assert len(facts["seconds per step"].split(", ")) == 4
    assert {"engine", "precision", "attention", "card", "system", "versions"} <= facts.keys()
    assert "first run of the process, with loading" in facts
    assert os.listdir(tmp_path) == []


def test_a_benchmark_can_leave_its_video(generate, tmp_path):
    out = tmp_path / "fox.mp4"
    code, post, _ = generate(PROMPT, *SIZE, "--benchmark", "--out", out)
    assert code == 0 and "| sample |" in post and len(frames_of(out)) == 5


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "There is no prompt"),
        ((PROMPT, "--size", "480p"), "--size is '480p'; expected width and height, as 832x480"),
        ((PROMPT, "--size", "50x32"), "width is 50; expected a multiple of 16"),
        ((PROMPT, "--frames", "80"), "--frames is 80; expected 4n+1"),
        ((PROMPT, "--size", "99999999x32"), "width is 99999999; expected at most 8192"),
        ((PROMPT, "--size", f"32x{'9' * 5000}"), "expected width and height, as 832x480"),
        ((PROMPT, "--checkpoint", "gone"), "gone does not exist"),
        ((PROMPT, "--precision", "int8"), "has no int8 transformer"),
        ((PROMPT, "--out", "fox.avi"), "expected a name that ends in .mp4"),
        ((PROMPT, "--out", "gone/fox.mp4"), "The folder of --out"),
        ((PROMPT, "--out", "there.mp4"), "is there already"),
        ((PROMPT, "--out", "there.mp4/fox.mp4"), "there.mp4 is a file, where a folder has to be"),
        ((PROMPT, "--out", f"{'a' * 260}.mp4"), f"the name {'a' * 60} is too long"),
        ((PROMPT, "--out", f"{'a' * 260}/fox.mp4"), "is too long"),
        ((PROMPT, "--models-dir", "."), "There is no checkpoint in lightx2v"),
    ],
)
def test_what_cannot_run_is_said_before_anything_runs(generate, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.mp4").write_bytes(b"kept")
    code, said, error = generate(*arguments)
    assert (code, said) == (2, "")
    assert error.startswith("generate: ") and sentence in error and "Traceback" not in error
    assert os.listdir(tmp_path) == ["there.mp4"] and (tmp_path / "there.mp4").read_bytes() == b"kept"


def test_a_film_without_a_place_is_put_elsewhere_or_said_to_be_lost(generate, tmp_path, monkeypatch):
    """The drive fills while the film is written: a file may have so many bytes, here, or anywhere."""
    full = [tmp_path / "full"]
    full[0].mkdir()

    def write_mp4(path, *args, **kwargs):
        if any(path.is_relative_to(folder) for folder in full):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path, *args, **kwargs)

    original = generate_cli.write_mp4
    monkeypatch.setattr(generate_cli, "write_mp4", write_mp4)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("temporary", "home"):
        (tmp_path / name).mkdir()
    out = full[0] / "fox.mp4"
    out.write_bytes(b"the old one")
    room = f"Make room, or choose another place for results: the drive of {out} is full."
    for place in ("temporary", "home"):
        code, said, error = generate(PROMPT, *SIZE, "--out", out, "--overwrite")
        (film,) = (tmp_path / place).rglob("fox.mp4")
        assert (code, said) == (3, "") and len(frames_of(film)) == 5
        assert error.endswith(f"generate: Take what was made from {film}. {room}\n")
        assert os.listdir(full[0]) == ["fox.mp4"] and out.read_bytes() == b"the old one"
        full.append(tmp_path / place)
    shutil.rmtree(tmp_path / "home")
    shutil.rmtree(tmp_path / "temporary")
    (tmp_path / "temporary").mkdir()
    code, said, error = generate(PROMPT, *SIZE, "--out", out, "--overwrite")
    assert (code, said) == (3, "") and f"{room} Then run it again with the same seed: {out} was not written" in error
    assert os.listdir(tmp_path / "temporary") == [] and out.read_bytes() == b"the old one"


def test_a_size_that_does_not_fit_is_a_sentence_before_a_prompt_is_encoded(generate, tmp_path):
    code, said, error = generate(PROMPT, "--size", "8192x8192", "--frames", "4097", "--out", tmp_path / "fox.mp4")
    assert (code, said) == (3, "") and "Traceback" not in error and "[1/3]" not in error
    assert "8192x8192 with 4097 frames" in error and os.listdir(tmp_path) == []


def test_a_missing_part_is_a_sentence_before_the_run(generate, tmp_path):
    shutil.copytree(checkpoints.repository() / "distill_fp8", tmp_path / "alone", copy_function=os.symlink)
    for path in (tmp_path / "alone").iterdir():
        if "umt5" in path.name or "VAE" in path.name:
            path.unlink()
    out = ("--out", tmp_path / "fox.mp4", "--models-dir", tmp_path)
    code, said, error = generate(PROMPT, *SIZE, "--checkpoint", tmp_path / "alone", *out)
    assert (code, said) == (2, "") and "The text encoder is missing" in error and "Traceback" not in error
    assert "download.py get fp8 --part text-encoder --part vae" in error and "--text-encoder and --vae" in error
    files = ("--text-encoder", checkpoints.comfy_text_encoder(), "--vae", checkpoints.vae())
    code, _, error = generate(PROMPT, *SIZE, "--checkpoint", tmp_path / "alone", *out, *files)
    assert code == 0, error


def make_models_folder(root, precision, **files):
    """Lay out a models folder as a download of single files leaves its transformer, with files by their path."""
    transformer = PUBLISHED[f"{precision}-single"].entry
    for entry, source in {transformer: checkpoints.single_file(precision), **files}.items():
        target = root / entry
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, bytes):
            target.write_bytes(source)
        else:
            shutil.copy(source, target)
    return root / transformer


def test_single_files_find_their_companions(generate, tmp_path):
    """As download.py get int8-single leaves them, and other files that fit beside."""
    published = {
        "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors": checkpoints.comfy_text_encoder(scaled_fp8=True),
        "text_encoders/another_umt5_xxl.safetensors": checkpoints.comfy_text_encoder(),
        "vae/wan_2.1_vae.safetensors": checkpoints.vae(),
        "vae/a_copy.safetensors": checkpoints.vae(),
        "vae/damaged.safetensors": b"",
    }
    models_dir = tmp_path / "models"
    model = make_models_folder(models_dir, "int8", **published)
    out = tmp_path / "fox.mp4"
    for chosen in (("--checkpoint", model), ()):
        code, said, error = generate(PROMPT, *SIZE, "--models-dir", models_dir, *chosen, "--out", out, "--overwrite")
        assert (code, said) == (0, f"{out}\n"), error
        assert "umt5_xxl_fp8_e4m3fn_scaled.safetensors" in error and "wan_2.1_vae.safetensors" in error


def test_companions_of_other_names(generate, tmp_path):
    models_dir = tmp_path / "models"
    files = {
        "clip/mine/my_t5.safetensors": checkpoints.comfy_text_encoder(),
        "text_encoders/clip_l.safetensors": checkpoints.vae(),
        "vae/my_vae.safetensors": checkpoints.vae(),
    }
    model = make_models_folder(models_dir, "int8", **files)
    asked = (PROMPT, *SIZE, "--models-dir", models_dir, "--checkpoint", model, "--out", tmp_path / "fox.mp4")
    code, _, error = generate(*asked)
    assert code == 0 and "my_t5.safetensors" in error and "my_vae.safetensors" in error, error
    shutil.copy(models_dir / "vae" / "my_vae.safetensors", models_dir / "vae" / "other.safetensors")
    code, said, error = generate(*asked, "--overwrite")
    assert (code, said) == (2, "") and "--vae" in error and "my_vae.safetensors, " in error
    code, _, error = generate(*asked, "--overwrite", "--vae", models_dir / "vae" / "other.safetensors")
    assert code == 0 and "other.safetensors" in error
    shutil.rmtree(models_dir / "vae")
    code, said, error = generate(*asked, "--overwrite")
    assert (code, said) == (2, "") and "download.py get int8-single --part vae --models-dir" in error


@pytest.mark.parametrize(
    ("sizes", "template"),
    [(checkpoints.I2V_SIZES, "2 Wan image to video"), (checkpoints.A14B_I2V_SIZES, "3 Wan2.2 first and last frame")],
)
def test_an_image_to_video_model_is_refused_before_the_run(generate, tmp_path, sizes, template):
    model = checkpoints.single_file("int8", sizes=sizes)
    code, said, error = generate(PROMPT, *SIZE, "--checkpoint", model, "--out", tmp_path / "fox.mp4")
    assert (code, said) == (2, "") and os.listdir(tmp_path) == []
    assert "Give --checkpoint a text-to-video model" in error and "tools/run_workflow.py" in error
    assert f"example_workflows/{template}.json" in error and "onditioning" not in error


def test_ctrl_c_leaves_nothing_behind(generate, tmp_path, monkeypatch):
    original = Progress.start_node

    def start_node(self, title):
        original(self, title)
        if title == "decode":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "start_node", start_node)
    before = signal.getsignal(signal.SIGINT)
    code, said, error = generate(PROMPT, *SIZE, "--out", tmp_path / "fox.mp4")
    assert (code, said) == (130, "") and error.endswith("generate: Cancelled.\n")
    assert os.listdir(tmp_path) == [] and signal.getsignal(signal.SIGINT) is before
