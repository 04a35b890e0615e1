"""One configured app whose folders lie in a test's own, for tests that run no process."""

from __future__ import annotations

from pathlib import Path

from deployex_cli.config import AppConfig, load_config


def app_in(folder: Path, lines: str = "", name: str = "counter") -> AppConfig:
    """The app `name`; `lines` are TOML lines of its table. No folder is made."""
    file = folder / "deployex.toml"
    file.write_text(
        f"""
[paths]
root = "{folder}/var"
run = "/run/of-no-test"
logs = "{folder}/log"
[storage]
path = "{folder}/store"
[apps.{name}]
{lines}
"""
    )
    return load_config(str(file), {}).app(name)
