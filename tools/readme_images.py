"""Draws the images of the README from a finished demo.

    python tools/readme_images.py [--run runs/demo] [--out docs/images]

`demo.gif`: held-out episodes with their instruction; true frames, the video model's prediction from the first of them, and a recorded
closed-loop rollout of the policy with the same task. `report.png`: the first screen of the report in a headless Chromium.
"""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.rlds.dataset import RLDSDataset
from data_pipelines.rlds.windows import strided_clip
from vpp_jax.cli.parser import Parser
from vpp_jax.serving.video_generator import load_video_generator

CAMERA, SCENE = "observation/rgb_static", "A"
SIZE, MARGIN, HEADER, CAPTION = 200, 12, 26, 34
FRAME_SECONDS, HOLD_FRAMES = 0.2, 4
PANELS = ("recorded (held out)", "predicted from the first frame", "policy, closed loop")


@dataclass(frozen=True)
class Rollout:
    """A recorded episode of the policy: uint8 [n h w 3], one frame every `video_stride` control steps."""

    instruction: str
    frames: np.ndarray
    solved: bool


def rollouts(run: Path) -> dict[str, Rollout]:
    """Task -> its recorded rollout in the training scene, solved ones first."""
    journal = [json.loads(line) for line in (run / "eval" / "policy" / "episodes.jsonl").read_text().splitlines()]
    records = {record["index"]: record for record in journal}
    found: dict[str, Rollout] = {}
    for path in sorted((run / "eval" / "policy" / "videos").glob(f"*_{SCENE}_*.mp4")):
        record = records[int(path.name.split("_")[0])]
        task = record["tasks"][0]
        with av.open(str(path)) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        if not found.get(task["task"]) or not found[task["task"]].solved:
            found[task["task"]] = Rollout(task["instruction"], frames[:, :SIZE, :SIZE], bool(task["success"]))
    return found


def examples(run: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray, Rollout]]:
    """(instruction, true clip, predicted clip, rollout) per task with a recorded rollout, solved ones first; clips are uint8 [t h w 3]."""
    generator, dataset, recorded = load_video_generator(run / "video"), RLDSDataset(run / "data", "val"), rollouts(run)
    model, data = generator.config.model, generator.config.data
    in_scene = (episode for episode in dataset if str(episode.metadata("episode_metadata/scene")) == SCENE)
    episodes = {str(episode.metadata("episode_metadata/task")): episode for episode in in_scene}
    for task, rollout in sorted(recorded.items(), key=lambda item: (not item[1].solved, item[0])):
        if task in episodes:
            episode = episodes[task]
            steps = strided_clip(len(episode), 0, model.frames, data.clip_stride)
            true = np.stack([episode.frame(CAMERA, int(step)) for step in steps])
            instruction = episode.text("language_instruction")
            yield instruction, true, generator.generate(true[0], instruction), rollout


def panel(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def animation(run: Path, count: int) -> list[Image.Image]:
    """Frames of the GIF. All three panels advance four control steps per frame; clips stop at their last frame."""
    title, text = ImageFont.load_default(13), ImageFont.load_default(16)
    width, height = 3 * SIZE + 4 * MARGIN, HEADER + SIZE + CAPTION
    drawn = []
    for instruction, true, predicted, rollout in list(examples(run))[:count]:
        moving = rollout.frames[::2]
        for step in range(len(moving) + HOLD_FRAMES):
            canvas = Image.new("RGB", (width, height), "white")
            draw = ImageDraw.Draw(canvas)
            clip = min(step, len(true) - 1)
            shown = (true[clip], predicted[clip], moving[min(step, len(moving) - 1)])
            for column, (name, image) in enumerate(zip(PANELS, shown, strict=True)):
                left = MARGIN + column * (SIZE + MARGIN)
                draw.text((left, 6), name, fill="#444444", font=title)
                canvas.paste(panel(image), (left, HEADER))
            draw.text((MARGIN, HEADER + SIZE + 8), f'"{instruction}"', fill="black", font=text)
            drawn.append(canvas)
    return drawn


def save_gif(frames: list[Image.Image], path: Path) -> None:
    palette = frames[len(frames) // 2].quantize(96)
    first, *rest = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    first.save(path, save_all=True, append_images=rest, duration=round(1000 * FRAME_SECONDS), loop=0, optimize=True)


def save_screenshot(page: Path, path: Path) -> None:
    """The top of the report as a browser shows it, 1200 pixels wide."""
    size = "--window-size=1200,900"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size, f"--screenshot={path.resolve()}"]
    subprocess.run([*command, page.resolve().as_uri()], check=True, timeout=300, stderr=subprocess.DEVNULL)
    with Image.open(path) as image:
        image.convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(path, optimize=True)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_output("--out", default=Path("docs/images"))
    parser.add_argument("--examples", type=int, default=4, help="tasks in the animation")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    save_gif(animation(options.run, options.examples), options.out / "demo.gif")
    save_screenshot(options.run / "report" / "index.html", options.out / "report.png")


if __name__ == "__main__":
    main()
