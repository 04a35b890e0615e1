"""The rules for names that come from outside: each is checked once, where it comes in.

An app's name becomes a folder, a node and a bucket name; a version becomes a folder and a key in
the release store. PURE: no os, socket, clock or store.
"""

from __future__ import annotations

import re

_APP = re.compile(r"[a-z][a-z0-9_]{0,39}")
_ENVIRONMENT = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_~-]{0,127}")
_NODE = re.compile(r"[A-Za-z0-9_-]{1,64}(@[A-Za-z0-9.:-]{1,255})?")


def app_name_problem(name: str) -> str | None:
    """What is wrong with an app's name, as the end of a sentence, or None."""
    if _APP.fullmatch(name):
        return None
    return (
        "must begin with a lower-case letter and hold at most 40 lower-case letters, digits"
        " and underscores (it becomes a folder and a node name)"
    )


def environment_problem(name: str) -> str | None:
    """What is wrong with an environment's name, as the end of a sentence, or None."""
    if _ENVIRONMENT.fullmatch(name):
        return None
    return "must hold at most 32 lower-case letters, digits and hyphens (it is part of a bucket's name)"


def version_problem(version: str) -> str | None:
    """What is wrong with a version, as the end of a sentence, or None."""
    if ".." in version:
        return "must not hold '..' (it becomes a folder's name)"
    if not _VERSION.fullmatch(version):
        return (
            "must begin with a letter or digit and hold at most 128 letters, digits"
            " and . + _ ~ - (it becomes a folder's name)"
        )
    return None


def node_problem(node: str) -> str | None:
    """What is wrong with a node's name (short, or name@host), as the end of a sentence, or None."""
    if _NODE.fullmatch(node):
        return None
    return 'must be a short name such as "myapp", or a long one such as "myapp@10.0.0.5"'
