"""Verbs on places that are not as they expect: read-only, in the way, with odd names, behind links, on a full disk."""

import ctypes
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from vpp_jax.cli.main import main

ODD_NAME = "with space [x] 100% %s"


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """A directory of two captioned videos."""
    root = tmp_path_factory.mktemp("videos")
    for name in ("a", "b"):
        with av.open(str(root / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=8)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for number in range(4):
                image = np.full((32, 32, 3), 60 * number, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        (root / f"{name}.txt").write_text("open it")
    return root


def build(videos: Path, out: Path) -> list[str]:
    flags = ("--layout=folder", "--size=16", "--workers=0", "--val_fraction=0")
    return ["data", "build", "human_video", f"--source={videos}", f"--out={out}", *flags]


@pytest.fixture(scope="module")
def dataset(videos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / ODD_NAME / "videos"
    assert main(build(videos, out)) == 0
    (out.parent / "timing.json").write_text(json.dumps({"data": {"seconds": 1.0, "done": True, "command": ["vpp", "data"]}}))
    return out


def commands(videos: Path, dataset: Path, place: Path) -> dict[str, list[str]]:
    """Commands that write into or below `place`, a directory that they make."""
    chains = ["eval", "calvin", "--sequences=2"]
    return {
        "build": build(videos, place),
        "index": ["data", "index", str(dataset), f"--index_dir={place}"],
        "inspect": ["data", "inspect", str(dataset), f"--json={place / 'a.json'}", f"--png={place / 'a.png'}"],
        "dump": [*chains, f"--dump={place / 'chains.json'}"],
        "report": ["report", str(dataset.parent), f"--out={place / 'page.html'}"],
        "predict": ["predict", "--checkpoint=absent", "--image=absent.png", "--instruction=open", f"--out={place / 'v.mp4'}"],
        "train": ["train", "--config=configs/tiny_calvin_vae.py", f"--workdir={place}", "--config.data.datasets[0].path=absent"],
        "demo": ["demo", f"--workdir={place}", "--minutes=0.01"],
        "import": ["convert", "import", "--vae=absent", f"--out={place}"],
    }


NEED_MORE = ("predict", "train", "demo", "import")  # than this test has: they get as far as their inputs
VERBS = ("build", "index", "inspect", "dump", "report", *NEED_MORE)


def fails(argv: list[str], capsys) -> str:
    """The one paragraph of a command that must fail."""
    capsys.readouterr()
    assert main(argv) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("vpp: ")
    assert "Traceback" not in error
    return " ".join(error.split())


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in NEED_MORE])
def test_odd_names_and_links(verb, videos, dataset, tmp_path, capsys):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for place in (tmp_path / ODD_NAME, tmp_path / "link" / "below"):
        main(commands(videos, dataset, place)[verb])
        assert "Traceback" not in capsys.readouterr().err
        assert any(path.is_file() for path in place.rglob("*"))
    assert any(path.is_file() for path in (tmp_path / "real").rglob("*"))


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "demo"])
@pytest.mark.parametrize("in_the_way", ["file", "broken link", "loop"])
def test_something_stands_where_the_directory_would_be(verb, in_the_way, videos, dataset, tmp_path, capsys):
    place = tmp_path / "place"
    if in_the_way == "file":
        place.write_bytes(b"")
    else:
        place.symlink_to(place if in_the_way == "loop" else tmp_path / "gone" / "x")
        if in_the_way == "broken link":
            (tmp_path / "gone").write_bytes(b"")
    error = fails(commands(videos, dataset, place)[verb], capsys)
    if verb not in ("import",):  # its own input is missing first
        assert str(place) in error or "gone" in error, error


@pytest.mark.parametrize("verb", ["inspect", "dump", "report", "predict"])
def test_a_directory_stands_where_the_file_would_be(verb, videos, dataset, tmp_path, capsys):
    for name in ("a.json", "a.png", "chains.json", "page.html", "v.mp4"):
        (tmp_path / name).mkdir()
    assert "a directory stands where a file is expected" in fails(commands(videos, dataset, tmp_path)[verb], capsys)


@pytest.mark.parametrize("verb", ["inspect", "dump", "report", "build", "index"])
def test_a_full_disk(verb, videos, dataset, tmp_path, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        code = main(commands(videos, dataset, tmp_path / "place")[verb])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("*.tmp"))
    if verb == "index":  # works without storing its index
        assert code == 0
    else:
        assert code == 1
        assert "What was complete before is unharmed" in " ".join(error.split())
    assert main(commands(videos, dataset, tmp_path / "place")[verb]) in (0, 1)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"])
def test_empty_and_damaged_inputs(content, tmp_path, capsys):
    path = tmp_path / "input"
    path.write_bytes(content)
    (tmp_path / "data").mkdir()
    for name in ("dataset_info.json", "features.json"):
        (tmp_path / "data" / name).write_bytes(content)
    for name in ("config.json", "weights.pt", "model.safetensors", "video.mp4"):
        (tmp_path / name).write_bytes(content)
    out = f"--out={tmp_path / 'out'}"
    for argv in (
        ["data", "inspect", str(tmp_path / "data")],
        ["data", "stats", str(tmp_path / "data")],
        ["data", "index", str(path)],
        ["train", f"--config={tmp_path / 'config.json'}", f"--workdir={tmp_path / 'run'}"],
        ["predict", f"--checkpoint={path}", f"--image={path}", "--instruction=open", f"--out={tmp_path / 'v.mp4'}"],
        ["convert", "import", f"--vae={tmp_path / 'weights.pt'}", out],
        ["convert", "import", f"--vae={tmp_path / 'model.safetensors'}", out],
        ["convert", "export", f"--checkpoint={path}", out],
        ["data", "build", "calvin", f"--source={path}", out],
        ["data", "build", "human_video", "--layout=folder", f"--source={tmp_path}", out],
        ["eval", "calvin", f"--checkpoint={path}", out],
        ["report", str(path)],
    ):
        fails(argv, capsys)


def obey_permissions() -> None:
    """If this process is root: permissions of files bind what it starts from now on (no CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)."""
    if os.getuid() == 0:
        for capability in (1, 2):
            assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP


@pytest.mark.slow
def test_read_only_directories(videos, dataset, project, tmp_path):
    place = tmp_path / "protected"
    place.mkdir()
    place.chmod(0o555)
    environment = os.environ | {"PYTHONPATH": str(project), "HOME": "/nonexistent", "JAX_PLATFORMS": "cpu"}
    for verb, argv in commands(videos, dataset, place / "below").items():
        command = [sys.executable, "-m", "vpp_jax", *argv]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=project, env=environment, check=False, timeout=300, preexec_fn=obey_permissions
        )
        assert "Traceback" not in done.stderr, (verb, done.stderr)
        assert done.returncode in ((0, 1) if verb == "index" else (1,)), (verb, done.stderr)  # an index that is not stored is made again
        if verb != "index":
            assert done.stderr.strip().count("\n\n") == 0
            assert json.dumps(done.stderr)
    assert not list(place.iterdir())
