"""Every numeric flag has a range, which is checked while the command line is parsed."""

import argparse
import importlib.util
import math
import re
import sys
from pathlib import Path

import pytest

from eval.errors import EvaluationError
from eval.host_loop import LoopOptions
from vpp_jax.cli import compile as compile_verb
from vpp_jax.cli import convert, data, data_latents, sim
from vpp_jax.cli import eval as eval_verb
from vpp_jax.cli.main import main
from vpp_jax.cli.parser import Parser
from vpp_jax.common.config_fields import LARGEST, Declaration
from vpp_jax.common.errors import ConfigError
from vpp_jax.config import ExperimentConfig, from_config_dict, from_json

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in ("against_pytorch",))
EVAL = ("eval", "calvin", "--policy=random", "--out=out")
PREDICT = ("predict", "--checkpoint=c", "--image=i.png", "--instruction=open", "--out=v.mp4")
MUJOCO = ("data", "build", "calvin_mujoco", "--out=out")


@pytest.mark.parametrize(
    ("command", "flag", "problem"),
    [
        (EVAL, "--n_action_steps=-1", "'-1' is out of range, expected at least 0"),
        (EVAL, "--seed=-1", "'-1' is out of range, expected at least 0"),
        (EVAL, f"--seed={2**70}", "and none above 2147483647"),
        (EVAL, "--workers=0", "expected at least 1 and at most 1024"),
        (EVAL, "--timeout=nan", "'nan' is out of range, expected more than 0"),
        (EVAL, "--timeout=1e300", "expected more than 0 and at most 86400"),
        (EVAL, "--episodes=1e3", "'1e3' is not a whole number"),
        (EVAL, "--environment_kwargs=[1]", "is not a JSON object"),
        (EVAL, "--policy_options={", "is not JSON"),
        (PREDICT, "--fps=0", "'0' is out of range, expected at least 0.1 and at most 240"),
        (PREDICT, "--fps=-8", "'-8' is out of range"),
        (PREDICT, "--fps=nan", "'nan' is out of range"),
        (PREDICT, "--seed=-1", "expected at least 0"),
        (MUJOCO, "--seed=-1", "expected at least 0"),
        (MUJOCO, "--scenes=E", "'E' is out of range, expected every entry to be one of A, B, C, D"),
        (MUJOCO, "--static_size=1024", "expected at least 8 and at most 512"),
        (MUJOCO, "--action_noise=nan", "'nan' is out of range, expected at least 0"),
        (MUJOCO, "--hours=nan", "'nan' is out of range"),
        (MUJOCO, "--quality=best", "expected one of no_shadows, faithful"),
        (MUJOCO, "--tasks=open_drawers", "did you mean 'open_drawer'?"),
        (MUJOCO, "--tasks=stack_block", "tasks with blocks need --blocks"),
        (MUJOCO, "--tasks=open_drawer,open_drawer", "names one twice"),
        (("data", "build", "human_video", "--out=out"), "--fps=inf", "'inf' is out of range"),
        (("data", "build", "calvin", "--out=out"), "--limit=-1", "expected at least 0"),
        (("data", "stats", "here"), "--quantiles=0.1", "expected 2 arguments"),
        (("data", "index", "here"), "--workers=0", "at least 1"),
        (("demo",), "--minutes=nan", "more than 0"),
        (("compile", "--config=c", "--topology=v5e-4"), "--per_chip=-inf", "more than 0"),
        (("convert", "export", "--checkpoint=c", "--out=o"), "--step=-1", "at least 0"),
    ],
)
def test_a_number_out_of_range_is_refused_at_once(command, flag, problem, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command, flag]) in (1, 2)
    shown = " ".join(capsys.readouterr().err.split())
    assert problem in shown.replace(f"'{flag.partition('=')[2]}' is out of range", problem.partition(",")[0]), shown
    assert not list(tmp_path.iterdir())


