"""Addresses of servers: what is one, and how it is shown. Light to import: the configuration is checked with it."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit


def problem_of(url: str) -> str | None:
    """Why a text is not the base URL of a server, or None if it is one."""
    if not re.fullmatch(r"[!-~]+", url):
        return "it has spaces or characters beyond ASCII"
    if not re.match(r"(?i)https?://", url):
        return "it does not begin with http:// or https://"
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        named = bool(ipaddress.IPv6Address(host)) if "[" in parts.netloc else _is_name(host)
    except ValueError:  # whose words may hold a part of a password, as those of the port below
        named = False
    if not named:
        return "it names no host"
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0 or parts.netloc.endswith(":"):
        return "its port is no number from 1 to 65535"
    if "?" in url or "#" in url:
        return "it has a query or fragment"
    if "@" in parts.path or "\\" in url:
        return "its path has an `@` or backslash; in a password, write `%40` for `@` and `%2F` for `/`"
    return None


def shown_url(url: str) -> str:
    """A URL, or what was meant to be one, without user name, password and query."""
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    before, at, rest = rest.rpartition("@")
    if "@" in scheme or re.search(r"[?#]", before):
        return "***"
    return scheme + mark + ("***@" if at else "") + re.split(r"[?#]", rest, maxsplit=1)[0]


def _is_name(host: str) -> bool:
    """Whether a host name, or an IPv4 address, has labels that can be looked up. Raises ValueError if not."""
    return bool(host.encode("idna")) and re.fullmatch(r"[\w.-]*\w\.?", host) is not None
