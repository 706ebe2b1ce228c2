"""The prompt enhancer: what a language model is told, who may be asked, and every way in which no answer comes."""

import base64
import gc
import hashlib
import io
import json
import logging
import socket
import threading
import time
from pathlib import Path

import pytest
import torch
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.prompting import Question, Server, addresses, client, enhance, make_data_url
from lightx2v_pack.engine.prompting.addresses import check_addresses, is_local, read_url
from lightx2v_pack.engine.prompting.answers import NoAnswerError, choose_model, read_answer
from lightx2v_pack.engine.prompting.composing import build_request, compose_text, find_instructions
from PIL import Image
from support import llm_server
from support.cancel import Cancelled
from support.llm_server import ENHANCED, LlmServer

TEXT = "a red fox in the snow"
# Seconds that a busy machine may take beyond a time-out.
LATE = 1.5
CHINESE = "\u96ea\u5730\u91cc\u7684\u72d0\u72f8"
PROMPTS = Path(client.__file__).with_name("wan_prompts.json")
# Of wan/utils/system_prompt.py in https://github.com/Wan-Video/Wan2.2, commit 42bf4cf: the strings' values.
WAN_SHA256 = {
    ("t2v", "en"): "9cc4646b4c6d2ce4c33c139a5050acceb99dc47729f0d23cc79a2e3ea910dd28",
    ("t2v", "zh"): "b5d0d0ba3dcaec1d01e9b8787cf4930e0eecdf0ee8499523dd3d340eb5636a9a",
    ("i2v", "en"): "8b41399d615c5cf2c293ef38365b900a30834589a45d6318bd6242a51cb9dd76",
    ("i2v", "zh"): "e0e7fcc0f5a453dab8e204c828362b3762c8dc282224862dea6ec4bdbfaf394e",
    ("i2v_without_text", "en"): "9e7a9b31337e31cb672891130898c0545656b86cfc14dd9e9327f7ded7785e65",
    ("i2v_without_text", "zh"): "a66b264ed1d5633500448d1a0ea8c2ae856233b677341771148905dd92f20713",
}


def ask(server, text=TEXT, *, seconds=10.0, hooks=None, environment=None, **question):
    """Enhance a prompt on a server, which may be a URL."""
    url = server if isinstance(server, str) else server.url
    return enhance(
        Question(text=text, **question),
        Server(url=url, model="tiny-instruct", seed=7, seconds=seconds),
        hooks=hooks or Hooks(),
        environment=environment or {},
    )


def body_of(**message):
    return json.dumps({"choices": [{"message": message}]}).encode()


# What is asked.


def test_wans_instructions_are_verbatim_and_name_their_source():
    data = json.loads(PROMPTS.read_text(encoding="utf-8"))
    hashes = {
        (task, language): hashlib.sha256(text.encode()).hexdigest()
        for task, texts in data["prompts"].items()
        for language, text in texts.items()
    }
    assert hashes == WAN_SHA256
    assert "Alibaba Wan Team" in data["notice"] and "Apache License, Version 2.0" in data["notice"]
    assert "Wan-Video/Wan2.2" in data["source"]


def wan(task, language):
    return json.loads(PROMPTS.read_text(encoding="utf-8"))["prompts"][task][language]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ({"text": TEXT}, ("t2v", "en")),
        ({"text": CHINESE}, ("t2v", "zh")),
        ({"text": CHINESE, "language": "en"}, ("t2v", "en")),
        ({"text": TEXT, "language": "zh"}, ("t2v", "zh")),
        ({"text": TEXT, "task": "i2v"}, ("i2v", "en")),
        ({"text": CHINESE, "task": "i2v"}, ("i2v", "zh")),
        ({"text": " ", "task": "i2v", "picture": "data:x"}, ("i2v_without_text", "en")),
        ({"text": "", "task": "i2v", "language": "zh", "picture": "data:x"}, ("i2v_without_text", "zh")),
    ],
)
def test_instructions_follow_task_language_and_text(question, expected):
    assert find_instructions(Question(**question)) == wan(*expected)


