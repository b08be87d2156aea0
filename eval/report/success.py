"""Closed-loop success: tiles, charts with intervals, table. All text from files is escaped here."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from eval.conditions import conditions_text, differences_text
from eval.report.collect import POLICIES, Evaluation, Run
from eval.report.wording import POLICY_TITLES, absent, duration, interval_text, percent


def headline(run: Run) -> str:
    """One tile per scene, and the total time."""
    tiles = [_scene_tile(run, scene) for scene in _scenes(run.evaluations.values())]
    if run.seconds:
        parts = len(run.seconds)
        tiles.append(
            f'<div class="card tile"><div class="label">Total time</div><div class="big">{duration(sum(run.seconds.values()))}</div>'
            f'<p>{parts} steps, see <a href="#time">time</a></p></div>'
        )
    return f'<div class="grid three">{"".join(tiles)}</div>' if tiles else ""


def _scene_tile(run: Run, scene: str) -> str:
    cells = {name: _cell(evaluation, scene) for name, evaluation in run.evaluations.items()}
    cells = {name: cell for name, cell in cells.items() if cell}
    main = "policy" if "policy" in cells else next(iter(cells))
    others = ", ".join(f"{POLICY_TITLES.get(name, name)} {percent(cell['rate'])}" for name, cell in cells.items() if name != main)
    verdict = ""
    if "policy" in cells and "random" in cells:
        apart = cells["policy"]["low"] > cells["random"]["high"]
        verdict = f"<p>95% intervals of policy and random actions {'do not overlap' if apart else 'overlap'}.</p>"
    cell = cells[main]
    where = conditions_text(run.evaluations[main].results)
    return (
        f'<div class="card tile" data-scene="{escape(scene)}"><div class="label">Scene {escape(scene)}{_seen(run, scene)}, '
        f'{escape(POLICY_TITLES.get(main, main))}</div><div class="big {escape(main)}">{percent(cell["rate"])}</div>'
        f"<p>{cell['successes']} of {cell['trials']} tasks solved, 95% interval {interval_text(cell)}</p>"
        + (f'<p class="soft">{escape(where)}</p>' if where else "")
        + (f'<p class="soft">{escape(others)}</p>' if others else "")
        + f"{verdict}</div>"
    )


def closed_loop(run: Run) -> str:
    if not run.evaluations:
        return absent("closed-loop evaluation", "eval/*/results.json")
    parts = [f'<p class="note">{escape(note)}</p>' for note in _notes(run.evaluations.values())]
    parts += [f'<p class="note">{escape(line)}</p>' for line in _measured_in(run)]
    missing = [name for name in POLICIES if name not in run.evaluations]
    parts += [absent(f"evaluation of {POLICY_TITLES[name]}", f"eval/{name}/results.json") for name in missing]
    keys = "".join(f'<li><span class="key {escape(name)}"></span>{escape(POLICY_TITLES.get(name, name))}</li>' for name in run.evaluations)
    parts.append(f'<ul class="legend">{keys}<li class="soft">Dot: rate. Bar: Wilson 95% interval.</li></ul>')
    scenes = _scenes(run.evaluations.values())
    parts.append(f'<div class="grid two">{"".join(_interval_chart(run, scene) for scene in scenes)}</div>')
    parts.append(_table(run, scenes))
    parts += [_chains(evaluation) for evaluation in run.evaluations.values() if "in_a_row" in evaluation.results["metrics"]]
    return "".join(parts)


def _chains(evaluation: Evaluation) -> str:
    """Tasks solved in a row, and the average length."""
    metrics = evaluation.results["metrics"]
    title = escape(POLICY_TITLES.get(evaluation.name, evaluation.name))
    rows = "".join(
        f'<tr><td>at least {escape(count)} in a row</td><td class="num">{cell["successes"]}/{cell["trials"]} '
        f"&nbsp;{percent(cell['rate'])}</td>"
        f'<td class="soft">{interval_text(cell)}</td></tr>'
        for count, cell in metrics["in_a_row"].items()
    )
    average = "–" if metrics["average_length"] is None else f"{metrics['average_length']:.2f}"
    return (
        f'<div class="card" data-chains="{escape(evaluation.name)}"><h3>Chains of tasks, {title}: average length '
        f"{average} over {metrics['chains']} chains</h3><p>{escape(_standing(evaluation))}</p>"
        f'<table class="rates"><tbody>{rows}</tbody></table></div>'
    )


def _standing(evaluation: Evaluation) -> str:
    """Whether the average length may stand beside published ones, and in what it was measured."""
    published = evaluation.results.get("published", False)
    kind = "Comparable with published average lengths" if published else "Not comparable with published average lengths"
    return f"{kind}. Measured in {conditions_text(evaluation.results) or 'unknown conditions'}."


def _measured_in(run: Run) -> list[str]:
    """The conditions of every evaluation; one line where they are the same."""
    titles: dict[str, list[str]] = {}
    for name, evaluation in run.evaluations.items():
        titles.setdefault(conditions_text(evaluation.results), []).append(POLICY_TITLES.get(name, name))
    return [f"Measured in {where} ({', '.join(names)})." for where, names in titles.items() if where]


def _notes(evaluations: Iterable[Evaluation]) -> list[str]:
    notes: dict[str, None] = {}
    for evaluation in evaluations:
        if differing := differences_text(evaluation.results.get("differences") or {}):
            notes[f"{POLICY_TITLES.get(evaluation.name, evaluation.name)}: {differing}."] = None
        protocol = evaluation.results.get("config", {}).get("protocol", {})
        if protocol.get("partial"):
            notes[str(protocol.get("note") or "Partial protocol.")] = None
        if not evaluation.results.get("complete", True):
            unscored = len(evaluation.results.get("failures", {}).get("unscored", {}))
            title = POLICY_TITLES.get(evaluation.name, evaluation.name)
            reason = "could not be scored because their simulator failed; they are not counted"
            notes[f"Incomplete ({title}): {unscored} episodes {reason}."] = None
    return list(notes)


def _scenes(evaluations: Iterable[Evaluation]) -> list[str]:
    found: dict[str, None] = {}
    for evaluation in evaluations:
        found.update(dict.fromkeys(evaluation.results["metrics"].get("scenes", {})))
    return list(found)


def _tasks(run: Run, scene: str) -> list[str]:
    found: dict[str, None] = {}
    for evaluation in run.evaluations.values():
        found.update(dict.fromkeys(evaluation.results["metrics"].get("scenes", {}).get(scene, {}).get("tasks", {})))
    return list(found)


def _cell(evaluation: Evaluation, scene: str, task: str | None = None) -> dict[str, Any] | None:
    cells = evaluation.results["metrics"].get("scenes", {}).get(scene)
    if cells is None:
        return None
    return cells["overall"] if task is None else cells["tasks"].get(task)


def _seen(run: Run, scene: str) -> str:
    if not run.training_scenes:
        return ""
    return " (seen in training)" if scene in run.training_scenes else " (unseen in training)"


def _interval_chart(run: Run, scene: str) -> str:
    rows = []
    for task in [None, *_tasks(run, scene)]:
        cells = {name: _cell(evaluation, scene, task) for name, evaluation in run.evaluations.items()}
        lanes = "".join(f'<div class="lane">{_mark(name, cell)}</div>' for name, cell in cells.items())
        title = "all tasks" if task is None else task.replace("_", " ")
        kind = "row sum" if task is None else "row"
        rows.append(f'<div class="{kind}"><div class="name">{escape(title)}</div><div class="lanes">{lanes}</div></div>')
    axis = "".join(f'<span style="left:{place}%">{place}{"" if place % 100 else "%"}</span>' for place in (0, 25, 50, 75, 100))
    return (
        f'<figure class="card"><h3>Scene {escape(scene)}{_seen(run, scene)}</h3>{"".join(rows)}'
        f'<div class="row scale"><div class="name"></div><div class="axis">{axis}</div></div></figure>'
    )


def _mark(name: str, cell: Mapping[str, Any] | None) -> str:
    if not cell or cell["rate"] is None:
        return ""
    low, high, rate = (100 * cell[key] for key in ("low", "high", "rate"))
    counts = f"{cell['successes']} of {cell['trials']}, {percent(cell['rate'])}"
    title = f"{POLICY_TITLES.get(name, name)}: {counts}, interval {interval_text(cell)}"
    return (
        f'<span class="span {escape(name)}" style="left:{low:.2f}%;width:{high - low:.2f}%"></span>'
        f'<span class="dot {escape(name)}" style="left:{rate:.2f}%" role="img" title="{escape(title)}" aria-label="{escape(title)}"></span>'
    )


def _table(run: Run, scenes: list[str]) -> str:
    names = list(run.evaluations)
    head = "".join(f'<th class="num">{escape(POLICY_TITLES.get(name, name))}</th><th>95% interval</th>' for name in names)
    rows = []
    for scene in scenes:
        for task in [*_tasks(run, scene), None]:
            cells = "".join(_table_cells(name, _cell(run.evaluations[name], scene, task)) for name in names)
            title = "all tasks" if task is None else task
            key = f'data-scene="{escape(scene)}" data-task="{escape(task or "all")}"'
            rows.append(f"<tr {key}{' class=sum' if task is None else ''}><td>{escape(scene)}</td><td>{escape(title)}</td>{cells}</tr>")
    return (
        '<div class="card"><h3>Table</h3><div class="scroll" tabindex="0"><table class="rates"><thead><tr><th>scene</th>'
        f"<th>task</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def _table_cells(name: str, cell: Mapping[str, Any] | None) -> str:
    if not cell:
        return '<td class="num">–</td><td>–</td>'
    counts = f"{cell['successes']}/{cell['trials']}"
    rate = f'<td class="num" data-policy="{escape(name)}">{counts} &nbsp;{percent(cell["rate"])}</td>'
    return f'{rate}<td class="soft">{interval_text(cell)}</td>'
