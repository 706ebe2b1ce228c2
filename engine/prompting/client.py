"""HTTP to one language model server: addresses checked before a connection, bounded in time and size, no surprises.

Built on http.client, because that follows no redirect and reads no proxy from the environment. It connects to the very
address that was checked, so that a name cannot resolve to another one in between.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from contextlib import closing, suppress
from typing import Any

from ..sentences.prompting import Prompting
from .addresses import Endpoint, check_addresses, is_loopback
from .answers import NoAnswerError

# A model that reasons answers with all of its thoughts.
_MAX_BYTES = 4 * 2**20
_PIECE = 2**16
# Servers of a network accept at once; the time-out is for what they compute.
_CONNECT_SECONDS = 5.0

SocketAddress = tuple[Any, ...]
"""What socket.connect takes: host, port, and of IPv6 also flow and scope."""


class Client:
    """Requests, one after the other, that together end by a deadline or when `abort` is called, whichever is first.

    Only looking a name up cannot be ended: that takes as long as the system's resolver does. A context manager, which
    keeps the time.
    """

    def __init__(self, endpoint: Endpoint, *, seconds: float, key: str = "") -> None:
        """Args: seconds: for all requests together; key: sent to this computer and to named hosts only."""
        self._endpoint = endpoint
        self._key = key
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_aborted = False
        # A socket's own time-out starts again with every byte, of a header too.
        self._timer = threading.Timer(seconds, self.abort)
        self._timer.daemon = True

    def __enter__(self) -> Client:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    @property
    def rest(self) -> float:
        """The seconds that are left, below 0 where it is too late."""
        return self._deadline - time.monotonic()

    def abort(self) -> None:
        """End the running request and refuse further ones; called from another thread, does not wait."""
        with self._lock:
            self._is_aborted = True
            if self._socket is not None:
                # Of the plain socket: a TLS socket would also drop its state, which the other thread is using.
                with suppress(OSError):
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def get(self, path: str) -> tuple[int, bytes]:
        """Return status and body of GET `path`."""
        return self._request("GET", path, None)

    def post(self, path: str, data: Any) -> tuple[int, bytes]:
        """Return status and body of POST `path` with JSON.

        Raises (both):
            NoAnswerError: the server is not allowed, is not there, breaks off, takes too long or sends too much.
        """
        return self._request("POST", path, json.dumps(data).encode("ascii"))

    def _request(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {"Accept": "application/json", "Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connected = self._connect()
        try:
            if self._key and (self._endpoint.is_named or is_loopback(connected.getpeername()[0])):
                headers["Authorization"] = f"Bearer {self._key}"
            # Its own connect is never called: it would resolve the name again.
            kind = http.client.HTTPSConnection if self._endpoint.scheme == "https" else http.client.HTTPConnection
            connection = kind(self._endpoint.host, self._endpoint.port)
            connection.auto_open = 0
            connection.sock = connected
            connection.request(method, path, body, headers)
            # The response holds the connection open too.
            with closing(connection.getresponse()) as response:
                if 300 <= response.status < 400:
                    raise NoAnswerError(Prompting.REDIRECT(endpoint=self._endpoint, status=response.status))
                return response.status, self._read(response, connected)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._failure(error) from error
        finally:
            with self._lock:
                self._socket = None
            connected.close()

    def _read(self, response: http.client.HTTPResponse, connected: socket.socket) -> bytes:
        body = bytearray()
        while True:
            connected.settimeout(self._time_out())
            piece = response.read1(_PIECE)
            body += piece
            if len(body) > _MAX_BYTES:
                raise NoAnswerError(Prompting.LONG_ANSWER(endpoint=self._endpoint, max_bytes=_MAX_BYTES // 2**20))
            if not piece:
                break
        # A body that goes on until the connection closes ends as well where this side closed it.
        self._check_alive()
        if response.length:
            raise http.client.IncompleteRead(bytes(body), response.length)
        return bytes(body)

    def _connect(self) -> socket.socket:
        """Return a socket that is connected to an allowed address, with TLS where the URL says https."""
        problem: OSError | None = None
        for family, address in self._resolve():
            connecting = socket.socket(family, socket.SOCK_STREAM)
            try:
                self._watch(connecting)
                connecting.settimeout(min(self._time_out(), _CONNECT_SECONDS))
                connecting.connect(address)
                connecting.settimeout(self._time_out())
                if self._endpoint.scheme == "https":
                    context = ssl.create_default_context()
                    connecting = context.wrap_socket(connecting, server_hostname=self._endpoint.host)
                    self._watch(connecting)
                    connecting.settimeout(self._time_out())
                return connecting
            except OSError as error:
                connecting.close()
                problem = error
            except NoAnswerError:
                connecting.close()
                raise
        self._check_alive()
        raise NoAnswerError(Prompting.UNREACHABLE(endpoint=self._endpoint, problem=problem))

    def _resolve(self) -> list[tuple[socket.AddressFamily, SocketAddress]]:
        try:
            found = socket.getaddrinfo(self._endpoint.host, self._endpoint.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise NoAnswerError(Prompting.UNKNOWN_NAME(host=self._endpoint.host, error=error)) from error
        by_address = {str(address[0]): (family, address) for family, _, _, _, address in found}
        return [by_address[address] for address in check_addresses(self._endpoint, by_address)]

    def _watch(self, connecting: socket.socket) -> None:
        """Let `abort` reach this socket."""
        with self._lock:
            self._check_alive()
            self._socket = connecting

    def _check_alive(self) -> None:
        """Raise NoAnswerError where nobody waits for an answer any more."""
        if problem := self._own_ending():
            raise problem

    def _own_ending(self) -> NoAnswerError | None:
        """Return why this side ended the request, None where it did not: what the connection then says is not why."""
        if self.rest <= 0:
            return self._too_late()
        return NoAnswerError(Prompting.ABORTED()) if self._is_aborted else None

    def _time_out(self) -> float:
        """Return the seconds that a socket may take, which has no use for none."""
        if (rest := self.rest) <= 0:
            raise self._too_late()
        return rest

    def _failure(self, error: Exception) -> NoAnswerError:
        if problem := self._own_ending():
            return problem
        if isinstance(error, TimeoutError):
            return self._too_late()
        if isinstance(error, http.client.IncompleteRead):
            return NoAnswerError(Prompting.BROKE_OFF_IN_ANSWER(endpoint=self._endpoint))
        if isinstance(error, ConnectionError):
            return NoAnswerError(Prompting.BROKE_OFF(endpoint=self._endpoint, error=error or type(error).__name__))
        return NoAnswerError(Prompting.NO_WEB_SERVER(endpoint=self._endpoint, name=type(error).__name__, error=error))

    def _too_late(self) -> NoAnswerError:
        return NoAnswerError(Prompting.NO_ANSWER(endpoint=self._endpoint, seconds=self._seconds))
