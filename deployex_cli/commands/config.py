"""`deployex config`: what is in force, and where each value came from; secrets masked."""

from __future__ import annotations

import re
from typing import Any

from deployex_cli.config import MASK, SECRETS, Config
from deployex_cli.result import Result, Table

# an app's own variables are masked by their names; a URL by the user that stands in it
_SECRET_NAME = re.compile(r"SECRET|PASS|TOKEN|KEY|COOKIE|CRED|AUTH|SALT|PRIVATE|DSN", re.IGNORECASE)


def show_config(config: Config) -> Result:
    """Every key with its value and its source."""
    entries = [
        {"key": key, "value": _shown(key, value), "source": config.sources[key]}
        for key, value in config.values.items()
    ]
    rows = tuple((e["key"], _text(e["value"]), e["source"]) for e in entries)
    table = Table("", ("key", "value", "source"), rows)
    places = [{"app": app.name, "paths": app.paths._asdict()} for app in config.apps]
    data = {"file": config.file, "keys": entries, "apps": places}
    where = tuple(
        Table(f"paths of {app.name}", ("what", "path"), tuple(app.paths._asdict().items()))
        for app in config.apps
    )
    return Result("config", data, tables=(table, *where))


def _shown(key: str, value: Any) -> Any:
    name = key.rpartition(".")[2]
    if name in SECRETS and value is not None:
        return MASK
    if name == "env":
        return {k: MASK if _SECRET_NAME.search(k) or "@" in v else v for k, v in value}
    return value


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "-"
    if isinstance(value, tuple):
        return ", ".join(value) or "-"
    return str(value)
