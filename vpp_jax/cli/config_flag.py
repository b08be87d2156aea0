"""`--config=FILE` and `--config.a.b=value`: configuration files and their overrides, with errors a person can act on."""

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.config_flags import UnsupportedOperationError

from data_pipelines.openx.mixtures import expand
from vpp_jax.cli.main import UsageError
from vpp_jax.common.config_tree import check_path
from vpp_jax.common.errors import VppError
from vpp_jax.config import ConfigError, ExperimentConfig, from_config_dict, from_json, to_config_dict

PROJECT = Path(__file__).resolve().parents[2]


def parse(argv: Sequence[str], options: dict[str, str]) -> tuple[ExperimentConfig, dict[str, str]]:
    """The configuration of a command line and the values of its other flags. A mixture of datasets is replaced by what its mirror has.

    Args:
      argv: without program and verb.
      options: name -> help of the flags beside `--config`; all are texts, '' where absent.
    """
    tree, values = parse_tree(argv, options)
    config = from_config_dict(tree)
    return replace(config, data=expand(config.data)), values


def parse_tree(argv: Sequence[str], options: dict[str, str], default: ExperimentConfig | None = None) -> tuple[ConfigDict, dict[str, str]]:
    """The same, with a configuration not yet checked as a whole. `default`: what it is where `--config` is absent; None: an error."""
    argv = _joined(argv)
    files = [argument.removeprefix("--config=") for argument in argv if argument.startswith("--config=")]
    if len(files) > 1 or (default is None and not files):
        raise UsageError(f"--config is given {len(files)} times, expected once: --config=configs/NAME.py, or the config.json of a run")
    overrides = [argument for argument in argv if not argument.startswith("--config=")]
    tree = to_config_dict(load_config(files[0]) if files else default)
    for argument in overrides:
        if match := re.match(r"--(?:no)?config\.([^=]+)", argument):
            check_path(ExperimentConfig, match.group(1))
    values = flags.FlagValues()
    for name, text in options.items():
        flags.DEFINE_string(name, "", text, flag_values=values)
    command = ["vpp", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", tree, flag_values=values, sys_argv=command)
        left = values(command)[1:]
    except IndexError:
        where = files[0] if files else "the default configuration"
        raise ConfigError(f"a sequence in {where} has fewer entries than the command line names; add entries in the file") from None
    except UnsupportedOperationError:
        raise UsageError("a group of fields cannot be set as a whole on the command line, only its fields one by one") from None
    except flags.Error as error:
        raise UsageError(str(error)) from None
    if left:
        raise UsageError(f"unexpected argument '{left[0]}'; flags are written --name=value")
    return values.config, {name: values[name].value for name in options}


def load_config(name: str) -> ExperimentConfig:
    """A configuration file: Python with `get_config()`, or the JSON of an earlier run. Looked up from here, then from the project."""
    path = next((path for path in (Path(name), PROJECT / name) if path.is_file()), None)
    if path is None:
        known = ", ".join(f"configs/{entry.name}" for entry in sorted((PROJECT / "configs").glob("[!_]*_*.py")))
        raise ConfigError(f"configuration file {name} does not exist{f'; there are {known}' if known else ''}")
    if path.suffix == ".json":
        return from_json(path.read_text(), str(path))
    if path.suffix != ".py":
        raise ConfigError(f"configuration file {name} is neither .py nor .json")
    try:
        return from_config_dict(_run(path))
    except VppError as error:
        raise ConfigError(f"{name}: {error}") from None


def _run(path: Path) -> ConfigDict | dict[str, Any]:
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config()
    except AttributeError as error:  # a ConfigDict is locked: a misspelt field is an AttributeError with a suggestion
        problem = str(error).strip("\"'").replace("\\'", "'").replace("\\n", " ").replace("\n", " ")
        raise ConfigError(f"no such field or function: {problem}") from None
    except (KeyError, TypeError, SyntaxError) as error:
        raise ConfigError(f"{type(error).__name__}: {error}") from None


def _joined(argv: Sequence[str]) -> list[str]:
    """`--config FILE` -> `--config=FILE`, and one leading dash -> two, so that there is one form to look for."""
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] == "--config":
            joined[-1] = f"--config={argument}"
        else:
            joined.append(f"-{argument}" if re.match(r"-(no)?config[.=]|-config$", argument) else argument)
    return joined