def test_own_instructions_replace_wans():
    question = Question(text=TEXT, instructions="Write a haiku.")
    assert find_instructions(question) == "Write a haiku."
    assert find_instructions(Question(text=TEXT, instructions=" \n")) == wan("t2v", "en")


@pytest.mark.parametrize("wrong", [{"task": "v2v"}, {"language": "fr"}])
def test_unknown_choices_are_refused(wrong):
    with pytest.raises(ValueError, match="expected one of"):
        Question(text=TEXT, **wrong)


def test_the_request_has_both_texts_model_and_seed():
    request = build_request(Question(text=TEXT), model="m", seed=5)
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert [message["content"] for message in request["messages"]] == [wan("t2v", "en"), TEXT]
    assert (request["model"], request["seed"], request["stream"]) == ("m", 5, False)


def test_a_picture_goes_along_for_i2v_only():
    user = build_request(Question(text=TEXT, task="i2v", picture="data:x"), model="m", seed=0)["messages"][1]
    assert user["content"] == [
        {"type": "image_url", "image_url": {"url": "data:x"}},
        {"type": "text", "text": TEXT},
    ]
    user = build_request(Question(text=TEXT, task="t2v", picture="data:x"), model="m", seed=0)["messages"][1]
    assert user["content"] == TEXT


def test_pictures_are_small_jpegs_with_their_shape():
    image = torch.zeros(2, 480, 832, 3)
    image[0, :, :, 0] = 1.5
    head, _, data = make_data_url(image).partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert picture.format == "JPEG" and picture.width * picture.height <= 512 * 512 * 1.01
        assert abs(picture.width / picture.height - 832 / 480) < 0.01
        assert all(abs(found - wanted) < 8 for found, wanted in zip(picture.getpixel((9, 9)), (255, 0, 0), strict=True))


# Whom it may be asked of.


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:11434", "http://127.0.0.1:11434/v1"),
        ("http://127.0.0.1:11434/", "http://127.0.0.1:11434/v1"),
        ("127.0.0.1:11434", "http://127.0.0.1:11434/v1"),
        ("localhost", "http://localhost:80/v1"),
        (" http://Box.Local:8080/v1/ ", "http://box.local:8080/v1"),
        ("https://box.local/v1/chat/completions", "https://box.local:443/v1"),
        ("http://10.0.0.2:5000/api/v3", "http://10.0.0.2:5000/api/v3"),
        ("http://[::1]:8080", "http://[::1]:8080/v1"),
    ],
)
def test_urls_are_understood(url, expected):
    endpoint = read_url(url, {})
    assert f"{endpoint}{endpoint.path}" == expected and not endpoint.is_named


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://", "not the plain address"),
        ("ftp://127.0.0.1", "starts with 'ftp'"),
        ("file:///etc/passwd", "starts with 'file'"),
        ("http://user:secret@127.0.0.1:11434", "a user name or a key"),
        ("http://127.0.0.1@198.51.100.7", "a user name or a key"),
        ("http://127.0.0.1:11434?x=http://a", "not the plain address"),
        ("http://127.0.0.1#@198.51.100.7", "not the plain address"),
        ("http://127.0.0.1\\@198.51.100.7", "characters that no address has"),
        ("http://127.0.0.1 198.51.100.7", "characters that no address has"),
        ("http://127.0.0.1/\r\nHost: x", "characters that no address has"),
        ("http://127.0.0.1/a\tb", "characters that no address has"),
        ("http://127.0.0.1/v1/../../admin", "not the plain address"),
        ("http://127.0.0.1/%2e%2e/admin", "not the plain address"),
        ("http://b\u00fccher.example", "characters that no address has"),
        ("http://127.0.0.1:99999", "not one"),
        ("http://127.0.0.1:0", "not the plain address"),
        ("http://127.0.0.1:x", "not one"),
        ("http://[::1", "not one"),
        ("http://0.0.0.0:11434", "not where it is"),
        ("http://[::]:11434", "not where it is"),
    ],
)
def test_tricky_urls_are_refused_and_the_prompt_is_kept(url, sentence):
    with pytest.raises(NoAnswerError, match=sentence):
        read_url(url, {})
    found = ask(url)
    assert found.text == TEXT and sentence in found.warning and "secret" not in found.warning


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("10.255.0.1", True),
        ("172.16.0.1", True),
        ("172.31.255.255", True),
        ("192.168.178.20", True),
        ("fd12:3456::1", True),
        ("fe80::1%eth0", True),
        ("::ffff:192.168.0.7", True),
        ("::ffff:127.0.0.1", True),
        ("8.8.8.8", False),
        ("172.32.0.1", False),
        ("172.15.0.1", False),
        ("192.169.0.1", False),
        ("0.0.0.0", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("::ffff:169.254.169.254", False),
        ("::ffff:8.8.8.8", False),
        ("::127.0.0.1", False),
        ("::", False),
        ("2606:4700::1111", False),
        ("2002:7f00:1::", False),
        ("2002:c0a8:1::1", False),
        ("64:ff9b::7f00:1", False),
        ("2001:0:7f00:1::", False),
        ("ff02::1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("fec0::1", False),
    ],
)
def test_local_addresses(address, expected):
    assert is_local(address) is expected


