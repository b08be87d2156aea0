"""The `vpp` command: verbs, exit codes, and one paragraph per mistake."""

import importlib
import json
import re
import sys
import types
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from PIL import Image

from data_pipelines import storage
from data_pipelines.config import DatasetConfig
from data_pipelines.errors import DataError, ReadFailedError, WriteFailedError
from data_pipelines.storage import Retry
from vpp_jax.cli import config_flag
from vpp_jax.cli import main as cli
from vpp_jax.cli.config_flag import add_config_flag, load_config, parse
from vpp_jax.cli.config_help import show
from vpp_jax.cli.main import VERBS, UsageError, main, paragraph
from vpp_jax.cli.parser import Parser
from vpp_jax.cli.train import restart_helps
from vpp_jax.common.config_fields import settings
from vpp_jax.common.errors import VppError
from vpp_jax.config import ConfigError, ExperimentConfig, default_config, from_config_dict, to_json
from vpp_jax.training.distributed import MissingProcessError


@pytest.fixture
def config_file(tmp_path):
    config = default_config()
    config.stage = "video"
    path = tmp_path / "config.json"
    path.write_text(to_json(from_config_dict(config.to_dict() | {"data": {"datasets": [{"path": "here"}]}})))
    return path


@pytest.fixture
def verb(monkeypatch):
    """Puts a verb of our own in place: verb(function)."""

    def put(function):
        monkeypatch.setitem(VERBS, "ours", "a verb for this test")
        module = types.ModuleType("vpp_jax.cli.ours")
        module.main = function
        monkeypatch.setitem(sys.modules, "vpp_jax.cli.ours", module)

    return put


def test_help_lists_every_verb(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text and line in text for name, line in VERBS.items())
    assert main([]) == 2


def test_every_verb_has_a_module_that_explains_itself():
    for name in VERBS:
        module = importlib.import_module(f"vpp_jax.cli.{name}")
        assert callable(module.main)
        assert f"vpp {name}" in module.__doc__


def test_unknown_verb(capsys):
    assert main(["trian"]) == 2
    assert "there is no verb 'trian', did you mean 'train'?" in capsys.readouterr().err


def test_a_missing_optional_package_names_its_extra(verb, capsys):
    def needs(name):
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    verb(lambda argv: needs(*argv))
    assert main(["ours", "mujoco"]) == 1
    assert "pip install 'vpp_jax[sim]'" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ModuleNotFoundError):  # a defect of ours keeps its traceback
        main(["ours", "vpp_jax.no_such_module"])


def test_exit_code_and_arguments_are_the_verb_s(verb):
    verb(lambda argv: len(argv))
    assert main(["ours", "a", "--b"]) == 2


