"""tools/run_workflow.py --server against servers as they are: odd events, logins, proxies, full disks here."""

import base64
import json
import struct
import time

import pytest
from lightx2v_pack.tools.headless import server
from lightx2v_pack.tools.headless.errors import WorkflowError
from support import examples, fake_comfy


@pytest.fixture
def comfy():
    with fake_comfy.running() as fake:
        yield fake


@pytest.fixture
def run(comfy, tmp_path, capsys):
    """run(*arguments, url=...) -> (examples.Run, report)"""
    workflow, report = tmp_path / "api.json", tmp_path / "report.json"
    workflow.write_text(json.dumps(fake_comfy.PROMPT), encoding="utf-8")

    def call(*arguments, url=comfy.url):
        where = ("--server", url, "--output-dir", tmp_path / "output", "--report", report, "--quiet")
        done = examples.run_command(capsys, workflow, *where, *arguments)
        return done, report.read_text(encoding="utf-8") if report.exists() else ""

    return call


def own(kind, data):
    """An event of this job."""
    return lambda prompt_id: {"type": kind, "data": {"prompt_id": prompt_id, **data}}


@pytest.mark.parametrize(
    "event",
    [
        lambda _: {"type": "crystools.monitor", "data": [1, 2]},
        lambda _: {"type": "status", "data": "busy"},
        lambda _: {"type": "status", "data": 5},
        lambda _: {"data": {}},
        lambda _: [],
        lambda _: None,
        "not JSON",
        "[" * 100_000,
        b"",
        b"\x00\x00",
        struct.pack(">II", 3, 2**31) + b"x",
        own("progress", {"value": None, "max": 4}),
        own("progress", {}),
        own("progress", {"value": 1.0, "max": 4.0}),
        own("executed", {"node": "2", "output": [1]}),
        own("executed", {"node": "2", "output": {"text": 5}}),
        own("executed", {"node": "2", "output": {"text": [None, {"a": 1}]}}),
        own("executed", {}),
        own("something new", {"node": ["1"]}),
    ],
)
def test_events_of_any_shape_do_not_end_the_client(comfy, run, tmp_path, event):
    comfy.events = [event]
    done, _ = run()
    assert (done.code, done.stderr) == (0, "")
    assert done.results == [tmp_path / "output" / "a.png"]


def test_a_node_that_begins_twice_is_one_node_of_the_report(comfy, run):
    """As one with lazy inputs does."""
    comfy.events = [own("executing", {"node": "2"})]
    _, report = run()
    assert sorted(node["node_id"] for node in json.loads(report)["nodes"]) == ["1", "2"]


@pytest.mark.parametrize(
    "outputs",
    [
        {"1": None, "2": {"images": [{"filename": "a.png", "subfolder": None, "type": "output"}], "animated": [True]}},
        {
            "1": {"text": "a text", "n": 5},
            "2": {"images": [None, 5, {"type": "output"}, {"filename": "a.png", "type": "output"}]},
        },
        {"1": [], "2": {"images": ({"filename": "a.png", "subfolder": "", "type": "output"},), "more": {"a": 1}}},
    ],
)
def test_results_of_any_shape(comfy, run, tmp_path, outputs):
    comfy.outputs = outputs
    assert run()[0].results == [tmp_path / "output" / "a.png"]


@pytest.mark.parametrize("event", [{}, {"node_id": "2"}, {"node_id": "2", "exception_message": None}])
def test_an_error_of_any_shape_is_an_error(comfy, run, event):
    comfy.events = [own("execution_error", event)]
    done, _ = run()
    assert done.code == 3 and "failed with None" in done.stderr


LOGIN = "<!DOCTYPE html><html><body>Sign in</body></html>"


@pytest.mark.parametrize("path", ["/object_info", "/ws", "/prompt"])
@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_wants_a_login_says_so(comfy, run, path, status):
    comfy.statuses[path] = (status, "no", "text/plain")
    done, _ = run()
    assert (done.code, done.stdout) == (4, "")
    assert done.stderr.startswith(f"run_workflow: Give the login that {comfy.url} asks for (status {status}): --token")


@pytest.mark.parametrize("status", [200, 404, 502])
@pytest.mark.parametrize("body", [LOGIN, f"\n{LOGIN.upper()}"])
def test_a_web_page_is_called_one(comfy, run, status, body):
    comfy.statuses["/object_info"] = (status, body, "text/html")
    done, _ = run()
    assert done.code == 4
    assert f"Open {comfy.url} in a browser: a web page answered (status {status}), not ComfyUI." in done.stderr
    assert "--header" in done.stderr


