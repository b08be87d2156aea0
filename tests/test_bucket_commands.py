"""Every command that reads or writes a bucket, for real, against an emulated one: the data, three stages, and what is made of them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_pipelines import storage

pytestmark = pytest.mark.slow


@pytest.fixture
def vpp(project, tmp_path, monkeypatch):
    """Runs a command in an empty local directory, with TensorFlow out of its reach."""
    (tmp_path / "no_tensorflow").mkdir()
    (tmp_path / "no_tensorflow" / "tensorflow.py").write_text("raise SystemError('TensorFlow was imported')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'no_tensorflow'}:{project}")
    here = tmp_path / "here"
    here.mkdir()

    def run(*arguments: object) -> str:
        command = [sys.executable, "-m", "vpp_jax", *map(str, arguments)]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        assert not list(tmp_path.rglob("gs:*"))
        return done.stdout

    run.here = here
    return run


def test_a_whole_run_in_a_bucket(bucket, vpp, project, tmp_path, monkeypatch):
    place = f"{bucket}/whole"

    def config(stage: str) -> str:
        return f"--config={project / 'tests' / 'configs' / f'micro_{stage}.py'}"

    def train(stage: str, *overrides: str, data: str = "data") -> None:
        places = (f"--workdir={place}/{stage}", f"--config.data.datasets[0].path={place}/{data}")
        vpp("train", config(stage), *places, "--config.train.steps=2", *overrides)

    size = ("--static_size=48", "--gripper_size=48", "--scenes=A", "--episodes=1", "--val_episodes=1", "--workers=1", "--seed=3")
    vpp("data", "build", "calvin_mujoco", f"--out={place}/data", *size)
    vpp("data", "index", f"{place}/data", f"--index_dir={place}/index")
    assert "record_index-train.npz" in " ".join(storage.list_files(f"{place}/index"))
    with monkeypatch.context() as patch:  # compiled programs then go next to the run
        patch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        train("vae", f"--config.data.index_dir={place}/index")
    assert storage.list_files(f"{place}/.jax_cache")

    latents = (config("video"), f"--config.init.vae={place}/vae")
    vpp("data", "latents", *latents, f"--dataset={place}/data", f"--out={place}/latents", "--batch=8")
    features = json.loads(storage.read(f"{place}/latents/features.json"))
    assert "rgb_static_latent_mean" in json.dumps(features)
    evaluated = ("--config.train.eval_every=2", "--config.train.eval_batches=1")
    train("video", f"--config.init.vae={place}/vae", "--config.data.datasets[0].latents=True", *evaluated, data="latents")
    train("policy", f"--config.init.video={place}/video", "--config.policy_diffusion.feature_draws=0")
    for stage in ("vae", "video", "policy"):
        assert {"config.json", "metrics.jsonl", "runs.jsonl", "train.log"} < storage.list_files(f"{place}/{stage}").keys()
    assert storage.list_files(f"{place}/video/previews")
    assert not list(vpp.here.iterdir())  # a run leaves nothing behind on the machine

    image = tmp_path / "scene.png"
    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(image)
    text = vpp("predict", f"--checkpoint={place}/video", f"--image={image}", "--instruction=open the drawer", "--out=clip.mp4")
    assert json.loads(text)["frames"] == 4

    vpp("convert", "export", f"--checkpoint={place}/video", "--out=video")
    vpp("convert", "export", f"--checkpoint={place}/policy/checkpoints/2", "--out=policy")
    exported = {str(path.relative_to(vpp.here)) for path in vpp.here.rglob("*.safetensors")}
    assert "policy/policy.safetensors" in exported
    assert len(exported) == 4  # and unet, vae, text encoder

    budget = ("--scenes=A", "--tasks=open_drawer", "--episodes=1", "--max_steps=8", "--workers=1")
    vpp("eval", "calvin", f"--checkpoint={place}/policy", "--out=eval", *budget)
    results = json.loads((vpp.here / "eval" / "results.json").read_text())
    assert results["config"]["policy"]["checkpoint"] == f"{place}/policy"
