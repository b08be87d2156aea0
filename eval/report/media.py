"""Rollout videos, predicted frames and first batches, embedded in the page. All text from files is escaped here."""

import base64
import io
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from eval.errors import EvaluationError
from eval.report.collect import Run, StageRun
from eval.report.wording import POLICY_TITLES, STAGE_TITLES, absent

VIDEOS_SHOWN = 16
MAX_PNG_BYTES = 1_500_000  # larger PNGs are embedded as JPEG


def rollouts(run: Run) -> str:
    videos_of = {name: evaluation.videos for name, evaluation in run.evaluations.items()}
    if not any(videos_of.values()):
        return absent("rollout videos", "eval/*/videos/*.mp4")
    parts = []
    for name, videos in videos_of.items():
        if not videos:
            continue
        shown = "".join(_video(record, path) for record, path in videos[:VIDEOS_SHOWN])
        more = f'<p class="hint">{len(videos) - VIDEOS_SHOWN} more are in the run directory.</p>' if len(videos) > VIDEOS_SHOWN else ""
        grid = f'<div class="grid videos">{shown}</div>{more}'
        title = POLICY_TITLES.get(name, name).capitalize()
        if parts:  # the first policy is shown, the others can be expanded
            parts.append(f"<details><summary>{escape(title)} ({len(videos)} videos)</summary>{grid}</details>")
        else:
            parts.append(f"<h3>{escape(title)}</h3>{grid}")
    return f'<div class="card">{"".join(parts)}</div>'


def _video(record: Mapping[str, Any], path: Path) -> str:
    source = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
    tasks = record["tasks"]
    instruction = " → ".join(task["instruction"] for task in tasks)
    solved = all(task["success"] for task in tasks)
    steps = sum(task["steps"] for task in tasks)
    outcome = f"solved after {steps} steps" if solved else f"not solved within {steps} steps"
    scene = f"scene {record['scene']}, " if record.get("scene") else ""
    return (
        f'<figure><video src="{source}" controls autoplay muted loop playsinline></video><figcaption><b>{escape(instruction)}</b><br>'
        f'{escape(scene)}<span class="{"solved" if solved else "failed"}">{escape(outcome)}</span></figcaption></figure>'
    )


def predictions(run: Run) -> str:
    stages = [stage for stage in run.stages.values() if stage.previews]
    if not stages:
        return absent("predicted and true frames", "video/**/*.png")
    order = sorted(stages, key=lambda stage: ("video", "vae", "policy").index(stage.name))
    return "".join(_previews(stage) for stage in order)


def _previews(stage: StageRun) -> str:
    *earlier, last = stage.previews
    parts = [f"<h3>{escape(STAGE_TITLES.get(stage.name, stage.name))}</h3>{_image(last, step_caption(last))}{_motion(stage)}"]
    if earlier:
        chosen = [earlier[0], earlier[len(earlier) // 2]] if len(earlier) > 1 else earlier
        images = "".join(_image(path, step_caption(path)) for path in dict.fromkeys(chosen))
        parts.append(f"<details><summary>Earlier in training</summary>{images}</details>")
    return f'<div class="card">{"".join(parts)}</div>'


def _motion(stage: StageRun) -> str:
    """`vpp_jax.training.motion` of held-out clips at the last evaluation."""
    ends = [stage.curves[f"eval/motion/{name}"][1][-1] for name in ("correlation", "error") if f"eval/motion/{name}" in stage.curves]
    if len(ends) < 2:
        return ""
    return (
        f'<p class="hint">Motion of held-out clips, first to last frame: predicted and true change correlate with {ends[0]:.2f} (1: '
        f"equal, 0: a still image); where something moves, the last frame's error is {ends[1]:.2f} times that of a still image.</p>"
    )


def step_caption(path: Path) -> str:
    """'preview_000400' -> 'preview, step 400'."""
    match = re.fullmatch(r"(.*?)[_\-.]?(?:step)?[_\-]?(\d+)", path.stem)
    if match is None:
        return path.stem.replace("_", " ")
    words = match[1].replace("_", " ").strip()
    return f"{words}, step {int(match[2])}" if words else f"step {int(match[2])}"


def _image(path: Path, caption: str) -> str:
    data, kind = path.read_bytes(), "png"
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            width, height = image.size
            if len(data) > MAX_PNG_BYTES:
                buffer = io.BytesIO()
                image.convert("RGB").save(buffer, "JPEG", quality=88)
                data, kind = buffer.getvalue(), "jpeg"
    except (OSError, SyntaxError) as error:
        raise EvaluationError(f"{path} is no PNG image, or it is damaged ({error})") from error
    wide = " wide" if width > 1.4 * height else ""
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return (
        f'<figure><div class="scroll" tabindex="0"><img class="strip{wide}" src="{source}" width="{width}" height="{height}" '
        f'alt="{escape(caption)}"></div><figcaption>{escape(caption)}</figcaption></figure>'
    )


def first_batches(run: Run) -> str:
    stages = [stage for stage in run.stages.values() if stage.first_batch]
    if not stages:
        return absent("first training batches", "STAGE/first_batch.png")
    cards = []
    for stage in stages:
        assert stage.first_batch is not None
        image = _image(stage.first_batch, "first batch, as the model gets it")
        cards.append(f'<div class="card"><h3>{escape(STAGE_TITLES[stage.name])}</h3>{image}</div>')
    return "".join(cards)