def test_a_name_is_asked_at_its_local_addresses_only():
    endpoint = read_url("http://box.example:8080", {})
    assert check_addresses(endpoint, ["198.51.100.7", "192.168.0.7"]) == ["192.168.0.7"]
    with pytest.raises(NoAnswerError, match=r"198\.51\.100\.7, which is not of this computer .* LIGHTX2V_LLM_HOSTS"):
        check_addresses(endpoint, ["198.51.100.7"])
    with pytest.raises(NoAnswerError):
        check_addresses(endpoint, [])


def test_the_environment_names_further_hosts_exactly():
    environment = {"LIGHTX2V_LLM_HOSTS": " Box.example, 198.51.100.8,,[2001:db8::1]"}
    for url in ("http://box.example", "https://BOX.EXAMPLE:99/v1", "http://198.51.100.8", "http://[2001:db8::1]:8080"):
        endpoint = read_url(url, environment)
        assert endpoint.is_named and check_addresses(endpoint, ["198.51.100.7"]) == ["198.51.100.7"]
    for url in ("http://evil.box.example", "http://box.example.evil", "http://198.51.100.80", "http://ox.example"):
        assert not read_url(url, environment).is_named


@pytest.fixture
def names(monkeypatch):
    """Give host names addresses of the test's own: names["box"] = ["192.168.0.7"]."""
    known = {}
    original = socket.getaddrinfo

    def resolve(host, port, *arguments, **options):
        if host not in known:
            return original(host, port, *arguments, **options)
        return [found for address in known[host] for found in original(address, port, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


@pytest.fixture
def connections(monkeypatch):
    """Every address that a socket connects to."""
    seen = []

    class Watched(socket.socket):
        def connect(self, address):
            seen.append(address[0])
            return super().connect(address)

    monkeypatch.setattr(client.socket, "socket", Watched)
    return seen


@pytest.mark.parametrize(
    "address", ["198.51.100.7", "169.254.169.254", "::ffff:198.51.100.7", "2002:7f00:1::", "0.0.0.0"]
)
def test_nothing_is_sent_to_a_name_with_a_public_address(names, connections, address):
    names["model.box"] = [address]
    found = ask("http://model.box:11434")
    assert found.text == TEXT and "not of this computer or its local network" in found.warning
    assert connections == []


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "localhost", "LOCALHOST"])
def test_other_spellings_are_judged_by_where_they_lead(connections, host):
    with LlmServer() as server:
        assert ask(f"http://{host}:{server.port}").text == ENHANCED
    assert set(connections) <= {"127.0.0.1", "::1"}


