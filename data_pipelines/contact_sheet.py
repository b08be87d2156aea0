"""A page of episodes with instruction, images and actions, for a visual check: does the instruction fit, does the arm move as the action
curves say, does the gripper close where its curve falls?
"""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import statistics
from data_pipelines.errors import DataError
from data_pipelines.openx.robot_spec import RobotSpec
from data_pipelines.rlds.dataset import Episode, RLDSDataset
from data_pipelines.rlds.schema import ACTION, LANGUAGE_INSTRUCTION
from data_pipelines.rlds.windows import whole_clip
from data_pipelines.sources import camera_frame
from data_pipelines.transforms import resize
from vpp_jax.common.files import atomic_path

INSTRUCTION_KEYS = (LANGUAGE_INSTRUCTION, "natural_language_instruction", "observation/instruction")
# Panels of a seven-dimensional action: title, names of the dimensions.
MOTION = (("position", ("x", "y", "z")), ("rotation", ("roll", "pitch", "yaw")))
COLOURS = ("tab:red", "tab:green", "tab:blue")
TRACE_INCHES, GRIPPER_INCHES, GAP_INCHES, WIDTH_INCHES = 0.95, 0.6, 0.35, 8.4
BLANK_SPREAD = 1.0


def draw(dataset: RLDSDataset, path: Path, *, spec: RobotSpec | None = None, episodes: int = 4, frames: int = 7, size: int = 128) -> None:
    """Writes a PNG: one block per episode with its instruction, one row of images per camera, and the action over the steps.

    Args:
      dataset: any RLDS dataset; `episodes` evenly spaced episodes are drawn.
      spec: the description of its robot: draw actions as training uses them, and name cameras by role. None: draw the column `action`.
      frames: images per row, spread over the episode.
      size: image size in pixels, resized to a square as in training.
    """
    # Agg needs no display; the backend is not set globally, which would affect whoever imports this module
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cameras = dataset.schema.cameras
    if not len(dataset) or not cameras:
        raise DataError(f"{dataset.directory} split {dataset.split}: nothing to draw ({len(dataset)} episodes, {len(cameras)} cameras)")
    chosen = np.unique(np.linspace(0, len(dataset) - 1, episodes).astype(int))
    columns = min(2, len(chosen))
    rows = -(-len(chosen) // columns)
    strip_inches, traces_inches = len(cameras) * (WIDTH_INCHES - 1) / frames, 2 * TRACE_INCHES + GRIPPER_INCHES + GAP_INCHES
    block_inches, between_inches = strip_inches + GAP_INCHES + traces_inches, 3 * GAP_INCHES
    total = block_inches * rows + between_inches * (rows - 1) + 2.0
    figure = Figure(figsize=(WIDTH_INCHES * columns, total), dpi=100)
    FigureCanvasAgg(figure)
    figure.text(0.01, 1 - 0.15 / total, _heading(dataset, spec, 95 * columns), fontsize=10, va="top")
    page = {"left": 0.09 / columns, "right": 1 - 0.03 / columns, "bottom": 0.45 / total, "top": 1 - 1.55 / total}
    blocks = figure.add_gridspec(rows, columns, hspace=between_inches / block_inches, wspace=0.15, **page)
    for position, number in enumerate(chosen):
        halves = blocks[position // columns, position % columns].subgridspec(
            2, 1, height_ratios=(strip_inches, traces_inches), hspace=2 * GAP_INCHES / (strip_inches + traces_inches)
        )
        traces = halves[1].subgridspec(3, 1, height_ratios=(TRACE_INCHES, TRACE_INCHES, GRIPPER_INCHES), hspace=0.15)
        episode = dataset[int(number)]
        shown = whole_clip(len(episode), frames)
        _draw_frames(figure.add_subplot(halves[0]), episode, int(number), dataset, shown, size, spec)
        _draw_actions([figure.add_subplot(trace) for trace in (traces[0], traces[1], traces[2])], episode, dataset, spec, shown)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:] or "png")


def _heading(dataset: RLDSDataset, spec: RobotSpec | None, width: int) -> str:
    """Dataset, rate, action and marks of the row, in lines of at most `width` characters."""
    lines = [f"{dataset.name} {dataset.version}, split {dataset.split}: {len(dataset)} episodes, {dataset.num_steps} steps"]
    if spec is None:
        lines.append(f"not in the registry: column '{ACTION}' as stored")
    else:
        lines[0] += f", {spec.control_hz:g} Hz" if spec.control_hz else ", control rate unknown"
        unused = "; grey: steps without policy examples" if spec.first_step or (spec.action_parts and spec.action_parts.lost_steps) else ""
        lines.append((f"action = {spec.action}" if spec.action_parts else "action as stored") + unused)
        lines += [f"UNVERIFIED, {column}: {why}" for column, why in spec.unverified.items()]
    return "\n".join(part for line in lines for part in textwrap.wrap(line, width))


