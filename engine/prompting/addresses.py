"""Which servers may be asked: those of this computer and its network, and those that the user's environment names.

A workflow file brings its URL along, perhaps from a stranger. So prompts and pictures go no further than the local
network, unless LIGHTX2V_LLM_HOSTS names the host; the key goes to this computer and to named hosts only.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..sentences.prompting import Prompting
from .answers import NoAnswerError

HOSTS_VARIABLE = "LIGHTX2V_LLM_HOSTS"
KEY_VARIABLE = "LIGHTX2V_LLM_API_KEY"

# Loopback, RFC 1918, RFC 4193, and link-local of IPv6. Not 169.254/16, where clouds keep their metadata service, nor
# what tunnels (6to4, Teredo, NAT64) wrap. An IPv4 address mapped into IPv6 counts as what it is.
_LOCAL = tuple(
    ipaddress.ip_network(text)
    for text in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7", "fe80::/10")
)
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*/?")
_LISTENING = ("0.0.0.0", "::")
_PORTS = {"http": 80, "https": 443}
_EXAMPLE = Prompting.EXAMPLE()


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server that speaks OpenAI's chat API."""

    scheme: str
    host: str
    port: int
    path: str
    """In front of /chat/completions, without a slash at its end: /v1."""
    is_named: bool
    """The user's environment names this host."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def read_url(url: str, environment: Mapping[str, str]) -> Endpoint:
    """Return the server that a URL names; the URL may end before, in or after /v1/chat/completions.

    Raises:
        NoAnswerError: it is not the plain URL of a server.
    """
    text = url.strip()
    text = text if "://" in text else f"http://{text}"
    # urlsplit drops line breaks and tabs, others may not: nobody shall read another server here.
    if not (text.isascii() and text.isprintable()) or " " in text or "\\" in text:
        raise NoAnswerError(Prompting.ODD_CHARACTERS(example=_EXAMPLE))
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise NoAnswerError(Prompting.NO_URL(error=error, example=_EXAMPLE)) from None
    host = (parts.hostname or "").lower()
    if "@" in parts.netloc:
        raise NoAnswerError(Prompting.HAS_KEY(key_variable=KEY_VARIABLE))
    if parts.scheme not in _PORTS:
        raise NoAnswerError(Prompting.ODD_SCHEME(scheme=parts.scheme[:20]))
    if not _HOST.fullmatch(host) or not _PATH.fullmatch(parts.path) or parts.query or parts.fragment or port == 0:
        raise NoAnswerError(Prompting.NOT_PLAIN(example=_EXAMPLE))
    if host in _LISTENING:
        raise NoAnswerError(Prompting.LISTENS_EVERYWHERE(host=host, example=_EXAMPLE))
    path = parts.path.rstrip("/").removesuffix("/chat/completions").rstrip("/")
    return Endpoint(
        scheme=parts.scheme,
        host=host,
        port=port or _PORTS[parts.scheme],
        path=path or "/v1",
        is_named=host in _named_hosts(environment),
    )


def check_addresses(endpoint: Endpoint, addresses: Collection[str]) -> list[str]:
    """Return those addresses of a server that may be asked.

    Args:
        endpoint: the server.
        addresses: what its host name resolves to: IP addresses, of IPv6 perhaps with a scope (%eth0).

    Raises:
        NoAnswerError: there is none.
    """
    allowed = [address for address in addresses if endpoint.is_named or is_local(address)]
    if not allowed:
        raise NoAnswerError(
            Prompting.NOT_LOCAL(
                host=endpoint.host, addresses=", ".join(sorted(addresses)[:3]) or "none", hosts_variable=HOSTS_VARIABLE
            )
        )
    return allowed


def is_local(address: str) -> bool:
    """Say whether an IP address is of this computer or its network."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return any((mapped or found) in network for network in _LOCAL)


def is_loopback(address: str) -> bool:
    """Say whether an IP address is of this computer."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def read_key(environment: Mapping[str, str]) -> str:
    """Return the API key of the user's environment; empty for none.

    Raises:
        NoAnswerError: it has characters that no HTTP header takes.
    """
    key = environment.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise NoAnswerError(Prompting.ODD_KEY(key_variable=KEY_VARIABLE))
    return key


def _named_hosts(environment: Mapping[str, str]) -> set[str]:
    return {name.strip().strip("[]").lower() for name in environment.get(HOSTS_VARIABLE, "").split(",")} - {""}
