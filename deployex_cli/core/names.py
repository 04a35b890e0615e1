"""The rules for names that come from outside: each is checked once, where it comes in.

An app's name becomes a folder, a node and a bucket name; a version becomes a folder and a key in
the release store. PURE: no os, socket, clock or store. (Sets of characters, not regular
expressions: a timer's check would pay a millisecond for compiling them.)
"""

from __future__ import annotations

_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz")
_UPPER = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_DIGITS = frozenset("0123456789")
_APP = _LOWER | _DIGITS | {"_"}
_ENVIRONMENT = _LOWER | _DIGITS | {"-"}
_VERSION = _LOWER | _UPPER | _DIGITS | frozenset(".+_~-")
_NODE = _LOWER | _UPPER | _DIGITS | frozenset("_-")
_HOST = _LOWER | _UPPER | _DIGITS | frozenset(".:-")


def app_name_problem(name: str) -> str | None:
    """What is wrong with an app's name, as the end of a sentence, or None."""
    if name[:1] in _LOWER and len(name) <= 40 and _APP.issuperset(name):
        return None
    return (
        "must begin with a lower-case letter and hold at most 40 lower-case letters, digits"
        " and underscores (it becomes a folder and a node name)"
    )


def environment_problem(name: str) -> str | None:
    """What is wrong with an environment's name, as the end of a sentence, or None."""
    if name[:1] in _LOWER | _DIGITS and len(name) <= 32 and _ENVIRONMENT.issuperset(name):
        return None
    return (
        "must hold at most 32 lower-case letters, digits and hyphens (a bucket is named after it)"
    )


def version_problem(version: str) -> str | None:
    """What is wrong with a version, as the end of a sentence, or None."""
    if ".." in version:
        return "must not hold '..' (it becomes a folder's name)"
    begins = version[:1] in _LOWER | _UPPER | _DIGITS
    if begins and len(version) <= 128 and _VERSION.issuperset(version):
        return None
    return (
        "must begin with a letter or digit and hold at most 128 letters, digits"
        " and . + _ ~ - (it becomes a folder's name)"
    )


def node_problem(node: str) -> str | None:
    """What is wrong with a node's name (short, or name@host), as the end of a sentence, or None."""
    name, at, host = node.partition("@")
    good_name = 1 <= len(name) <= 64 and _NODE.issuperset(name)
    if good_name and (not at or host_problem(host) is None):
        return None
    return 'must be a short name such as "myapp", or a long one such as "myapp@10.0.0.5"'


def host_problem(host: str) -> str | None:
    """What is wrong with a host's name or address, as the end of a sentence, or None."""
    if 1 <= len(host) <= 255 and _HOST.issuperset(host):
        return None
    return 'must be a host name or an address, such as "app.example.org" or "10.0.0.5"'
