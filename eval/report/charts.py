"""Loss curves as inline SVG that follows the page's colours and fonts."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]
MAX_POINTS = 300
# Colours that matplotlib writes -> variables of the page's stylesheet, so that one figure works in light and dark mode.
THEME = {"#010101": "currentColor", "#020202": "var(--line)", "#030303": "var(--c1)", "#040404": "var(--c2)", "#050505": "var(--c3)"}
INK, LINE, *SERIES = THEME


def loss_curves(curves: Curves) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """The curves to plot: at most three losses, training before evaluation."""
    names = [name for name in curves if "loss" in name.rsplit("/", 1)[-1] and len(curves[name][0])]
    names.sort(key=lambda name: (is_evaluation(name), len(name), name))
    training = [name for name in names if not is_evaluation(name)][:2]
    evaluation = [name for name in names if is_evaluation(name)][: 3 - len(training)]
    return {name: curves[name] for name in [*training, *evaluation]}


def is_evaluation(name: str) -> bool:
    return re.match(r"(eval|val|validation|test)([/_.]|$)", name) is not None


def draw_losses(curves: Curves, identity: str, xlabel: str = "step") -> str:
    """One small chart as an SVG element; training curves solid, evaluation dashed with dots. `identity` makes element ids unique."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": identity,
        "text.color": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.edgecolor": LINE,
        "grid.color": LINE,
        "font.size": 11,
        "font.family": "sans-serif",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.1, 2.6), layout="constrained")
        axes = figure.subplots()
        for (name, (steps, values)), colour in zip(curves.items(), SERIES, strict=False):
            x, y = thin(steps, values)
            look = {"linestyle": (0, (5, 2)), "marker": "o", "markersize": 4} if is_evaluation(name) else {}
            axes.plot(x, y, color=colour, label=name, linewidth=1.8, **look)
        numbers = np.array([value for _, values in curves.values() for value in values if math.isfinite(value)])
        if numbers.size and numbers.min() > 0 and numbers.max() / numbers.min() > 20:
            axes.set_yscale("log")
        axes.set_xlabel(xlabel)
        axes.grid(True, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=10, loc="best")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return themed(buffer.getvalue(), identity)


def thin(
    steps: Sequence[float] | np.ndarray, values: Sequence[float] | np.ndarray, limit: int = MAX_POINTS
) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` points: means over equal groups of neighbours; NaN remains as a gap."""
    x, y = np.asarray(steps, float), np.asarray(values, float)
    if len(x) <= limit:
        return x, y
    groups = np.array_split(np.arange(len(x)), limit)
    return np.array([x[group].mean() for group in groups]), np.array([y[group].mean() for group in groups])


def themed(svg: str, identity: str) -> str:
    """The <svg> element, with colours and fonts of the page, the size of its container, and unique ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 var(--font)", svg)
    for written, themed_colour in THEME.items():
        svg = svg.replace(written, themed_colour)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{identity}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{identity}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{identity}-\1)", svg)
    return svg.replace("<svg", '<svg class="chart"', 1)
