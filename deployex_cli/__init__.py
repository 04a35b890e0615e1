"""Deployex CLI: a deployment runner for BEAM releases on plain Linux hosts."""

__version__ = "0.1.0"