def test_a_name_is_looked_up_once_a_request_and_asked_where_it_was_checked(monkeypatch, connections):
    """A name server that answers with another address every time wins nothing."""
    answers = iter([["127.0.0.1"], ["198.51.100.7"]])
    original = socket.getaddrinfo

    def rebind(host, port, *arguments, **options):
        if host != "rebinding.box":
            return original(host, port, *arguments, **options)
        (address,) = next(answers)
        return original(address, port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebind)
    with LlmServer() as server:
        found = ask(f"http://rebinding.box:{server.port}/api")
        assert found.text == TEXT or server.asked
    assert set(connections) <= {"127.0.0.1"}


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    with LlmServer(llm_server.saying("from the proxy")) as proxy, LlmServer() as server:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        assert ask(server).text == ENHANCED
        assert proxy.requests == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status):
    with LlmServer() as other:
        answer = llm_server.with_body(b"", status, Location=f"{other.url}/v1/chat/completions")
        with LlmServer(answer) as server:
            found = ask(server)
        assert found.text == TEXT and f"redirect (status {status})" in found.warning
        assert other.requests == []


def authorization_of(server):
    return {headers.get("Authorization") for *_, headers in server.requests}


def test_the_key_goes_to_this_computer(names):
    key = {"LIGHTX2V_LLM_API_KEY": " sk-secret "}
    with LlmServer() as server:
        ask(server, environment=key)
        assert authorization_of(server) == {"Bearer sk-secret"}
        server.requests.clear()
        ask(server)
        assert authorization_of(server) == {None}


def test_the_key_goes_to_no_other_computer_unless_it_is_named(names, monkeypatch):
    """The address stands for another computer: what the socket says of its peer is changed, nothing else."""
    monkeypatch.setattr(client, "is_loopback", lambda address: False)
    key = {"LIGHTX2V_LLM_API_KEY": "sk-secret"}
    names["box.local"] = ["127.0.0.1"]
    with LlmServer() as server:
        assert ask(f"http://box.local:{server.port}", environment=key).text == ENHANCED
        assert authorization_of(server) == {None}
        server.requests.clear()
        named = key | {"LIGHTX2V_LLM_HOSTS": "box.local"}
        assert ask(f"http://box.local:{server.port}", environment=named).text == ENHANCED
        assert authorization_of(server) == {"Bearer sk-secret"}


def test_loopback_is_told_from_the_network():
    assert [addresses.is_loopback(each) for each in ("127.0.0.1", "::1", "::ffff:127.0.0.2")] == [True] * 3
    assert not any(addresses.is_loopback(each) for each in ("192.168.0.1", "::ffff:10.0.0.1", "fe80::1%lo"))


@pytest.mark.parametrize("key", ["line\nbreak", "gr\u00fcn", "\x00"])
def test_a_key_that_is_none_is_not_sent(key):
    with LlmServer() as server:
        found = ask(server, environment={"LIGHTX2V_LLM_API_KEY": f"a{key}b"})
        assert found.text == TEXT and "characters that no key has" in found.warning
        assert server.requests == []


# What comes back.


