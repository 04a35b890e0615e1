"""The release store, opened: which one is the configuration's choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deployex_cli.config import AppConfig
    from deployex_cli.storage.store import ReleaseStore


def open_store(app: AppConfig) -> ReleaseStore:
    """The store that the app's configuration names."""
    from deployex_cli.storage.local import LocalStore

    return LocalStore(app)
