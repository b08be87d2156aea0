"""Whatever is typed ends in 0, 1 or 2, and not in 0 with one paragraph; nothing hangs.

`pytest tests/cli/test_command_lines.py --command_lines=10000` tries as many, and prints what they ended in.
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter

import pytest
from command_lines import command_lines, configurations, places
from hypothesis import HealthCheck, Phase, given, seed, settings

from data_pipelines.builders import sharded
from vpp_jax.cli import data_latents, train
from vpp_jax.cli import eval as eval_verb
from vpp_jax.cli.main import main
from vpp_jax.common.errors import VppError

ALARM_S = 60  # of one command line; a hundred of them take a second or two, on a machine that does nothing else
PROCESSES = 50

pytestmark = pytest.mark.slow


class Hung(BaseException):
    """The alarm."""


@pytest.fixture
def checked_only(monkeypatch):
    """Every command ends where its work would begin."""

    def work(*_, **__):
        raise VppError("checked")

    for module, name in ((train, "_run"), (eval_verb, "evaluate"), (sharded, "build"), (data_latents, "_encode")):
        monkeypatch.setattr(module, name, work)
    monkeypatch.setattr(subprocess, "call", lambda *_, **__: 0)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess((), 0))


def outcome(argv: list[str]) -> tuple[int, str]:
    """Exit code and standard error of one command line, in this process."""

    def hang(*_):
        raise Hung(argv)

    before, error = signal.signal(signal.SIGALRM, hang), io.StringIO()
    signal.alarm(ALARM_S)
    try:
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
            return main(argv), error.getvalue()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(argv: list[str], code: int, error: str) -> None:
    assert code in (0, 1, 2), argv
    assert "Traceback" not in error, argv
    if code and argv not in ([], ["bench"]):  # which print what there is
        paragraphs = [part for part in error.strip().split("\n\n") if part]
        assert len(paragraphs) == 1, (argv, error)


def run_many(count: int, strategy, one) -> None:
    options = {"max_examples": count, "deadline": None, "database": None, "print_blob": False, "report_multiple_bugs": False}
    unhurried = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    decorated = given(strategy)(one)
    seed(0)(settings(**options, suppress_health_check=unhurried, phases=(Phase.generate, Phase.shrink))(decorated))()


@pytest.fixture
def count(request) -> int:
    return request.config.getoption("--command_lines")


@pytest.mark.usefixtures("checked_only")
def test_command_lines(tmp_path, count, monkeypatch):
    ended: Counter[int] = Counter()
    monkeypatch.chdir(tmp_path)
    where = places(tmp_path)

    def one(argv):
        argv = [argument for argument in argv if argument != "--debug"]  # it prints tracebacks, as it should
        code, error = outcome(argv)
        check(argv, code, error)
        ended[code] += 1

    run_many(count, command_lines(where), one)
    print(f"{sum(ended.values())} command lines ended in {dict(sorted(ended.items()))}")
    assert ended[1] > 0
    assert ended[2] > 0


@pytest.mark.usefixtures("checked_only")
def test_configurations(tmp_path, count):
    ended: Counter[int] = Counter()

    def one(tree):
        (tmp_path / "config.json").write_text(json.dumps(tree))
        argv = ["train", f"--config={tmp_path / 'config.json'}", f"--workdir={tmp_path / 'run'}"]
        code, error = outcome(argv)
        check(argv, code, error)
        ended[code] += 1

    run_many(count, configurations(), one)
    print(f"{sum(ended.values())} configurations ended in {dict(sorted(ended.items()))}")
    assert ended[1] > 0


def test_command_lines_as_processes(tmp_path):
    """Real processes, in their own directory; those that would work for long are told to help instead."""
    where = [place for place in places(tmp_path) if "://" not in place]
    tried = 0

    def one(argv):
        nonlocal tried
        if tried == PROCESSES or any("\udc80" <= character <= "\udcff" for argument in argv for character in argument):
            return
        tried += 1
        if argv[:1] in (["demo"], ["sim"]) and "--help" not in argv:
            argv = [*argv, "--help"]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "vpp_jax", *(argument for argument in argv if argument != "--debug")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment, check=False)
        check(argv, done.returncode, done.stderr)

    run_many(2 * PROCESSES, command_lines(tuple(where)), one)
    assert tried == PROCESSES
