"""A made-up run directory with every part the report knows; small, deterministic, with text that would break unescaped HTML."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from eval.benchmarks.calvin import FIXTURE_TASKS, PARTIAL_NOTE, TASKS
from eval.benchmarks.single_tasks import SingleTasks, summarize
from eval.recording import RolloutWriter
from eval.results import Journal, write_json, write_results

RATES = {"policy": {"A": 0.8, "D": 0.35}, "random": {"A": 0.05, "D": 0.03}, "expert": {"A": 0.99, "D": 0.97}}
NASTY = 'pull the <b>handle</b> & "open" the drawer</script>'


def frames(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """A square that moves over a gradient: uint8 [count size size 3]."""
    base = np.linspace(60, 190, size).astype(np.uint8)
    clip = np.broadcast_to(base[None, :, None, None], (count, size, size, 3)).copy()
    for number in range(count):
        x = int(rng.integers(0, 3)) + number * (size // 2) // count
        clip[number, size // 3 : size // 2, x : x + size // 6] = (200, 60, 40)
    return clip


def evaluation(directory: Path, policy: str, videos: int, episodes: int = 6) -> None:
    rng = np.random.default_rng(len(policy))
    protocol = SingleTasks(("A", "D"), FIXTURE_TASKS, episodes)
    with Journal(directory / "episodes.jsonl") as journal:
        for episode in protocol.all_episodes():
            success = bool(rng.random() < RATES[policy][episode.scene])
            instruction = NASTY if episode.tasks[0] == "open_drawer" else episode.tasks[0].replace("_", " ")
            steps = int(rng.integers(20, 90)) if success else 120
            task = {"task": episode.tasks[0], "instruction": instruction, "success": success, "steps": steps, "chunks": 1}
            record = {"index": episode.index, "scene": episode.scene, "seed": episode.seed, "solved": int(success), "tasks": [task]}
            if episode.index < videos:
                shown = list(range(0, 21, 2))
                images = {"rgb_static": frames(rng, len(shown), 200), "rgb_gripper": frames(rng, len(shown), 84)}
                path = directory / "videos" / f"{episode.index:05d}.mp4"
                RolloutWriter(path, record).add({"images": images, "steps": shown}, last=True)
                record["video"] = f"videos/{path.name}"
            journal.append(record)
        metrics = summarize(journal.records, protocol.scenes, TASKS)
    note = {"partial": True, "note": PARTIAL_NOTE, "scenes": protocol.scenes}
    write_results(
        directory / "results.json",
        metrics=metrics,
        config={"protocol": note, "policy": policy},
        started=1.8e9,
        seconds=30.0,
        command=["vpp", "eval", "calvin"],
        complete=True,
        conditions={"simulator": "calvin_mujoco", "version": "1", "renderer": "egl", "quality": "some", "reset_version": "fixed"},
        simulator={"environment": "calvin_mujoco", "environment_version": "1", "renderer": "egl", "versions": {"mujoco": "3.17.0"}},
    )


def stage(directory: Path, rng: np.random.Generator, clip: np.ndarray) -> None:
    directory.mkdir(parents=True)
    moved = {"motion/correlation": 0.625, "motion/error": 0.75} if directory.name == "video" else {}
    with (directory / "metrics.jsonl").open("w") as file:
        for step in range(0, 1000, 5):
            loss = 0.9 * np.exp(-step / 200) + 0.08 + 0.03 * rng.random()
            entry = {"kind": "train", "step": step, "loss": loss, "learning_rate": 1e-4}
            file.write(json.dumps(entry | {"time/step_ms": 120.0, "time/data_wait_share": 0.02}) + "\n")
            if step % 200 == 0:
                file.write(json.dumps({"kind": "eval", "step": step, "loss": loss * 1.1} | moved) + "\n")
        file.write('{"step": 1000, "lo')  # cut off by a kill
    (directory / "runs.jsonl").write_text('{"step": 0, "compile_s": 12.5}\n{"step": 500, "compile_s": 2.5}\n')
    write_json(directory / "config.json", {"stage": directory.name, "seed": 0, "data": {"datasets": ["calvin_mujoco"]}})
    strip = np.concatenate(list(clip.repeat(2, 1).repeat(2, 2)), axis=1)
    Image.fromarray(strip).save(directory / "first_batch.png")
    (directory / "previews").mkdir()
    for step in (200, 600, 1000):
        Image.fromarray(np.concatenate([strip, 255 - strip])).save(directory / "previews" / f"step_{step:08d}.png")


def fabricate(directory: Path, videos: int = 4) -> Path:
    """Writes the run and returns its directory."""
    rng = np.random.default_rng(0)
    for policy in RATES:
        evaluation(directory / "eval" / policy, policy, videos)
    for name in ("vae", "video", "policy"):
        stage(directory / name, rng, frames(rng, 8, 48))
    attempts = {task: 60 for task in TASKS}
    kept = {task: 60 - number for number, task in enumerate(TASKS)}
    report = {
        "dataset": "calvin_mujoco",
        "version": "1.0.0",
        "settings": {"scenes": ["A", "B", "C"], "seed": 0},
        "attempts": attempts,
        "kept": kept,
        "episodes": {"train": sum(kept.values())},
        "bytes": {"train": 41_300_000},
    }
    write_json(directory / "data" / "build_report.json", report)
    timing = {"data": 84.2, "vae": 101.0, "video": 260.5, "policy": 301.7, "eval_random": 21.0, "eval_expert": 17.5, "eval_policy": 48.1}
    write_json(directory / "timing.json", {name: {"seconds": seconds, "done": True} for name, seconds in timing.items()})
    return directory
