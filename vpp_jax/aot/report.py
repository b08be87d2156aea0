"""The report of a compiled program as text, and its provenance."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from vpp_jax.aot.chips import parse_topology
from vpp_jax.common.provenance import git_revision, library_versions
from vpp_jax.config import ExperimentConfig, config_hash

SCHEMA = 2
ASSUMED = (
    "assumed: published peak bf16, HBM, link and network figures; sums and outputs of products padded to the matrix unit; arithmetic,",
    "memory, links and network overlap fully, each at its full rate; a collective uses the links of the fewest torus axes that hold its",
    "group, both ways round, half of them where an axis is open, one after the other. The compiler's own estimate has other assumptions,",
    "which it does not state. Nothing of this is measured",
)
# changes to try if a program does not fit, cheapest first: (applies to the report?, advice)
SUGGESTIONS = (
    (lambda r: r["step"] == "train" and r["remat"] in ("none", "attention"), "recompute more: --config.model.unet.remat=blocks"),
    (
        lambda r: r["examples_per_chip"] > 1 and r["step"] not in ("preview", "init", "restore"),
        "fewer examples per chip: --per_chip={fewer:g} (--config.train.grad_accum_steps keeps the update)",
    ),
    (lambda r: r["step"] == "train" and r["remat"] == "blocks", "recompute more: --config.model.unet.remat=everything"),
    (lambda r: r["topology"]["mesh"]["fsdp"] < r["topology"]["chips"], "more shards: a larger fsdp in --mesh"),
    (lambda r: r["topology"]["mesh"]["tensor"] < 5, "split attention and feed-forwards: tensor=5 in --mesh"),
    (lambda r: True, "a chip with more memory"),
)


def provenance(argv: Sequence[str], config: ExperimentConfig) -> dict[str, Any]:
    versions = library_versions() | {"libtpu": importlib.metadata.version("libtpu")}
    return {
        "schema_version": SCHEMA,
        "command": " ".join(["vpp compile", *argv]),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions,
        "git_revision": git_revision(),
        "stage": config.stage,
        "config_hash": config_hash(config),
        "remat": config.model.unet.remat,
    }


def verdict(report: dict[str, Any]) -> str:
    memory = report["memory_gib"]
    if "needed" in memory:
        return (
            f"does not fit, short by at least {memory['short']:.2f} GiB: at least {memory['needed']:.2f} GiB per chip are needed, "
            f"{memory['available']:.2f} are available; {suggest_change(report)}"
        )
    peak = f"peak {memory['peak'] + memory['resident']:.2f} of {memory['limit']:.0f} GiB per chip"
    if memory["short"] <= 0:
        return f"fits: {peak}, {-memory['short']:.2f} GiB left"
    return f"does not fit, short by {memory['short']:.2f} GiB ({peak}); {suggest_change(report)}"


def suggest_change(report: dict[str, Any]) -> str:
    """The next change to try if a program does not fit."""
    return "next: " + next(text for applies, text in SUGGESTIONS if applies(report)).format(fewer=max(report["examples_per_chip"] // 2, 1))


def summary(reports: Mapping[str, dict[str, Any]]) -> str:
    """One line per step of `--step=all`."""
    first = next(iter(reports.values()))
    mesh = ", ".join(f"{name} {size}" for name, size in first["topology"]["mesh"].items())
    lines = [
        f"{first['topology']['name']}: {first['topology']['chips']} chips, mesh {mesh}; stage {first['stage']}, remat {first['remat']}",
        f"  {'step':<12}{'examples':>9}{'program':>9}{'held besides':>14}{'of GiB':>8}{'left':>8}{'TFLOP per chip':>16}{'compiled in':>13}",
    ]
    for step, report in reports.items():
        memory, counts = report["memory_gib"], report.get("per_chip")
        taken = "".join(
            f"{value:>{width}.2f}" for value, width in ((memory.get("peak", memory.get("needed")), 9), (memory["resident"], 14))
        )
        seconds = f"{report['compiler']['seconds']:.0f} s" if "compiler" in report else ""
        flops = f"{counts['tflop']:.2f}" if counts else ""
        lines.append(f"  {step:<12}{report['examples']:>9}{taken}{memory['limit']:>8.0f}{-memory['short']:>8.2f}{flops:>16}{seconds:>13}")
    lines += [f"{step}: {verdict(report)}" for step, report in reports.items() if report["memory_gib"]["short"] > 0]
    return "\n".join(lines)


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    memory = report["memory_gib"]
    mesh = ", ".join(f"{name} {size}" for name, size in report["topology"]["mesh"].items())
    lines = [
        f"{report['topology']['name']}: {report['topology']['chips']} chips ({report['topology']['compiler']}), mesh {mesh}; stage "
        f"{report['stage']}, step {report['step']}, global batch {report['global_batch']}, {report['examples_per_chip']:g} example(s) per "
        f"chip, remat {report['remat']}",
    ]
    if "compiler" in report:
        lowest = report["compiler"]["optimisation"] == "O0"
        lines.append(
            f"compiled in {report['compiler']['seconds']:.0f} s at {report['compiler']['optimisation']}"
            + (", not the default level, whose fusions differ: bytes accessed are an estimate" if lowest else "")
        )
    lines += ["", verdict(report)]
    if "peak" in memory:
        lines.append(
            f"  memory, GiB per chip      arguments {memory['arguments']:.2f}, outputs {memory['outputs']:.2f}, "
            f"temporaries {memory['temporaries']:.2f}, peak {memory['peak']:.2f}, held besides {memory['resident']:.2f}"
        )
    if "bounds_s" in report:
        lines += _roofline(report)
    elif "per_chip" in report:
        lines.append(f"  arithmetic per chip       {report['per_chip']['tflop']:.2f} TFLOP")
    return "\n".join(lines)


def _roofline(report: dict[str, Any]) -> list[str]:
    chip, counts, times, bound = parse_topology(report["topology"]["name"]), report["per_chip"], report["bounds_s"], report["bound"]
    links = counts["sent_gb"] / times["interconnect"] if times["interconnect"] else 0.0
    lines = [
        "",
        f"  per chip and step         {'amount':>16}  {'of the chip':>18}  {'seconds':>9}",
        f"  arithmetic                {counts['tflop']:>10.2f} TFLOP",
        f"    {f'padded to {chip.chip.matrix} x {chip.chip.matrix}':<22}  {counts['padded_tflop']:>10.2f} TFLOP"
        f"  {chip.chip.peak:>12.0f} TFLOP/s  {times['compute']:>9.4f}",
        f"  memory                    {counts['accessed_gb']:>13.1f} GB  {chip.chip.bandwidth:>15.0f} GB/s  {times['memory']:>9.4f}",
        f"  links                     {counts['sent_gb']:>13.2f} GB  {links:>15.0f} GB/s  {times['interconnect']:>9.4f}",
    ]
    for kind, entry in report["collectives"].items():
        lines.append(f"    {kind:<22}  {entry['sent_gb']:>13.2f} GB  {entry['count']:>5.0f} of {entry['gb']:.2f} GB")
    if chip.slices > 1:
        lines.append(
            f"  between slices            {counts['network_gb']:>13.2f} GB  {chip.chip.network:>15.3f} GB/s  {times['network']:>9.4f}"
        )
        for kind, entry in report["collectives_between_slices"].items():
            lines.append(f"    {kind:<22}  {entry['sent_gb']:>13.2f} GB  {entry['count']:>5.0f} of {entry['gb']:.2f} GB")
    foreign = report["gathered_not_parameters"]
    lines.append(f"    gathered and not a parameter: {len(foreign) or 'nothing'}" + (f", first {foreign[0]}" if foreign else ""))
    if unknown := report["collectives_in_loops_of_unknown_length"]:
        lines.append(f"    {unknown} of these are in loops of unknown length and are counted once: the actual traffic is higher")
    own = report["compiler_seconds_per_step"]
    compiler = f"{own:.4f} s per step by the compiler, without links: MFU {100 * bound['mfu_of_compiler']:.0f} %; " if own else ""
    return [
        *lines,
        "",
        f"estimates: {compiler}{bound['step_s']:.4f} s ({bound['limited_by']}) by the figures above: MFU {100 * bound['mfu']:.0f} %, "
        f"{bound['examples_per_s']:.1f} examples/s; arithmetic alone allows MFU "
        f"{100 * bound['mfu_of_arithmetic']:.0f} % ({counts['model_tflop']:.2f} TFLOP without recomputation over peak x time)",
        *ASSUMED,
    ]
