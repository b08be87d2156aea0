"""The real commands, one after the other, with the smallest model: build, three stages, kill and resume, closed loop, report."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from vpp_jax.cli.main import main
from vpp_jax.parallel.mesh import make_mesh
from vpp_jax.training.checkpoint_writing import Checkpoints
from vpp_jax.training.checkpoints import complete_steps, read_metadata
from vpp_jax.training.stages.registry import make_stage
from vpp_jax.training.state import Trainer

pytestmark = pytest.mark.medium
CONFIGS = Path("tests/configs")


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "vpp_jax", *map(str, arguments)]


def vpp(*arguments, project: Path) -> subprocess.CompletedProcess:
    done = subprocess.run(command(*arguments), cwd=project, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def train(stage: str, run: Path, *overrides: str, project: Path) -> None:
    paths = (f"--workdir={run / stage}", f"--config.data.datasets[0].path={run / 'data'}")
    vpp("train", f"--config={CONFIGS / f'micro_{stage}.py'}", *paths, *overrides, project=project)


def metrics(workdir: Path) -> list[dict]:
    """metrics.jsonl without timings."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


@pytest.fixture(scope="module")
def run(tmp_path_factory, project) -> Path:
    """A directory with data and the three trained stages."""
    directory = tmp_path_factory.mktemp("run")
    size = ("--static_size=48", "--gripper_size=48", "--scenes=A", "--episodes=1", "--val_episodes=1", "--workers=1", "--seed=3")
    vpp("data", "build", "calvin_mujoco", f"--out={directory / 'data'}", *size, project=project)
    train("vae", directory, project=project)
    train("video", directory, f"--config.init.vae={directory / 'vae'}", "--config.train.save_every=2", project=project)
    train("policy", directory, f"--config.init.video={directory / 'video'}", project=project)
    return directory


def test_each_stage_hands_over_to_the_next(run):
    vae, video, policy = (read_metadata(run / stage) for stage in ("vae", "video", "policy"))
    assert video["latent_scaling_factor"] == pytest.approx(vae["latent_scaling_factor"])
    assert vae["latent_scaling_factor"] > 0
    assert policy["finished"]
    for stage in ("vae", "video", "policy"):
        assert (run / stage / "first_batch.png").stat().st_size > 0
        losses = [line["loss"] for line in metrics(run / stage) if "loss" in line]
        assert len(losses) == 6
        assert np.isfinite(losses).all()