def test_user_errors_are_one_paragraph(verb, capsys, tmp_path):
    def fail(argv):
        raise VppError("the cat sat " * 30)

    verb(fail)
    assert main(["ours"]) == 1
    text = capsys.readouterr().err
    assert text.startswith("vpp: the cat sat")
    assert "Traceback" not in text
    assert main(["ours", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err

    verb(lambda argv: (tmp_path / "absent").read_text())
    assert main(["ours"]) == 1
    assert "absent" in capsys.readouterr().err


def test_defects_keep_their_traceback(verb):
    verb(lambda argv: [][0])
    with pytest.raises(IndexError):
        main(["ours"])


def test_control_c(verb, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    verb(interrupted)
    assert main(["ours"]) == 130
    assert capsys.readouterr().err.strip() == "stopped"


def test_paragraph_wraps_but_keeps_paths_whole():
    path = "/a/" + "very/" * 30 + "long-path"
    assert path in paragraph(VppError(f"{'word ' * 30}{path}"))
    assert max(map(len, paragraph(VppError("word " * 60)).splitlines())) <= 110


# --- --config and its overrides -----------------------------------------------------------------------------------------------------


def parser() -> Parser:
    made = Parser(prog="vpp test")
    add_config_flag(made)
    made.add_output("--workdir")
    return made


@pytest.mark.parametrize(
    ("flag", "field", "expected"),
    [
        ("--config.train.steps=7", "train.steps", 7),
        ("--config.train.steps 7", "train.steps", 7),
        ("--config.mesh.data -1", "mesh.data", -1),
        ("--config.train.wandb", "train.wandb", True),
        ("--config.train.progress=false", "train.progress", False),
        ("--config.train.progress False", "train.progress", False),
        ("--config.optimizer.learning_rate=3", "optimizer.learning_rate", 3.0),
        ("--config.model.views=('a','b')", "model.views", ("a", "b")),
        ("--config.model.views=a", "model.views", ("a",)),
        ("--config.model.views=a,b", "model.views", ("a", "b")),
        ("--config.model.views=()", "model.views", ()),
        ("--config.model.views=['a']", "model.views", ("a",)),
        ("--config.optimizer.trainable=(unet|text)/.*", "optimizer.trainable", ("(unet|text)/.*",)),
        ("--config.model.tap_blocks=(0,)", "model.tap_blocks", (0,)),
        ("--config.model.tap_blocks 0,2", "model.tap_blocks", (0, 2)),
        ("--config.optimizer.betas=(0.5,0.75)", "optimizer.betas", (0.5, 0.75)),
        ("--config.model.unet.attention_levels=true,True,false,false", "model.unet.attention_levels", (True, True, False, False)),
        ("--config.init.vae=runs/x=1", "init.vae", "runs/x=1"),
    ],
)
def test_overrides(config_file, flag, field, expected):
    config, options = parse(parser(), ["--config", str(config_file), *flag.split(" "), "--workdir=w"])
    value = config
    for name in field.split("."):
        value = getattr(value, name)
    assert value == expected
    assert options.workdir == Path("w")
    assert config.stage == "video"


def test_fields_of_datasets_can_be_overridden(config_file):
    flags = ["--config.data.datasets[0].path=there", "--config.data.datasets[0].weight=2"]
    config, _ = parse(parser(), [f"--config={config_file}", *flags])
    assert (config.data.datasets[0].path, config.data.datasets[0].weight) == ("there", 2.0)


def test_evaluators_of_a_mixture_name_its_members(tmp_path, monkeypatch):
    tree = default_config().to_dict() | {"stage": "video"}
    tree["data"] |= {"mixture": "vpp_released"}
    tree["train"] |= {"evaluators": ({"kind": "loss", "dataset": "calvin"},)}
    path = tmp_path / "config.json"
    path.write_text(to_json(from_config_dict(tree)))
    members = (DatasetConfig("here", "calvin"),)
    monkeypatch.setattr(config_flag, "expand", lambda data, columns: replace(data, datasets=members, mixture=""))
    config, _ = parse(parser(), [f"--config={path}"])
    assert config.train.evaluators[0].dataset == config.data.datasets[0].name
    with pytest.raises(ConfigError, match=r"dataset is 'calvn', which is not one of data\.datasets \(calvin\)"):
        parse(parser(), [f"--config={path}", "--config.train.evaluators[0].dataset=calvn"])


def test_a_mixture_needs_a_directory_only_where_it_is_read(project):
    flag = f"--config={project / 'configs' / 'svd_calvin_video_published.py'}"
    with pytest.raises(DataError, match=r"data\.data_dir is empty"):
        parse(parser(), [flag])
    config, _ = parse(parser(), [flag], reads_data=False)
    assert (config.data.mixture, config.data.batch_size) == ("vpp_released", 48)


@pytest.mark.parametrize(
    ("flags", "kind", "message"),
    [
        (["--config.train.stps=7"], UsageError, r"'train\.stps', did you mean 'steps'\?"),
        (["--config.trian.steps=7"], UsageError, r"'trian', did you mean 'train'\?"),
        (["--config.train.steps.more=7"], UsageError, r"'train\.steps' is a single value"),
        (["--config.train.steps=x"], UsageError, r"config\.train\.steps=x: expected int"),
        (["--config.train.wandb=yes"], UsageError, r"config\.train\.wandb=yes: expected bool"),
        (["--config.train.steps"], UsageError, r"config\.train\.steps needs a value"),
        (["--config.train=5"], UsageError, r"config\.train is a group of fields"),
        (["--config.data.datasets=5"], UsageError, r"config\.data\.datasets is a group of fields"),
        (["--config.model.former.frames=5"], UsageError, r"model\.former\.frames cannot be set: it follows from model\.frames"),
        (["--config.train.steps=0"], ConfigError, r"train\.steps is 0, expected at least 1"),
        (["--config.data.datasets[3].path=x"], ConfigError, r"has no such entry"),
        (["--config.data.datasets[-1].path=x"], ConfigError, r"has no such entry"),
        (["--config.init.vae", "--config.seed=3"], UsageError, r"config\.init\.vae needs a value"),
        (["--config.seed[0]=1"], UsageError, r"'seed' is not a sequence"),
    ],
)
def test_wrong_overrides(config_file, flags, kind, message):
    with pytest.raises(kind, match=message):
        parse(parser(), [f"--config={config_file}", *flags])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--workdir=w"], "the following arguments are required: --config"),
        (["train", "--config=c", "--wrkdir=x"], "there is no flag --wrkdir, did you mean '--workdir'? `vpp train --help` lists the flags"),
        (["train", "--config=c", "--workdir=w", "stray"], "unexpected argument 'stray'. `vpp train --help`"),
        (["data", "build", "calvn"], "did you mean 'calvin'? `vpp data build --help`"),
        (["data", "build", "calvin", "--out=d", "--limt=3"], "no flag --limt, did you mean '--limit'? `vpp data build calvin --help`"),
        (["data", "build", "calvin_mujoco", "--out=d", "--blocks=x"], "'x' is neither true nor false"),
        (["data", "stats", "DIR", "--index-dir=x"], "there is no flag --index-dir, did you mean '--index_dir'?"),
        (["data", "latents", "--config=c", "--batch=x"], "argument --batch: 'x' is not a whole number"),
        (["eval", "calvin", "--num-videos", "3"], "there is no flag --num-videos, did you mean '--num_videos'?"),
        (["eval", "calvin", "--checkpoint=c", "--policy=random"], "not allowed with argument --checkpoint"),
        (["predict", "--chekpoint=c"], "there is no flag --chekpoint, did you mean '--checkpoint'?"),
        (["convert", "import", "--out=d", "--positon_encode"], "did you mean '--position_encode'?"),
        (["convert", "export", "--checkpoint=c", "--out=d", "--config.seed=3"], "an export takes no configuration, got --config.seed"),
        (["compile", "--config=c"], "the following arguments are required: --topology."),
        (["compile", "--config=c", "--topology=v9-4"], "topology 'v9-4' is not one of"),
        (["bench", "modle"], "there is no benchmark 'modle', did you mean 'model'?"),
        (["bench", "data", "--shard-mb=3"], "there is no flag --shard-mb"),
        (["demo", "--minuts=3"], "did you mean '--minutes'?"),
        (["demo", "--minutes=0"], "argument --minutes: '0' is out of range, expected more than 0"),
        (["report", "a", "b"], "unexpected argument 'b'"),
    ],
)
def test_wrong_command_lines(argv, message, capfd):
    """One paragraph, the nearest name, exit code 2; abbreviations and dashes are no spellings of a flag."""
    assert main(argv) == 2
    text = " ".join(capfd.readouterr().err.split())
    assert message in text
    assert text.startswith("vpp: ")
    assert "Traceback" not in text


@pytest.mark.parametrize(
    "argv",
    [
        ["data", "inspect", "DIR", "--json=URL"],
        ["data", "inspect", "DIR", "--png=URL"],
        ["eval", "calvin", "--policy=random", "--out=URL"],
        ["eval", "calvin", "--sequences=5", "--dump=URL"],
        ["predict", "--checkpoint=c", "--image=i", "--instruction=t", "--out=URL"],
        ["convert", "import", "--vae=v", "--out=URL"],
        ["convert", "export", "--checkpoint=c", "--out=URL"],
        ["compile", "--config=configs/tiny_calvin_vae.py", "--topology=v5e-4", "--out=URL"],
        ["compile", "--config=configs/tiny_calvin_vae.py", "--topology=v5e-4", "--hlo=URL"],
        ["bench", "act", "--json=URL"],
        ["demo", "--workdir=URL"],
        ["report", "URL"],
        ["report", "DIR", "--out=URL"],
    ],
)
def test_nothing_is_written_to_a_folder_that_is_called_like_a_bucket(argv, tmp_path, monkeypatch, project, capfd):
    monkeypatch.chdir(tmp_path)
    assert main([argument.replace("URL", "gs://bucket/run.mp4") for argument in argv]) == 2
    assert "gs://bucket/run.mp4 is a URL, but this command writes to a file system" in " ".join(capfd.readouterr().err.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("gs:/bucket/run", "is a URL, but this command writes to a file system"),
        ("gs://bucket --config.policy_diffusion.feature_draws=0", "expected a local path, or a folder in a bucket, gs://BUCKET/RUN"),
        ("s3://bucket/run --config.policy_diffusion.feature_draws=0", "s3://bucket/run cannot hold a run"),
        ("gs://bucket/run --config.policy_diffusion.feature_draws=2", "feature_draws=2 stores features in the work directory"),
    ],
)
def test_what_cannot_be_in_a_bucket_is_refused_at_once(workdir, message, tmp_path, monkeypatch, project, capfd):
    monkeypatch.chdir(tmp_path)
    inputs = "--config.data.datasets[0].path=. --config.init.video=."
    config = f"--config={project / 'configs' / 'tiny_calvin_policy.py'}"
    assert main(["train", config, *inputs.split(), *f"--workdir={workdir}".split()]) in (1, 2)
    assert message in " ".join(capfd.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_every_flag_is_spelled_with_underscores_and_explained(capfd):
    """--help of every verb, and of every subcommand it lists."""
    left, seen = [[verb] for verb in VERBS], 0
    while left:
        command = left.pop()
        assert main([*command, "--help"]) == 0
        text, seen = capfd.readouterr().out, seen + 1
        assert not re.findall(r"^ +--\w+-\w+", text, re.MULTILINE), command
        bare = re.findall(r"^  (--\w+(?: [A-Z]\S*)?)\n(?! {20})", text, re.MULTILINE)  # no text behind the flag, and none below it
        assert not bare, command
        left += [[*command, name] for name in re.findall(r"^    (\w+)(?:  |$)", text, re.MULTILINE) if len(command) < 3]
    assert seen == len(VERBS) + 12


def test_configuration_files(tmp_path, config_file):
    python, text = tmp_path / "mine.py", "from vpp_jax.config import default_config\ndef get_config():\n    c = default_config()\n"
    python.write_text(text + "    c.train.steps = 9\n    return c\n")
    assert load_config(str(python)).train.steps == 9
    python.write_text(text + "    c.train.stps = 9\n    return c\n")
    with pytest.raises(ConfigError, match=r"mine\.py: .*stps.*steps"):
        load_config(str(python))
    for line in ("c.model.unet.in_channels = 3", "c.model.unet.update(in_channels=3)"):
        python.write_text(text + f"    {line}\n    return c\n")
        with pytest.raises(ConfigError, match=r"model\.unet\.in_channels .*follows from model\.vae\.latent_channels"):
            load_config(str(python))
    python.write_text("def other(): pass\n")
    with pytest.raises(ConfigError, match=r"mine\.py: .*get_config"):
        load_config(str(python))
    with pytest.raises(ConfigError, match=r"absent\.py does not exist; there are configs/"):
        load_config("absent.py")
    config_file.write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        load_config(str(config_file))
    config_file.write_text(json.dumps({"stage": "video", "trane": {}}))
    with pytest.raises(ConfigError, match=r"config\.json: .*'trane', did you mean 'train'"):
        load_config(str(config_file))


def test_train_refuses_before_anything_is_built(config_file, tmp_path, capsys):
    assert main(["train", f"--config={config_file}"]) == 2
    assert "the following arguments are required: --workdir" in capsys.readouterr().err
    assert main(["train", f"--config={config_file}", f"--workdir={tmp_path / 'w'}"]) == 1
    assert "--config.init.vae=DIR" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_train_help_lists_the_fields(config_file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"--config.{entry.name}={show(entry.value)}" in text for entry in settings(ExperimentConfig()))
    assert "--config.model.unet.block_out_channels=(320, 640, 1280, 1280)  (sequence of int; at least 1)\n      width of each level" in text
    assert max(map(len, text.splitlines())) <= 140
    assert main(["train", f"--config={config_file}", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--config.stage=video  (str; one of vae, video, policy; default vae)" in text
    assert "--config.data.datasets[0].path=here  (str; default '')" in text


def test_main_module_is_the_entry_point():
    assert callable(cli.run)


def test_benchmarks_exist(project):
    from vpp_jax.cli.bench import BENCHMARKS

    assert all((project / "benchmarks" / script).is_file() for script, _ in BENCHMARKS.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--out=x.gif", "--instruction=a"], "ends in .mp4"), (["--out=x.mp4", "--instruction= "], "--instruction is empty")],
)
def test_predict_refuses_what_it_cannot_write_or_read(tmp_path, capsys, arguments, message):
    assert main(["predict", f"--checkpoint={tmp_path}", "--image=a.png", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_predict_needs_an_image_and_a_checkpoint(tmp_path, capsys):
    image = tmp_path / "a.png"
    image.write_text("not an image")
    arguments = ["predict", f"--checkpoint={tmp_path}", f"--image={image}", "--instruction=a", "--out=x.mp4"]
    assert main(arguments) == 1
    assert "of none of the types JPEG, PNG, WEBP, BMP, TIFF" in " ".join(capsys.readouterr().err.split())
    Image.new("RGB", (8, 6)).save(image)
    assert main(arguments) == 1
    assert "is not a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "helps"),
    [
        (MissingProcessError("not all processes connected"), True),
        (ReadFailedError("gs://bucket/shard: reading failed 5 time(s)"), True),
        (jax.errors.JaxRuntimeError("UNAVAILABLE: device"), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), False),
        (ConfigError("unknown field"), False),
        (KeyError("a bug"), False),
    ],
)
def test_exit_codes_tell_schedulers_whether_a_restart_helps(error, helps):
    assert restart_helps(error) == helps


def test_a_bucket_that_does_not_answer_is_one_that_may_later(monkeypatch):
    monkeypatch.setattr(storage, "_bucket", lambda url, act: (_ for _ in ()).throw(TimeoutError()))
    with pytest.raises(WriteFailedError) as raised:
        storage.write("gs://bucket/file", b"", Retry(attempts=2, wait_s=0.0))
    assert restart_helps(raised.value)
    monkeypatch.setattr(storage, "_bucket", lambda url, act: (_ for _ in ()).throw(PermissionError("no")))
    with pytest.raises(WriteFailedError) as raised:
        storage.write("gs://bucket/file", b"")
    assert not restart_helps(raised.value)
