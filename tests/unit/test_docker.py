"""The Docker recipe as far as it can be read: pins, volumes, user, what is copied. tools/docker_lines.py runs it."""

import json
import re
from pathlib import Path

import pytest
import yaml
from lightx2v_pack.tools.docker_lines import is_ignored, list_context, read_lines

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
LINES = list(read_lines((DOCKER / "Dockerfile").read_text(encoding="utf-8")))
PATTERNS = [line for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if not line.startswith("#")]
SERVICES = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"]


def arguments(instruction):
    return [line.argument for line in LINES if line.instruction == instruction]


def test_lines_are_read_with_what_continues_them():
    text = '# a comment\nFROM x\n\nRUN a \\\n    # in between\n    && b\nCMD ["c"]\n'
    assert [(line.number, line.instruction, line.argument) for line in read_lines(text)] == [
        (2, "FROM", "x"),
        (4, "RUN", "a && b"),
        (7, "CMD", '["c"]'),
    ]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (".git/config", True),
        ("tests/unit/test_docker.py", True),
        ("engine/__pycache__/pipeline.pyc", True),
        ("tools/bench/.mypy_cache/x", True),
        ("engine/pipeline.py", False),
        ("tools/tests.py", False),
        ("js/docs/LightX2VReport/en.md", False),
    ],
)
def test_what_the_image_leaves_out(path, expected):
    assert is_ignored(path, PATTERNS) is expected


def test_the_image_gets_the_pack_and_no_tests():
    copied = list_context(ROOT, PATTERNS)
    needed = {"__init__.py", "nodes/__init__.py", "engine/prompting/wan_prompts.json", "js/report.js", "LICENSE"}
    needed |= {"requirements.txt", "docker/constraints.txt", "locales/zh/nodeDefs.json", "tools/generate.py"}
    assert needed <= set(copied)
    assert not [path for path in copied if path.startswith(("tests/", "demo/", "docs/", ".git/", ".venv/", "out/"))]


def test_everything_is_pinned():
    (base,) = arguments("FROM")
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d+\.\d+", base)
    args = dict(argument.split("=", 1) for argument in arguments("ARG"))
    assert re.fullmatch(r"v\d+\.\d+\.\d+", args["COMFYUI_VERSION"])
    assert all("==" in word for word in args["TORCH"].strip('"').split())
    installs = [part for run in arguments("RUN") for part in run.split("&&") if "pip install" in part]
    assert len(installs) == 3
    assert all("--constraint /tmp/constraints.txt" in install for install in installs)


def test_constraints_name_every_package_once_with_a_version():
    lines = (DOCKER / "constraints.txt").read_text(encoding="utf-8").split("\n")[:-1]
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) > 40 and all(re.fullmatch(r"[A-Za-z0-9._-]+==[^\s;]+", pin) for pin in pins)
    names = [pin.split("==")[0].lower().replace("_", "-") for pin in pins]
    assert len(set(names)) == len(names)
    assert not {"torch", "torchvision", "torchaudio", "triton"} & set(names), "what the build argument TORCH chooses"
    wanted = {"aiohttp", "transformers", "numpy", "pillow", "av", "comfyui-frontend-package", "ftfy", "requests"}
    assert wanted <= set(names)


def test_the_server_is_not_root_and_says_how_it_is():
    kinds = [line.instruction for line in LINES]
    assert arguments("USER") == ["comfy"] and kinds.index("USER") < kinds.index("ENTRYPOINT")
    (health,) = arguments("HEALTHCHECK")
    assert "http://127.0.0.1:8188/queue" in json.loads(health.partition("CMD ")[2])[-1]
    assert json.loads(arguments("ENTRYPOINT")[0])[:2] == ["python", "main.py"]


def test_what_cannot_be_run_without_docker_says_so():
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    for instruction in ("FROM", "EXPOSE"):
        before = text.split(f"\n{instruction} ")[0].splitlines()[-1]
        assert before.startswith("# Not run")
    ran = {"ARG", "RUN", "ENV", "USER", "WORKDIR", "COPY", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert {line.instruction for line in LINES} == ran | {"FROM", "EXPOSE", "VOLUME"}


def test_compose_has_a_server_a_card_on_this_computer_only():
    assert len(SERVICES) == 2
    ports = [service["ports"][0] for service in SERVICES.values()]
    assert len(set(ports)) == 2 and all(re.fullmatch(r"127\.0\.0\.1:\d+:8188", port) for port in ports)
    devices = [service["deploy"]["resources"]["reservations"]["devices"][0] for service in SERVICES.values()]
    assert [device["device_ids"] for device in devices] == [["0"], ["1"]]
    assert all(device["driver"] == "nvidia" and device["capabilities"] == ["gpu"] for device in devices)


def test_compose_builds_this_dockerfile_and_keeps_its_volumes():
    (volumes,) = arguments("VOLUME")
    for service in SERVICES.values():
        assert (DOCKER / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert {volume.rpartition(":")[2] for volume in service["volumes"]} == set(json.loads(volumes))


def test_the_registrys_archive_has_no_docker_recipe():
    assert "docker/" in (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
