"""What is sent to the pack's routes: a request that is not understood gets status 400 and a sentence."""

import asyncio
import gzip
from types import SimpleNamespace

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer


@pytest.fixture
def ask(host, monkeypatch):
    """ask(body, **headers) -> (status, JSON) of a POST to a route that takes `variant`."""
    import server
    from lightx2v_pack.engine.adapters.comfy import routes

    table = web.RouteTableDef()
    monkeypatch.setattr(server.PromptServer, "instance", SimpleNamespace(routes=table))
    route = routes.Route(name="take", method="POST", fields={"variant": routes.choice("fp8", "é")}, answer=dict)
    named = routes.Route(name="name", fields={"name": routes.plain_name}, answer=dict)
    routes.register(route, named)

    async def send(method, path, body, headers):
        app = web.Application()
        app.add_routes(table)
        async with (
            TestClient(TestServer(app)) as client,
            client.request(method, path, data=body, headers=headers) as answer,
        ):
            return answer.status, await answer.json()

    def ask(body=None, *, path="/lightx2v/take", kind="application/json", **headers):
        method = "GET" if body is None else "POST"
        return asyncio.run(send(method, path, body, {"Content-Type": kind, **headers} if body is not None else headers))

    return ask


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"variant": "fp8"}', "application/json"),
        (b' {"variant":"fp8"}\r\n', "application/json; charset=utf-8"),
        ('{"variant": "é"}'.encode(), "application/json; charset=UTF8"),
        (b'{"variant": "\\u00e9"}', "application/json"),
        (b'{"variant": "fp8"}' + b" " * 4000, "application/json"),
    ],
)
def test_what_is_understood(ask, body, kind):
    status, answer = ask(body, kind=kind)
    assert status == 200 and answer["variant"] in ("fp8", "é")


@pytest.mark.parametrize(
    ("body", "kind", "sentence"),
    [
        (b"[" * 2000, "application/json", "nested too deeply"),
        (b'{"variant":' * 600, "application/json", "longer than 4096 bytes"),
        (b'{"variant": ' + b"[" * 1900, "application/json", "nested too deeply"),
        (b'{"variant": "fp8"}', "application/json; charset=nope", "Send the request as UTF-8; its charset is 'nope'."),
        (
            b'{"variant": "fp8"}',
            "application/json; charset=rot13",
            "Send the request as UTF-8; its charset is 'rot",
        ),
        (b'{"variant": "fp8"}', "application/json; charset=hex", "Send the request as UTF-8"),
        (b'{"variant": "fp8"}', "application/json; charset=latin-1", "Send the request as UTF-8"),
        (b'{"variant": "\xe9"}', "application/json", "is no JSON ("),
        (b"\xff\xfe\x00", "application/json", "is no JSON ("),
        (b"", "application/json", "is no JSON ("),
        (b"null", "application/json", "not a JSON object"),
        (b"1" * 4000, "application/json", "not a JSON object"),
        (b'{"variant": "fp8"}' + b" " * 5000, "application/json", "longer than 4096 bytes"),
        (b'{"variant": "\\ud800"}', "application/json", "expected one of: fp8"),
        (b'{"\\ud800": "fp8"}', "application/json", "has no parameter"),
        (b'{"variant": "fp8"}', "text/plain", "has no JSON body"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_what_is_not_understood_gets_a_sentence(ask, body, kind, sentence):
    status, answer = ask(body, kind=kind)
    assert status == 400 and sentence in answer["error"] and answer["error"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_body_without_a_length_is_read_no_further_than_it_may_be(ask, packed):
    sent = 0

    async def pieces():
        nonlocal sent
        for _ in range(800):
            sent += 1
            yield gzip.compress(bytes(2**16)) if packed else bytes(2**16)

    status, answer = ask(pieces(), **({"Content-Encoding": "gzip"} if packed else {}))
    assert status == 400 and "longer than 4096 bytes" in answer["error"]
    # What is packed is sent whole before anybody reads.
    assert packed or sent < 800


@pytest.mark.parametrize("name", ["wan%5Cfile.safetensors", "wan/file.safetensors", "a%5Cb/c", "..file", "a..b%5Cc.."])
def test_names_of_any_system_are_taken(ask, name):
    assert ask(path=f"/lightx2v/name?name={name}")[0] == 200


@pytest.mark.parametrize(
    "name", ["..%5Cx", "a%5C..%5Cx", "a%5C..", "%5Cx", "C:%5Cx", "a/..%5Cx", "a%0A/../x", "a%00", ""]
)
def test_names_that_lead_outside_are_not(ask, name):
    status, answer = ask(path=f"/lightx2v/name?name={name}")
    assert status == 400 and "expected a name that the node offers" in answer["error"]