def _draw_frames(
    axes: Any, episode: Episode, number: int, dataset: RLDSDataset, shown: np.ndarray, size: int, spec: RobotSpec | None
) -> None:
    roles = {key: role for role, key in spec.cameras.items()} if spec else {}
    cameras = dataset.schema.cameras
    strips, labels = [], []
    for camera in (*filter(cameras.__contains__, roles), *sorted(set(cameras) - set(roles))):
        frames = [
            camera_frame(episode, camera, int(step), spec, size) if spec else resize(episode.frame(camera, int(step)), size)
            for step in shown
        ]
        strips.append(np.concatenate(frames, 1))
        blank = " (blank)" if max(frame.std() for frame in frames) < BLANK_SPREAD else ""
        labels.append("\n".join(filter(None, (roles.get(camera, ""), camera.rsplit("/", 1)[-1] + blank))))
    axes.imshow(np.concatenate(strips), aspect="auto", interpolation="nearest")
    for column in range(1, len(shown)):
        axes.axvline(column * size - 0.5, color="white", linewidth=1.5)
    key = next((name for name in dataset.schema.steps if name.endswith(INSTRUCTION_KEYS)), None)
    instructions = list(dict.fromkeys(text for step in range(len(episode)) for text in episode.texts(key, step) or ("",))) if key else []
    quoted = " / ".join(f"“{text}”" if text else "(empty)" for text in instructions)
    lines = textwrap.wrap(quoted or "(no instruction)", 84)[:2]
    seconds = f", {len(episode) / spec.control_hz:.1f} s" if spec and spec.control_hz else ""
    axes.set_title(f"episode {number}, {len(episode)} steps{seconds}\n" + "\n".join(lines), fontsize=10, loc="left", weight="bold")
    axes.set_xticks((np.arange(len(shown)) + 0.5) * size, [f"step {step}" for step in shown], fontsize=8)
    axes.set_yticks((np.arange(len(labels)) + 0.5) * size, labels, fontsize=8, rotation=90, va="center", ha="center")
    axes.tick_params(axis="y", pad=10, length=0)


def _draw_actions(panels: list[Any], episode: Episode, dataset: RLDSDataset, spec: RobotSpec | None, shown: np.ndarray) -> None:
    """Panels of position, rotation and gripper over the steps. Dotted: the images shown; grey: steps without policy examples."""
    actions = _actions(episode, dataset, spec)
    for panel in panels:
        panel.set_xlim(-0.5, len(episode) - 0.5)
        panel.tick_params(labelsize=8)
        panel.tick_params(axis="x", labelbottom=panel is panels[-1])
        for step in shown:
            panel.axvline(step, color="black", linestyle=":", linewidth=0.7, alpha=0.5)
    panels[-1].set_xticks(np.unique(shown))
    panels[-1].set_xlabel("step", fontsize=8, labelpad=1)
    if actions is None:
        panels[0].text(0.5, 0.5, "no flat action column", ha="center", va="center", fontsize=9, transform=panels[0].transAxes)
        return
    steps = np.arange(len(actions))
    if actions.shape[1] != 7:
        for column, values in enumerate(actions.T):
            panels[0].plot(steps, values, linewidth=1, drawstyle="steps-mid", label=str(column))
        panels[0].set_ylabel(f"action\n{actions.shape[1]} numbers", fontsize=8)
        return
    units = spec.units if spec else ("", "")
    for panel, (title, names), unit, first in zip(panels, MOTION, units, (0, 3), strict=False):
        for offset, (name, colour) in enumerate(zip(names, COLOURS, strict=True)):
            panel.plot(steps, actions[:, first + offset], color=colour, linewidth=1.4, drawstyle="steps-mid", label=name)
        panel.axhline(0, color="black", linewidth=0.6)
        panel.set_ylabel(f"Δ {title}\n[{unit or 'unit unknown'}]", fontsize=8)
        panel.legend(fontsize=8, ncol=3, loc="upper right", borderpad=0.2, handlelength=1.2, framealpha=0.8)
        low, high = min(0.0, float(actions[:, first : first + 3].min())), max(0.0, float(actions[:, first : first + 3].max()))
        panel.set_ylim(low - 0.1 * (high - low or 1), high + 0.45 * (high - low or 1))
    _draw_gripper(panels[2], episode, actions[:, 6], spec)
    if spec:
        for panel in panels:
            for start, stop in ((0, spec.first_step), (len(actions), len(episode))):
                if stop > start:
                    panel.axvspan(start - 0.5, stop - 0.5, color="black", alpha=0.12, linewidth=0)


def _draw_gripper(panel: Any, episode: Episode, values: np.ndarray, spec: RobotSpec | None) -> None:
    steps = np.arange(len(values))
    panel.fill_between(steps, values.min(initial=0), values, step="mid", color="black", alpha=0.25, linewidth=0)
    panel.plot(steps, values, color="black", linewidth=1.4, drawstyle="steps-mid")
    parts = spec.action_parts if spec else None
    gripper = parts.grippers.get(6) if parts else None
    raw = None
    if gripper is not None and gripper.key:
        raw = gripper.stored(lambda key: statistics.finite(episode, key))[:, 0]
        panel.plot(raw, color="tab:orange", linestyle="--", linewidth=1.2, label="as stored")
        panel.legend(fontsize=7, loc="center right", borderpad=0.2, handlelength=1.6, framealpha=0.8)
    both = values if raw is None else np.concatenate([values, raw])
    low, high = min(0.0, float(both.min())), max(1.0, float(both.max()))
    panel.set_ylim(low - 0.15 * (high - low), high + 0.15 * (high - low))
    panel.set_ylabel("gripper", fontsize=8)
    if gripper is not None:
        absent = not gripper.key
        panel.set_yticks([0, 1], ["0: no gripper", "1"] if absent else ["0 closed", "1 open"])
    elif spec is not None and 6 in spec.signed_dimensions:
        panel.set_yticks([-1, 1], ["-1 close", "+1 open"])


def _actions(episode: Episode, dataset: RLDSDataset, spec: RobotSpec | None) -> np.ndarray | None:
    """The actions that training uses; without a usable row, the column `action` if it is one vector per step."""
    if spec is not None and not {"action", "gripper"} & set(spec.unsupported):
        return statistics.actions(episode, spec)
    feature = dataset.schema.steps.get(ACTION)
    flat = feature is not None and feature.kind == "tensor" and len(feature.shape) == 1
    return np.asarray(episode.column(ACTION)) if flat else None
