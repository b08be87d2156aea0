"""Training, data, time and configuration. All text from files is escaped here."""

import json
import statistics
from html import escape

from eval.report.charts import draw_losses, loss_curves
from eval.report.collect import STAGES, Run, StageRun
from eval.report.wording import POLICY_TITLES, STAGE_TITLES, absent, duration, percent


def training(run: Run) -> str:
    cards = []
    for name in STAGES:
        stage = run.stages.get(name)
        if stage is None or not loss_curves(stage.curves):
            cards.append(absent(f"losses of stage {name}", f"{name}/metrics.jsonl"))
            continue
        curves = loss_curves(stage.curves)
        ends = "; ".join(
            f"{key}: {values[0]:.4g} at step {steps[0]:.0f}, {values[-1]:.4g} at {steps[-1]:.0f}" for key, (steps, values) in curves.items()
        )
        cards.append(
            f'<figure class="card"><h3>{escape(STAGE_TITLES[name])}</h3>{draw_losses(curves, f"losses-{name}")}'
            f"<figcaption>{escape(ends)}{_speed(stage)}</figcaption></figure>"
        )
    return f'<div class="grid three">{"".join(cards)}</div>'


def _speed(stage: StageRun) -> str:
    """Step time, time waiting for data and compile time, as far as the run recorded them."""
    parts = []
    for name, text in (("time/step_ms", "{:.0f} ms per step"), ("time/data_wait_share", "{:.1%} of it waiting for data")):
        values = stage.curves.get(name, ([], []))[1]
        if values:
            parts.append(text.format(statistics.median(values)) + ("" if parts else " (median)"))
    compiled = [start["compile_s"] for start in stage.starts if isinstance(start.get("compile_s"), int | float)]
    if compiled:
        times = f" in {len(compiled)} starts" if len(compiled) > 1 else ""
        parts.append(f"compiled in {duration(sum(compiled))}{times}")
    return f"<br>{escape(', '.join(parts))}" if parts else ""


def data(run: Run) -> str:
    if not run.datasets:
        return absent("report of the data build", "data/**/build_report.json")
    cards = []
    for dataset in run.datasets:
        attempts, kept = dataset.get("attempts", {}), dataset.get("kept", {})
        rows = "".join(
            f'<tr data-group="{escape(group)}"><td>{escape(group)}</td>{_kept_cells(count, kept.get(group, 0))}</tr>'
            for group, count in attempts.items()
        )
        rows += f'<tr class="sum"><td>all</td>{_kept_cells(sum(attempts.values()), sum(kept.values()))}</tr>'
        episodes = ", ".join(f"{split} {count}" for split, count in dataset.get("episodes", {}).items())
        size = sum(dataset.get("bytes", {}).values()) / 1e6
        cards.append(
            f'<div class="card"><h3>{escape(str(dataset.get("dataset", "dataset")))} {escape(str(dataset.get("version", "")))}</h3>'
            f'<p class="hint">Episodes: {escape(episodes)}; {size:.1f} MB. Only demonstrations that solve their task are stored.</p>'
            '<div class="scroll" tabindex="0"><table class="kept"><thead><tr><th>task</th><th class="num">attempts</th>'
            f'<th class="num">stored</th><th class="num">share</th></tr></thead><tbody>{rows}</tbody></table></div></div>'
        )
    return "".join(cards)


def _kept_cells(attempts: int, kept: int) -> str:
    share = percent(kept / attempts if attempts else None)
    return f'<td class="num">{attempts}</td><td class="num">{kept}</td><td class="num">{share}</td>'


def time_spent(run: Run) -> str:
    if not run.seconds:
        return absent("time per stage", "timing.json")
    longest = max(*run.seconds.values(), 1e-9)
    rows = "".join(
        f'<div>{escape(name.replace("_", " "))}</div><div><div class="bar" style="width:{100 * seconds / longest:.1f}%"></div></div>'
        f'<div class="value">{duration(seconds)}</div>'
        for name, seconds in run.seconds.items()
    )
    total = f'<div><b>all</b></div><div></div><div class="value"><b>{duration(sum(run.seconds.values()))}</b></div>'
    return f'<div class="card"><div class="times">{rows}{total}</div></div>'


def configuration(run: Run) -> str:
    blocks = []
    for name, evaluation in run.evaluations.items():
        results = {key: value for key, value in evaluation.results.items() if key != "metrics"}
        blocks.append((f"Evaluation: {POLICY_TITLES.get(name, name)}", results))
    blocks += [(f"Training: stage {name}", stage.config) for name, stage in run.stages.items() if stage.config is not None]
    blocks += [(f"Data: {dataset.get('dataset', '')}", dataset.get("settings", dataset)) for dataset in run.datasets]
    if not blocks:
        return absent("configuration", "STAGE/config.json")
    texts = [(title, json.dumps(value, indent=2, ensure_ascii=False)) for title, value in blocks]
    return "".join(
        f'<details class="card"><summary>{escape(title)}</summary><pre tabindex="0">{escape(text)}</pre></details>' for title, text in texts
    )