def test_a_good_answer_is_taken():
    with LlmServer() as server:
        found = ask(server)
        assert (found.text, found.warning) == (ENHANCED, "")
        assert [request["seed"] for request in server.asked] == [7]
        assert server.paths == ["GET /api/version", "POST /v1/chat/completions"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (f"  {ENHANCED}\n", ENHANCED),
        (f"<think>\nThe user wants a fox.\n</think>\n\n{ENHANCED}", ENHANCED),
        (f"The user wants a fox.</think>{ENHANCED}", ENHANCED),
        (f"<think></think><thinking>more</thinking>{ENHANCED}", ENHANCED),
        (f"<|channel|>analysis<|message|>A fox<|end|><|channel|>final<|message|>{ENHANCED}", ENHANCED),
        (f'"{ENHANCED}"', ENHANCED),
        (f"\u201c{ENHANCED}\u201d", ENHANCED),
        ('"Run", says the fox "now"', '"Run", says the fox "now"'),
        (f"```text\n{ENHANCED}\n```", ENHANCED),
        (f"{ENHANCED}\x00\x1b[31m\u0085", f"{ENHANCED}[31m"),
        ("fox \ud83e\udd8a and half \ud83e", "fox \U0001f98a and half ?"),
        (CHINESE, CHINESE),
    ],
)
def test_what_surrounds_an_answer_is_removed(content, expected):
    text = read_answer(200, body_of(content=content))
    assert text == expected
    text.encode("utf-8")


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (llm_server.saying(""), "answered with an empty text"),
        (llm_server.saying(" \n\t "), "answered with an empty text"),
        (llm_server.saying(None), "answered with an empty text"),
        (llm_server.saying('""'), "answered with an empty text"),
        (llm_server.saying("<think>only thoughts</think>  "), "answered with an empty text"),
        (llm_server.saying("<think>I wonder, and wonder"), "in the middle of its thoughts"),
        (llm_server.saying("A fox tro", finish_reason="length"), "was cut off"),
        (llm_server.saying("x" * 9000), "has 9000 characters; expected a prompt of at most 8000"),
        (llm_server.saying(["A fox"]), "is no text but a list"),
        (llm_server.saying({"a": 1}), "is no text but a dict"),
        (llm_server.with_body({"choices": []}), "is no chat completion"),
        (llm_server.with_body({"choices": [{"text": "A fox"}]}), "is no chat completion"),
        (llm_server.with_body({"choices": "A fox"}), "is no chat completion"),
        (llm_server.with_body({"choices": [["message"]]}), "is no chat completion"),
        (llm_server.with_body({}), "is no chat completion"),
        (llm_server.with_body(["A fox"]), "not a JSON object"),
        (llm_server.with_body(b"<html>Router login</html>"), "not a JSON object"),
        (llm_server.with_body(b'{"choices": ['), "not a JSON object"),
        (llm_server.with_body(b""), "not a JSON object"),
        (llm_server.with_body(b"[" * 200_000), "not a JSON object"),
        (llm_server.with_body(b'{"a":' * 200_000), "not a JSON object"),
        (llm_server.with_body(b'{"a": ' + b"9" * 100_000 + b"}"), "not a JSON object"),
        (llm_server.with_body(body_of(content=ENHANCED).decode().encode("utf-16")), "not a JSON object in UTF-8"),
        (
            llm_server.with_body(
                f'{{"choices": [{{"message": {{"content": "{CHINESE}"}}}}]}}'.encode("gbk"),
                **{"Content-Type": "application/json; charset=gbk"},
            ),
            "not a JSON object in UTF-8",
        ),
        (llm_server.with_body({"error": {"message": "model 'tiny' not found"}}, 404), "status 404: model 'tiny' not"),
        (llm_server.with_body({"error": "out of\n memory"}, 500), "status 500: out of memory"),
        (llm_server.with_body({"error": "Unexpected endpoint"}), "answered with an error: Unexpected endpoint"),
        (llm_server.with_body(b"secret of another service", 403), "answered with status 403."),
        (llm_server.with_body({"secret": "of another service"}, 401), "answered with status 401."),
        (llm_server.with_body({"error": {"message": "x" * 5000}}, 400), "x" * 200 + "..."),
        (llm_server.with_body(b"", 204), "status 204"),
        (llm_server.hanging_up, "broke off"),
        (llm_server.raw(b""), "broke off"),
        (llm_server.raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "does not answer as a web server does"),
        (llm_server.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}"), ""),
        (llm_server.raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n{}"), "does not answer as a web server"),
        (llm_server.raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n{}"), "does not answer as a web server"),
        (llm_server.with_body(b"\x1f\x8b\x08\x00abc", **{"Content-Encoding": "gzip"}), "not a JSON object"),
        (llm_server.endless, "longer than 4 MiB"),
    ],
)
def test_a_bad_answer_leaves_the_users_text_and_says_why(answer, sentence, caplog):
    with LlmServer(answer) as server:
        found = ask(server)
    assert found.text == TEXT
    assert (
        found.warning.startswith("The prompt was not enhanced, your own text is used: ") and sentence in found.warning
    )
    assert len(found.warning) < 500 and "of another service" not in found.warning
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [f"LightX2V: {found.warning}"]