def parsers(monkeypatch):
    """Every parser of the project."""
    yield data._parser()
    yield data_latents._parser()
    yield eval_verb._parser(["calvin"])
    yield compile_verb.compile_parser()
    yield convert._parser()
    yield sim._parser()
    made: list[Parser] = []

    def parse(self, *_):
        made.append(self)
        raise SystemExit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    for verb in ("predict", "demo", "report"):
        with pytest.raises(SystemExit):
            importlib.import_module(f"vpp_jax.cli.{verb}").main([])
    yield from made


def test_no_flag_takes_a_number_without_a_range(monkeypatch):
    def walk(parser):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for below in action.choices.values():
                    yield from walk(below)
            else:
                yield parser.prog, action

    flags = [entry for parser in parsers(monkeypatch) for entry in walk(parser)]
    assert len(flags) > 100
    assert not [(prog, action.dest) for prog, action in flags if action.type in (int, float)]


def test_no_benchmark_takes_a_number_without_a_range():
    for name in BENCHMARKS:
        text = (ROOT / "benchmarks" / f"{name}.py").read_text()
        assert not re.search(r"type=(int|float)\b", text), name


def test_a_loop_of_negative_chunks_is_refused():
    with pytest.raises(EvaluationError, match="n_action_steps at least 0"):
        LoopOptions(n_action_steps=-1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, LARGEST + 1, -(10**400)])
def test_no_field_takes_a_number_that_no_clock_and_no_seed_can_hold(value):
    assert not Declaration("").allows(value)
    with pytest.raises(ConfigError, match="expected"):
        from_config_dict({"train": {"heartbeat_s": value}})


@pytest.mark.parametrize("text", ["{" * 100_000, f'{{"seed": {"9" * 5000}}}', "{", '{"seed": NaN}', '{"a": "\\ud800"}', "[]", "1"])
def test_a_configuration_that_is_no_json_object_is_one_paragraph(text):
    with pytest.raises(ConfigError, match="here"):
        from_json(text, "here")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import nothing_of_that_name", "line 1: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("def get_config():\n    return 1 / 0", "line 2: ZeroDivisionError"),
        ("get_config = 1", "TypeError"),
        ("def get_config(): return {'seed': -1}", "seed is -1, expected at least 0"),
        ("x = '", "SyntaxError"),
    ],
)
def test_an_error_of_a_configuration_file_names_its_line(text, problem, tmp_path, capsys):
    (tmp_path / "config.py").write_text(text)
    assert main(["train", f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"]) == 1
    assert problem in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "name", ["data.datasets[²].path", "data.datasets[-1].path", "data.datasets[9].path", "data.datasets[x].path", "", "."]
)
def test_an_override_of_what_is_not_there(name, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert main(["train", f"--config={tmp_path / 'config.json'}", f"--workdir={tmp_path}", f"--config.{name}=1"]) in (1, 2)
    assert capsys.readouterr().err.startswith("vpp: ")


def test_brackets_in_brackets():
    from vpp_jax.cli.config_flag import override

    tree = override(ExperimentConfig(), [("optimizer.frozen", "(" * 5000)])
    assert tree["optimizer"]["frozen"]
    assert sys.getrecursionlimit() < 5000


@pytest.mark.parametrize("place", ["http://[", "http://x/y", "nosuch://x", "~no_such_user_here/x"])
@pytest.mark.parametrize("verb", [("convert", "export", "--out=out"), ("sim", "install", "calvin_pybullet")])
def test_places_that_no_library_knows(verb, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flag = "--checkout" if verb[0] == "sim" else "--checkpoint"
    assert main([*verb, f"{flag}={place}"]) == 1
    assert place in " ".join(capsys.readouterr().err.split())
    if not place.startswith("http://x"):  # which could be a server
        assert main(["data", "stats", place]) == 1
        assert place in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("content", "problem"), [(b"\xff\xfe{", "damaged"), (b"\xe9", "is not UTF-8"), (b"\xef\xbb\xbf{}", "data.datasets names no")]
)
def test_a_configuration_of_another_encoding(content, problem, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes(content)
    assert main(["train", f"--config={tmp_path / 'config.json'}", f"--workdir={tmp_path / 'run'}"]) == 1
    assert problem in " ".join(capsys.readouterr().err.split())
