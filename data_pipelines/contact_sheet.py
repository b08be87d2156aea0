"""A page of training windows with their sentence and actions, for a person to check."""

from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.rlds.dataset import Episode, RLDSDataset
from data_pipelines.rlds.schema import ACTION, LANGUAGE_INSTRUCTION
from data_pipelines.rlds.windows import whole_clip
from data_pipelines.transforms import resize

MOTION = ("x", "y", "z", "roll", "pitch", "yaw")


def draw(dataset: RLDSDataset, path: Path, *, episodes: int = 6, frames: int = 8, size: int = 96) -> None:
    """Writes a PNG: one block per episode, one row per camera, the actions below.

    Args:
      dataset: any RLDS dataset; `episodes` of it are chosen evenly.
      frames: pictures per row, spread over the episode.
    """
    # Agg: no display is needed, and no backend is chosen for whoever imports this
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cameras = sorted(dataset.schema.cameras)
    if not len(dataset) or not cameras:
        raise DataError(f"{dataset.directory} split {dataset.split}: nothing to draw ({len(dataset)} episodes, {len(cameras)} cameras)")
    chosen = np.unique(np.linspace(0, len(dataset) - 1, episodes).astype(int))
    columns = min(2, len(chosen))
    rows = -(-len(chosen) // columns)
    strip_height, trace_height, margin = len(cameras) * 7.0 / frames, 1.2, 0.7  # inches
    total = (strip_height + trace_height + 0.6) * rows + margin
    figure = Figure(figsize=(7.8 * columns, total), dpi=100)
    FigureCanvasAgg(figure)
    title = f"{dataset.name} {dataset.version}, split {dataset.split}: {len(dataset)} episodes, {dataset.num_steps} steps"
    figure.suptitle(title, fontsize=11, y=1 - 0.2 / total)
    page = {"left": 0.04, "right": 0.96, "bottom": 0.45 / total, "top": 1 - margin / total}
    blocks = figure.add_gridspec(rows, columns, hspace=0.18, wspace=0.13, **page)
    sentences = next((name for name in dataset.schema.steps if name.endswith((LANGUAGE_INSTRUCTION, "natural_language_instruction"))), None)
    for place, number in enumerate(chosen):
        episode = dataset[int(number)]
        steps = whole_clip(len(episode), frames)
        block = blocks[place // columns, place % columns].subgridspec(2, 1, height_ratios=(strip_height, trace_height), hspace=0.16)
        strip = [np.concatenate([resize(episode.frame(camera, int(step)), size) for step in steps], 1) for camera in cameras]
        pictures = figure.add_subplot(block[0])
        pictures.imshow(np.concatenate(strip), aspect="auto", interpolation="nearest")
        sentence = episode.text(sentences, 0) if sentences else ""
        pictures.set_title(f"episode {number}, {len(episode)} steps: {sentence or '(no sentence)'}", fontsize=8, loc="left")
        pictures.set_xticks((np.arange(frames) + 0.5) * size, [str(step) for step in steps], fontsize=6)
        names = [camera.rsplit("/", 1)[-1] for camera in cameras]
        pictures.set_yticks((np.arange(len(cameras)) + 0.5) * size, names, fontsize=6, rotation=90, va="center")
        _draw_actions(figure.add_subplot(block[1]), episode, dataset)
    figure.savefig(path)


def _draw_actions(axes, episode: Episode, dataset: RLDSDataset) -> None:
    """Motion on the left axis; the last of seven dimensions, the gripper, on the right one: its range would flatten the others."""
    axes.tick_params(labelsize=6)
    feature = dataset.schema.steps.get(ACTION)
    if feature is None or feature.kind != "tensor" or len(feature.shape) != 1:
        axes.text(0.5, 0.5, "no flat action column", ha="center", va="center", fontsize=7, transform=axes.transAxes)
        return
    actions = np.asarray(episode.column(ACTION))
    seven = actions.shape[1] == len(MOTION) + 1
    motion = actions[:, :len(MOTION)] if seven else actions
    for column, name in zip(motion.T, MOTION if seven else map(str, range(motion.shape[1])), strict=True):
        axes.plot(column, label=name, linewidth=1, drawstyle="steps-post")
    axes.set_xlim(0, max(len(actions) - 1, 1))
    axes.grid(alpha=0.3)
    if seven:
        gripper = axes.twinx()
        gripper.plot(actions[:, -1], color="black", linewidth=1, linestyle=":", drawstyle="steps-post", label="gripper (right)")
        low, high = min(0.0, float(actions[:, -1].min())), max(1.0, float(actions[:, -1].max()))
        gripper.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
        gripper.tick_params(labelsize=6)
        lines = [*axes.get_lines(), *gripper.get_lines()]
        labels = [line.get_label() for line in lines]
        axes.legend(lines, labels, fontsize=5, ncol=len(lines), loc="lower center", bbox_to_anchor=(0.5, -0.32), frameon=False)
