"""A run directory as one self-contained HTML page: no scripts, fonts, other files or network."""

from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from eval.report import media, sections, success
from eval.report.collect import Run, collect
from eval.report.theme import STYLESHEET
from eval.results import device_description
from vpp_jax.common.files import write_atomically
from vpp_jax.common.provenance import git_revision, library_versions

# Browsers load nothing but what is embedded in the page.
CONTENT_SECURITY_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
SECTIONS = (
    ("success", "Success", "Closed loop, from the same initial states for all policies.", success.closed_loop),
    ("rollouts", "Rollouts", "Selected before the run, not by outcome. In real time.", media.rollouts),
    ("predictions", "Predictions", "Predicted and true frames at the last evaluation during training.", media.predictions),
    ("training", "Training", "Losses of each stage.", sections.training),
    ("batches", "First batches", "Plotted before the first step, after all transforms.", media.first_batches),
    ("data", "Data", "Demonstrations by the scripted expert.", sections.data),
    ("time", "Time", "Wall-clock time of each step, including interrupted attempts.", sections.time_spent),
    ("configuration", "Configuration", "Everything needed to repeat this run.", sections.configuration),
)


def write_report(directory: Path, out: Path | None = None) -> Path:
    """Reads the run in `directory` and writes its report, by default to `report/index.html` there."""
    path = out or directory / "report" / "index.html"
    write_atomically(path, render(collect(directory)))
    return path


def render(run: Run) -> str:
    title = f"vpp_jax run: {run.directory.resolve().name}"
    links = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name, _, _ in SECTIONS)
    body = "".join(
        f'<section id="{anchor}"><h2>{escape(name)}</h2><p class="lead">{escape(lead)}</p>{build(run)}</section>'
        for anchor, name, lead, build in SECTIONS
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{STYLESHEET}</style>\n</head>\n<body>\n'
        f'<header><h1>{escape(title)}</h1><p class="lead">Demonstrations, three training stages, closed loop.</p>{_facts(run)}</header>\n'
        f'<nav aria-label="Sections">{links}</nav>\n<main>{success.headline(run)}{body}</main>\n'
        f"<footer>Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by <code>vpp report</code>; this file works offline.</footer>\n"
        "</body>\n</html>\n"
    )


def _facts(run: Run) -> str:
    """Date, device, versions, revision and configuration hashes, from the evaluation if there is one, else from this machine."""
    measured: dict[str, Any] = next((evaluation.results for evaluation in run.evaluations.values()), {})
    device = measured.get("device") or device_description()
    versions = measured.get("versions") or library_versions()
    hashes = [f"{name} {evaluation.results.get('config_hash', '')[:12]}" for name, evaluation in run.evaluations.items()]
    shown = ("python", "vpp_jax", "jax", "flax", "numpy")
    machine = f"{device.get('cpu', '')}, {device.get('cpu_cores', '?')} cores, {device.get('memory_gib', '?')} GiB"
    if device.get("backend") not in (None, "cpu"):
        machine = f"{device.get('accelerators')} × {device.get('accelerator')}; host {machine}"
    facts = {
        "Measured": measured.get("start", "not present").replace("T", " ").replace("+00:00", " UTC"),
        "Device": machine,
        "Versions": ", ".join(f"{name} {versions[name]}" for name in shown if name in versions),
        "Revision": _short(measured.get("git_revision") or git_revision()),
        "Simulator": _simulator(measured.get("simulator", {})),
        "Evaluation configuration (hash)": ", ".join(hashes) or "not present",
    }
    entries = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(str(value))}</dd></div>" for key, value in facts.items())
    return f'<dl class="facts">{entries}</dl>'


def _short(revision: str) -> str:
    commit, _, changed = (revision or "not in a git checkout").partition("-")
    return f"{commit[:18]}{' with changes' if changed else ''}"


def _simulator(simulator: dict[str, Any]) -> str:
    if not simulator:
        return "not present"
    version = f" version {simulator['environment_version']}" if simulator.get("environment_version") else ""
    mujoco = simulator.get("versions", {}).get("mujoco")
    parts = [f"{simulator.get('environment', '?')}{version}", f"mujoco {mujoco}" if mujoco else "", simulator.get("renderer", "")]
    return ", ".join(part for part in parts if part)
