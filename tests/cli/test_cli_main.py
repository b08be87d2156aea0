"""The `vpp` command: verbs, exit codes, and one paragraph per mistake."""

import importlib
import json
import sys
import types

import pytest
from PIL import Image

from vpp_jax.cli import main as cli
from vpp_jax.cli.config_flag import load_config, parse
from vpp_jax.cli.main import VERBS, UsageError, main, paragraph
from vpp_jax.common.errors import VppError
from vpp_jax.config import ConfigError, default_config, from_config_dict, to_json


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


@pytest.mark.parametrize(
    ("flag", "field", "expected"),
    [
        ("--config.train.steps=7", "train.steps", 7),
        ("-config.train.steps=7", "train.steps", 7),
        ("--config.train.wandb", "train.wandb", True),
        ("--config.train.progress=false", "train.progress", False),
        ("--config.optimizer.learning_rate=3", "optimizer.learning_rate", 3.0),
        ("--config.model.views=('a','b')", "model.views", ("a", "b")),
        ("--config.model.views=a", "model.views", ("a",)),
        ("--config.init.vae=runs/x=1", "init.vae", "runs/x=1"),
    ],
)
def test_overrides(config_file, flag, field, expected):
    config, options = parse(["--config", str(config_file), flag, "--workdir=w"], {"workdir": "help"})
    value = config
    for name in field.split("."):
        value = getattr(value, name)
    assert value == expected
    assert options == {"workdir": "w"}
    assert config.stage == "video"


def test_fields_of_datasets_can_be_overridden(config_file):
    config, _ = parse([f"--config={config_file}", "--config.data.datasets[0].path=there", "--config.data.datasets[0].weight=2"], {})
    assert (config.data.datasets[0].path, config.data.datasets[0].weight) == ("there", 2.0)


@pytest.mark.parametrize(
    ("flags", "kind", "message"),
    [
        ([], UsageError, r"--config is given 0 times"),
        (["FILE", "--config.train.stps=7"], ConfigError, r"'train\.stps', did you mean 'steps'\?"),
        (["FILE", "--config.trian.steps=7"], ConfigError, r"'trian', did you mean 'train'\?"),
        (["FILE", "--config.train.steps.more=7"], ConfigError, r"'train\.steps' is a single value"),
        (["FILE", "--config.train.steps=x"], UsageError, r"config\.train\.steps=x"),
        (["FILE", "--config.train.steps=0"], ConfigError, r"steps is 0, expected at least 1"),
        (["FILE", "--config.data.datasets[3].path=x"], ConfigError, r"fewer entries"),
        (["FILE", "--config.seed[0]=1"], ConfigError, r"'seed' is not a sequence"),
        (["FILE", "--wrkdir=x"], UsageError, r"'wrkdir'. Did you mean: workdir"),
        (["FILE", "stray"], UsageError, r"unexpected argument 'stray'"),
    ],
)
def test_wrong_command_lines(config_file, flags, kind, message):
    argv = [f"--config={config_file}" if flag == "FILE" else flag for flag in flags]
    with pytest.raises(kind, match=message):
        parse(argv, {"workdir": "help"})


def test_configuration_files(tmp_path, config_file):
    python, text = tmp_path / "mine.py", "from vpp_jax.config import default_config\ndef get_config():\n    c = default_config()\n"
    python.write_text(text + "    c.train.steps = 9\n    return c\n")
    assert load_config(str(python)).train.steps == 9
    python.write_text(text + "    c.train.stps = 9\n    return c\n")
    with pytest.raises(ConfigError, match=r"mine\.py: .*stps.*steps"):
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
    assert "--workdir=DIR is missing" in capsys.readouterr().err
    assert main(["train", f"--config={config_file}", f"--workdir={tmp_path / 'w'}"]) == 1
    assert "--config.init.vae=DIR" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_train_help_lists_the_fields(config_file, capsys):
    assert main(["train", "--help"]) == 0
    assert "--workdir" in capsys.readouterr().out
    assert main(["train", f"--config={config_file}", "--help"]) == 0
    assert "--config.model.unet.block_out_channels=[320, 640, 1280, 1280]" in capsys.readouterr().out


def test_main_module_is_the_entry_point():
    assert callable(cli.run)


def test_benchmarks_exist(project):
    from vpp_jax.cli.bench import BENCHMARKS

    assert all((project / "benchmarks" / script).is_file() for script, _ in BENCHMARKS.values())
    assert main(["bench", "modle"]) == 2


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
    assert "is not an image" in capsys.readouterr().err
    Image.new("RGB", (8, 6)).save(image)
    assert main(arguments) == 1
    assert "is not a checkpoint" in capsys.readouterr().err