def test_a_killed_run_ends_as_if_nothing_had_happened(run, project, tmp_path):
    """kill -9 after a checkpoint, then SIGTERM, then to the end: parameters, EMA, optimizer state, data order and losses are equal."""
    workdir = tmp_path / "video"
    arguments = command(
        "train",
        f"--config={CONFIGS / 'micro_video.py'}",
        f"--workdir={workdir}",
        f"--config.data.datasets[0].path={run / 'data'}",
        f"--config.init.vae={run / 'vae'}",
        "--config.train.save_every=2",
        f"--compilation_cache={tmp_path / 'cache'}",
    )
    for stop, wanted in ((signal.SIGKILL, 2), (signal.SIGTERM, 3)):
        process = subprocess.Popen(arguments, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline and last_logged(workdir) < wanted:
            time.sleep(0.005)
        process.send_signal(stop)
        process.wait(timeout=120)
    assert subprocess.run(arguments, cwd=project, capture_output=True, timeout=300).returncode == 0
    assert metrics(workdir) == metrics(run / "video")
    whole, resumed = (restored(directory) for directory in (run / "video", workdir))
    for (path, one), (_, other) in zip(*(jax.tree_util.tree_leaves_with_path(state) for state in (whole, resumed)), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=str(path))


def last_logged(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


def restored(workdir: Path):
    """The training state and the data position of the newest checkpoint."""
    from vpp_jax.config import from_config_dict

    step = max(complete_steps(workdir / "checkpoints"))
    assert step == 6
    config = from_config_dict(read_metadata(workdir)["config"])
    trainer, mesh = Trainer(make_stage(config)), make_mesh(config.mesh)
    checkpoints = Checkpoints(workdir / "checkpoints", max_to_keep=1)
    return checkpoints.restore(step, trainer.abstract, trainer.shardings(mesh)), checkpoints.data_state(step)


def test_closed_loop_and_report(run, project):
    budget = ("--scenes=A", "--tasks=open_drawer,turn_on_led", "--episodes=1", "--max_steps=12", "--workers=2")
    vpp("eval", "calvin", f"--checkpoint={run / 'policy'}", f"--out={run / 'eval' / 'policy'}", *budget, "--num_videos=2", project=project)
    vpp("eval", "calvin", "--policy=random", f"--out={run / 'eval' / 'random'}", *budget, project=project)
    results = json.loads((run / "eval" / "policy" / "results.json").read_text())
    assert results["schema_version"] >= 1
    journal = [json.loads(line) for line in (run / "eval" / "policy" / "episodes.jsonl").read_text().splitlines()]
    assert sorted(line["tasks"][0]["task"] for line in journal) == ["open_drawer", "turn_on_led"]
    assert all(line["tasks"][0]["steps"] <= 12 for line in journal)
    vpp("report", str(run), project=project)
    page = (run / "report" / "index.html").read_text()
    assert "open_drawer" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_predict_writes_a_clip(run, project, tmp_path):
    import av
    from PIL import Image

    image = tmp_path / "scene.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8)).save(image)
    out = tmp_path / "clip.mp4"
    vpp("predict", f"--checkpoint={run / 'video'}", f"--image={image}", "--instruction=open the drawer", f"--out={out}", project=project)
    with av.open(str(out)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.stack(frames).shape == (4, 32, 32, 3)
    with Image.open(out.with_suffix(".png")) as strip:
        assert strip.width >= 4 * 96


# --- errors: one paragraph that names the culprit, exit code 1 or 2, no traceback -----------------------------------------------------


def refused(capsys, *arguments) -> str:
    assert main([*map(str, arguments)]) in (1, 2)
    text = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in text
    return text


def test_unknown_config_key(run, capsys):
    text = refused(capsys, "train", f"--config={CONFIGS / 'micro_vae.py'}", f"--workdir={run / 'x'}", "--config.optimizer.learning_rat=1")
    assert "learning_rat" in text
    assert "learning_rate" in text


def test_missing_dataset(run, capsys, tmp_path):
    absent = tmp_path / "nowhere"
    text = refused(
        capsys, "train", f"--config={CONFIGS / 'micro_vae.py'}", f"--workdir={tmp_path / 'w'}", f"--config.data.datasets[0].path={absent}"
    )
    assert str(absent) in text


def policy_refused(capsys, run, tmp_path, video: str, *overrides: str) -> str:
    """The error of stage policy on top of work directory `video`."""
    places = (f"--workdir={tmp_path / 'w'}", f"--config.data.datasets[0].path={run / 'data'}", f"--config.init.video={run / video}")
    return refused(capsys, "train", f"--config={CONFIGS / 'micro_policy.py'}", *places, *overrides)


def test_checkpoint_of_another_stage(run, capsys, tmp_path):
    text = policy_refused(capsys, run, tmp_path, "vae")
    assert "holds stage vae, expected video" in text


def test_checkpoint_of_a_model_that_computes_something_else(run, capsys, tmp_path):
    text = policy_refused(capsys, run, tmp_path, "video", "--config.model.vae.norm_groups=2")
    assert "model.vae.norm_groups is 2, trained with 4" in text  # every tensor still has its shape


def test_a_text_encoder_trained_with_the_unet_is_no_goal_encoder(run, capsys, tmp_path):
    text = policy_refused(capsys, run, tmp_path, "video", "--config.model.text_trainable=False")
    assert f"{run / 'video'} trained its text encoder" in text
    assert "Turn model.text_trainable on" in text


def test_dataset_with_another_action_width(run, capsys, tmp_path):
    other = tmp_path / "data"
    shutil.copytree(run / "data", other)
    features = other / "features.json"
    tree = features.read_text()
    assert tree.count('"7"') >= 2
    features.write_text(tree.replace('"7"', '"5"'))
    text = refused(
        capsys,
        "train",
        f"--config={CONFIGS / 'micro_policy.py'}",
        f"--workdir={tmp_path / 'w'}",
        f"--config.data.datasets[0].path={other}",
        f"--config.init.video={run / 'video'}",
    )
    assert "action" in text
    assert "5" in text
    assert "7" in text


def test_corrupt_shard(run, capsys, tmp_path):
    other = tmp_path / "data"
    shutil.copytree(run / "data", other, ignore=shutil.ignore_patterns("*index*"))
    shard = next(other.glob("*train.tfrecord*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    text = refused(
        capsys, "train", f"--config={CONFIGS / 'micro_vae.py'}", f"--workdir={tmp_path / 'w'}", f"--config.data.datasets[0].path={other}"
    )
    assert shard.name in text
    assert os.sep in text


# --- real robot data ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_video_stage_trains_on_a_real_open_x_shard(bridge_dataset, project, tmp_path):
    """BridgeData V2, 40 steps: the loss falls, and strips of predicted frames are written."""
    data = (f"--config.data.datasets[0].path={bridge_dataset / '1.0.0'}", f"--config.data.index_dir={tmp_path / 'index'}")
    vae, video = tmp_path / "vae", tmp_path / "video"
    vpp("train", f"--config={CONFIGS / 'micro_bridge_vae.py'}", f"--workdir={vae}", *data, project=project)
    more = (f"--config.init.vae={vae}", "--config.train.eval_every=40", "--config.train.eval_batches=1")
    vpp("train", f"--config={CONFIGS / 'micro_bridge_video.py'}", f"--workdir={video}", *data, *more, project=project)
    losses = [line["loss"] for line in metrics(video) if "learning_rate" in line]
    assert len(losses) == 40
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    assert list((video / "previews").glob("*.png"))
