"""Formatting of numbers in the report, and the box for missing parts."""

from collections.abc import Mapping
from html import escape
from typing import Any

POLICY_TITLES = {"policy": "policy", "random": "random actions", "expert": "scripted expert"}
STAGE_TITLES = {"vae": "Stage vae: the video autoencoder", "video": "Stage video: the predictor", "policy": "Stage policy: actions"}


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}%" if value in (0, 1) else f"{100 * value:.1f}%"


def duration(seconds: float) -> str:
    """59.4 -> '59 s', 135 -> '2 min 15 s', 3700 -> '1 h 2 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def absent(what: str, where: str) -> str:
    return f'<div class="card absent">Not present: {escape(what)} (<code>{escape(where)}</code>).</div>'


def interval_text(cell: Mapping[str, Any]) -> str:
    return f"{100 * cell['low']:.1f} to {100 * cell['high']:.1f}%"