@pytest.mark.parametrize("body", ["[]", "5", "null", "hello", ""])
def test_another_server_is_no_comfyui(comfy, run, body):
    comfy.statuses["/object_info"] = (200, body, "application/json")
    done, _ = run()
    assert done.code == 4 and f"Check the address {comfy.url}" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (("--token", "s3cret"), "Authorization", "Bearer s3cret"),
        (("--header", "X-Api-Key: s3cret"), "X-Api-Key", "s3cret"),
        (("--header", "Cookie: a=s3cret; b=1", "--header", "X-A: 1"), "Cookie", "a=s3cret; b=1"),
    ],
)
def test_headers_go_with_every_request_and_into_no_report(comfy, run, arguments, name, value):
    done, report = run(*arguments)
    assert done.code == 0
    assert {path for path, _ in comfy.requests} >= {"/object_info", "/ws", "/prompt", "/view"}
    assert all(headers.get(name) == value for _, headers in comfy.requests)
    assert "s3cret" not in done.stderr + done.stdout + report


@pytest.mark.parametrize("password", ["s3cret", "s3@cret", "s3%2Fcret", "s3:cret"])
@pytest.mark.parametrize("status", [None, 401, 500])
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_password_in_the_address_is_sent_and_never_shown(comfy, run, password, status, scheme):
    if status:
        comfy.statuses["/object_info"] = (status, "no", "text/plain")
    address = comfy.url.removeprefix("http://")
    done, report = run(url=f"{scheme}me:{password}@{address}")
    sent = base64.b64decode(comfy.requests[0][1]["Authorization"].removeprefix("Basic ")).decode()
    assert sent == f"me:{password.replace('%2F', '/')}"
    assert done.code == (4 if status else 0)
    assert "cret" not in done.stderr + done.stdout + report and address in report


@pytest.mark.parametrize(
    "address", ["ftp://me:s3cret@host", "http://", "http://[", "http://h:port", "http://h/?token=s3cret"]
)
def test_an_address_that_is_none_is_refused_without_repeating_it(run, address):
    done, report = run(url=address)
    assert done.code == 2 and done.stderr.startswith("run_workflow: Give --server an address such as")
    assert "s3cret" not in done.stderr + report


@pytest.mark.parametrize("header", ["no colon s3cret", ": s3cret", "A: s3cret\nB: 1", "Ä: s3cret"])
def test_a_header_that_is_none_is_refused_without_repeating_it(run, header):
    done, _ = run("--header", header)
    assert done.code == 2 and "Give --header" in done.stderr and "s3cret" not in done.stderr


def test_addresses():
    assert server.read_address("host:8188/") == ("http://host:8188", {})
    assert server.read_address("https://[::1]:8188/comfy/") == ("https://[::1]:8188/comfy", {})
    with pytest.raises(WorkflowError):
        server.read_address("")


@pytest.mark.parametrize("kind", ["a file", "below a file"])
def test_a_folder_that_cannot_be_written_is_refused_before_a_job_is_queued(comfy, run, tmp_path, kind):
    file = tmp_path / ("output" if kind == "a file" else "other")
    file.write_bytes(b"")
    done, report = run(*(("--output-dir", file / "x") if kind == "below a file" else ()))
    assert (done.code, done.stdout) == (2, "")
    assert f"Choose another place for --output-dir: {file} is a file, where a folder has to be." in done.stderr
    assert json.loads(report)["status"] == "failed"


def test_a_folder_of_a_results_name_leaves_it_another(comfy, run, tmp_path):
    (tmp_path / "output" / "a.png").mkdir(parents=True)
    done, _ = run()
    assert (done.code, done.stdout) == (0, f"{tmp_path / 'output' / 'a (1).png'}\n"), done.stderr


@pytest.mark.parametrize("path", ["/object_info", "/ws", "/prompt", "/view"])
@pytest.mark.parametrize("limit", ["--timeout", "its own"])
def test_a_server_that_never_answers_is_left(comfy, run, monkeypatch, path, limit):
    """It takes the connection; from one request on it says nothing, to what cancels the job neither."""
    comfy.silent = {path, "/queue", "/interrupt"}
    monkeypatch.setattr(server, "_CANCEL_SECONDS", 0.2)
    monkeypatch.setattr(server, "_ANSWER_SECONDS", 0.5 if limit == "its own" else 60.0)
    begun = time.monotonic()
    done, _ = run(*(("--timeout", "0.5") if limit == "--timeout" else ()))
    assert (done.code, done.stdout) == (4, "")
    assert f"the ComfyUI at {comfy.url}, or check address and port: it takes connections and has not" in done.stderr
    assert time.monotonic() - begun < 10


def test_a_job_may_be_silent_for_longer_than_a_request(comfy, run, monkeypatch):
    monkeypatch.setattr(server, "_ANSWER_SECONDS", 0.3)
    comfy.seconds = 1.0
    assert run()[0].code == 0
