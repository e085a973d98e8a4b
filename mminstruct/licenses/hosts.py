"""Whose server a host is: everybody's to look up, or one's own; and the patterns of hosts."""

from __future__ import annotations

import ipaddress
import re
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

# Names that only a network of one's own knows (RFC 6761, 6762, 8375 and ICANN's .internal).
_PRIVATE_SUFFIXES = (
    *(".localhost", ".local", ".home.arpa", ".internal", ".test", ".svc"),
    *(".lan", ".home", ".corp", ".intranet", ".private"),
)
_HOST = re.compile(r"([\w*-]+\.)*[\w-]+")
# What a star stands for ends before the last two labels: these are a name that somebody owns.
_STARRED_HOST = re.compile(r"([\w*-]+\.)+[\w-]+\.[\w-]+")


def check(host: str) -> str:
    """The host or pattern of hosts, if it is one; else ValueError."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        allowed = _STARRED_HOST if "*" in host else _HOST
        if host != host.lower() or "**" in host or not allowed.fullmatch(host):
            raise ValueError(
                "expected a host in lower case, without scheme, port and path, such as "
                "api.acme.example; '*' stands for a part of a label before the last two "
                "(*.acme.example)"
            ) from None
    return host


def fits(host: str, pattern: str) -> bool:
    """Whether a host is one that a pattern means: each label by itself."""
    labels, wanted = host.split("."), pattern.split(".")
    return len(labels) == len(wanted) and all(map(fnmatchcase, labels, wanted))


def find_host(url: str) -> str:
    """The host of a URL in lower case, without the dot that a whole name may end with."""
    return (urlsplit(url).hostname or "").rstrip(".")


def is_public(url: str) -> bool:
    """Whether a URL's host has a name that everybody can look up, as services' hosts have.

    Bare addresses, single words and the names of private networks are servers of one's own.
    """
    host = find_host(url)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." in host and not host.endswith(_PRIVATE_SUFFIXES)
    return False