def test_the_users_text_is_kept_to_the_letter():
    with LlmServer(llm_server.saying("")) as server:
        for text in ("  a fox\n\n in (snow:1.2) ", "\ud83e half", CHINESE):
            assert ask(server, text).text == text


@pytest.fixture
def without_garbage_collection():
    """A connection is closed because somebody closes it."""
    gc.disable()
    yield
    gc.enable()


ENDLESS = pytest.mark.parametrize(
    "answer",
    [
        llm_server.never,
        llm_server.dripping(b"", b"H"),
        llm_server.dripping(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", pause=0.2),
        llm_server.dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        llm_server.dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n", b" "),
        llm_server.dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        llm_server.dripping(b"HTTP/1.1 200 OK\r\n\r\n", b" "),
    ],
    ids=["silent", "status line", "headers", "continue", "length", "chunks", "until close"],
)


@ENDLESS
def test_the_time_out_is_kept_by_a_server_that_never_ends(answer, without_garbage_collection):
    with LlmServer(answer) as server:
        start = time.monotonic()
        found = ask(server, seconds=1.0)
        took = time.monotonic() - start
        assert found.text == TEXT and "had not answered after 1 s" in found.warning
        assert took < 1 + LATE
        assert server.broken.wait(60), "the server was not told that nobody waits any more"
        wait_for_threads()


@ENDLESS
def test_a_request_that_was_aborted_says_so(answer):
    """Not that the server broke off, and half a body is no answer."""
    with LlmServer(answer) as server, client.Client(read_url(server.url, {}), seconds=60) as asking:
        threading.Timer(0.3, asking.abort).start()
        with pytest.raises(NoAnswerError, match="was aborted"):
            asking.post("/v1/chat/completions", {})


def test_a_client_keeps_its_time_by_itself():
    """As for the request that frees the memory, which nobody watches."""
    with LlmServer(llm_server.dripping(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", pause=0.1)) as server:
        endpoint = read_url(server.url, {})
        start = time.monotonic()
        with (
            client.Client(endpoint, seconds=0.5) as asking,
            pytest.raises(NoAnswerError, match=r"not answered after 0\.5"),
        ):
            asking.post("/v1/chat/completions", {})
        assert time.monotonic() - start < LATE


def wait_for_threads():
    """No thread of a request stays behind."""
    deadline = time.monotonic() + 60
    while any(thread.name.startswith("lightx2v-enhance") for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread is still asking"
        time.sleep(0.02)


def test_a_slow_answer_in_time_is_taken_and_the_wait_is_shown():
    shown = []
    with LlmServer(llm_server.after(1.3)) as server:
        found = ask(server, hooks=Hooks(on_progress=lambda *what: shown.append(what)))
    assert found.text == ENHANCED
    assert shown == [(1, 10, "waiting for the language model, second")]


def test_nobody_there():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = ask(f"http://127.0.0.1:{port}")
    assert (
        found.text == TEXT
        and "cannot be reached" in found.warning
        and "check that the server is running" in found.warning
    )


def test_a_server_that_accepts_nothing(names):
    """A full backlog: the connection is never made."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        start = time.monotonic()
        found = ask(f"http://127.0.0.1:{port}", seconds=1.0)
        assert time.monotonic() - start < 1 + LATE and found.text == TEXT and found.warning
        for filler in fillers:
            filler.close()


def test_an_unknown_name():
    found = ask("http://no-such-box.invalid:11434")
    assert found.text == TEXT and "no-such-box.invalid is not known" in found.warning


def test_a_resolver_that_hangs_keeps_nobody(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(20) and [])
    start = time.monotonic()
    found = ask("http://model.box", seconds=0.5)
    assert time.monotonic() - start < 0.5 + LATE
    assert found.text == TEXT and "had not answered after 0.5 s" in found.warning
    release.set()


def test_a_plain_server_behind_https():
    with LlmServer() as server:
        found = ask(server.url.replace("http:", "https:"))
    assert found.text == TEXT and "cannot be reached" in found.warning


@pytest.mark.parametrize("answer", [llm_server.never, llm_server.dripping(b"HTTP/1.1 200 OK\r\n\r\n", b" ")])
def test_cancel_gets_through_at_once_and_ends_the_servers_work(answer, without_garbage_collection):
    start = time.monotonic()

    def check_interrupt():
        if time.monotonic() - start > 0.4:
            raise Cancelled

    with LlmServer(answer) as server:
        with pytest.raises(Cancelled):
            ask(server, seconds=60, hooks=Hooks(check_interrupt=check_interrupt))
        assert time.monotonic() - start < 0.4 + LATE
        assert server.broken.wait(10)
    wait_for_threads()


# Models and their memory.


def test_the_first_model_that_can_talk_is_taken_where_none_is_named():
    with LlmServer() as server:
        found = enhance(Question(text=TEXT), Server(url=server.url), hooks=Hooks(), environment={})
        assert found.text == ENHANCED and server.asked[0]["model"] == "tiny-instruct"


@pytest.mark.parametrize(
    "listing", [{}, {"data": []}, {"data": [{"id": "nomic-embed-text"}, {"name": 3}, 5]}, {"data": 7}]
)
def test_no_model_is_said(listing):
    with pytest.raises(NoAnswerError, match="lists no language model"):
        choose_model(listing)


UNLOAD = ("POST", "/api/generate", {"model": "tiny-instruct", "keep_alive": 0})


def unloads(server):
    return [(method, path, body) for method, path, body, _ in server.requests if path == "/api/generate"]


def test_ollama_frees_the_models_memory_before_the_answer_is_used():
    with LlmServer(is_ollama=True) as server:
        assert ask(server).text == ENHANCED
        assert unloads(server) == [UNLOAD]


def test_other_servers_get_no_requests_they_do_not_know():
    with LlmServer(is_ollama=True) as server:
        ask(f"{server.url}/proxied/v1")
        ask(server, environment={"LIGHTX2V_LLM_HOSTS": "127.0.0.1"})
        assert server.paths == ["POST /proxied/v1/chat/completions", "POST /v1/chat/completions"]


@pytest.mark.parametrize("answer", [llm_server.never, llm_server.saying(""), llm_server.hanging_up])
def test_ollama_frees_the_memory_after_a_failure_too(answer):
    with LlmServer(answer, is_ollama=True) as server:
        assert ask(server, seconds=1.0).text == TEXT
        deadline = time.monotonic() + 10
        while not unloads(server) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert unloads(server) == [UNLOAD]


def test_an_answer_counts_though_the_memory_is_not_freed(monkeypatch):
    """The unload hangs: the answer is there and is used when the time is up."""
    original = client.Client.post

    def post(self, path, data):
        if path == "/api/generate":
            time.sleep(5)
        return original(self, path, data)

    monkeypatch.setattr(client.Client, "post", post)
    with LlmServer(is_ollama=True) as server:
        start = time.monotonic()
        found = ask(server, seconds=1.0)
        assert (found.text, found.warning) == (ENHANCED, "") and time.monotonic() - start < 1 + LATE


# Nothing to ask.


@pytest.mark.parametrize("question", [{"text": ""}, {"text": " \n"}, {"text": "", "task": "i2v"}])
def test_without_words_nobody_is_asked(question):
    with LlmServer() as server:
        found = ask(server, **question)
        assert (found.text, found.warning) == (question["text"], "") and server.requests == []


def test_an_empty_url_gives_instructions_and_text(connections):
    found = ask("  ")
    assert found.text == f"{wan('t2v', 'en')}\n\nPrompt:\n{TEXT}" == compose_text(Question(text=TEXT))
    assert found.warning == "" and connections == []
