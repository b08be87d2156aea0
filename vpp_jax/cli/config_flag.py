"""`--config=FILE` and `--config.a.b=value`: configuration files and their overrides, with errors a person can act on."""

import argparse
import ast
import importlib.util
import re
import traceback
from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin

from data_pipelines.openx.mixtures import expand
from data_pipelines.openx.registry import CLIP_COLUMNS, POLICY_COLUMNS
from vpp_jax.cli.main import UsageError
from vpp_jax.cli.parser import Parser, boolean, words
from vpp_jax.common.config_fields import groups, type_name
from vpp_jax.common.config_tree import field_type
from vpp_jax.common.errors import VppError
from vpp_jax.common.text_files import read_text
from vpp_jax.config import ConfigError, ExperimentConfig, from_config_dict, from_json, to_dict

PROJECT = Path(__file__).resolve().parents[2]
PREFIX = "--config."
Overrides = list[tuple[str, str]]  # dotted name and text


def add_config_flag(parser: Parser, required: bool = True) -> None:
    """`--config`, and in the help `--config.NAME`, which `split_overrides` takes out of a command line before it is parsed."""
    parser.add_argument(
        "--config",
        required=required,
        metavar="FILE",
        help="configuration: a Python file with get_config(), which is run, or the config.json of a run, which is only read",
    )
    text = "overrides one field of it, e.g. --config.train.steps=1000; `vpp train --help` lists the fields"
    parser.add_argument("--config.NAME", metavar="VALUE", default=argparse.SUPPRESS, help=text)


def parse(parser: Parser, argv: Sequence[str], reads_data: bool = True) -> tuple[ExperimentConfig, argparse.Namespace]:
    """The configuration of a command line and its other flags.

    A mixture of datasets is replaced by what its directory has; that a command that does not read them (`reads_data`) need not name.
    """
    overrides, rest = split_overrides(argv)
    arguments = parser.parse_args(rest)
    config = from_config_dict(override(load_config(arguments.config), overrides))
    if config.data.mixture and not config.data.data_dir and not reads_data:
        return config, arguments
    columns = POLICY_COLUMNS if config.stage == "policy" else CLIP_COLUMNS
    return replace(config, data=expand(config.data, columns)), arguments


def split_overrides(argv: Sequence[str]) -> tuple[Overrides, list[str]]:
    """The `--config.NAME=VALUE` and `--config.NAME VALUE` of a command line, and the rest of it."""
    found: Overrides = []
    rest, arguments = [], list(argv)
    while arguments:
        argument = arguments.pop(0)
        if not argument.startswith(PREFIX):
            rest.append(argument)
            continue
        name, equals, text = argument.removeprefix(PREFIX).partition("=")
        try:
            kind = field_type(ExperimentConfig, name)
        except ConfigError as error:
            raise UsageError(str(error)) from None
        if equals:
            found.append((name, text))
        elif kind is bool and not (arguments and arguments[0].lower() in ("true", "false")):
            found.append((name, "true"))
        elif arguments and not arguments[0].startswith("--"):
            found.append((name, arguments.pop(0)))
        else:
            raise UsageError(f"{argument} needs a value: {argument}=VALUE")
    return found, rest


def override(config: ExperimentConfig, overrides: Overrides) -> dict[str, Any]:
    """`config` as a tree of plain values in which the named fields have other values; not yet checked as a whole."""
    tree = to_dict(config)
    for name, text in overrides:
        kind = field_type(ExperimentConfig, name)
        if is_dataclass(kind) or is_dataclass(next(iter(get_args(kind)), None)):
            raise UsageError(f"{PREFIX}{name} is a group of fields; on the command line its fields are set one by one")
        try:
            value = parse_value(text, kind)
        except (ValueError, argparse.ArgumentTypeError):
            raise UsageError(f"{PREFIX}{name}={text}: expected {type_name(kind)}") from None
        place: Any = tree
        *above, last = [int(part) if re.fullmatch("[0-9]{1,9}", part) else part for part in re.findall(r"[^.\[\]]+", name)]
        try:
            for part in above:
                place = place[part]
            place[last] = value
        except (IndexError, KeyError, TypeError):
            raise ConfigError(f"{PREFIX}{name}: the sequence has no such entry; entries are added in the configuration file") from None
    return tree


def parse_value(text: str, kind: Any) -> Any:
    """The text of a flag as a value of type `kind`, else ValueError or ArgumentTypeError. A sequence is `a,b`, or a Python tuple."""
    if get_origin(kind) is tuple:
        element = get_args(kind)[0]
        if element is str:
            entries = _literal(text)
            return list(words(text)) if entries is None else entries
        return [parse_value(part.strip(), element) for part in words(text.strip("()[]"))]
    if options := [option for option in get_args(kind) if option is not type(None)]:
        return None if text.lower() == "none" else parse_value(text, options[0])
    return boolean(text) if kind is bool else kind(text)


def _literal(text: str) -> list[Any] | None:
    """The entries of a Python tuple or list; None where the text is something else, say a regular expression in brackets."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two: brackets in brackets
        return None
    return list(value) if isinstance(value, tuple | list) else None


def load_config(name: str) -> ExperimentConfig:
    """A configuration file: Python with `get_config()`, or the JSON of an earlier run. Looked up from here, then from the project."""
    path = next((path for path in (Path(name), PROJECT / name) if path.is_file()), None)
    if path is None:
        known = ", ".join(f"configs/{entry.name}" for entry in sorted((PROJECT / "configs").glob("[!_]*_*.py")))
        raise ConfigError(f"configuration file {name} does not exist{f'; there are {known}' if known else ''}")
    if path.suffix == ".json":
        return from_json(read_text(path), str(path))
    if path.suffix != ".py":
        raise ConfigError(f"configuration file {name} is neither .py nor .json")
    try:
        return from_config_dict(_run(path))
    except VppError as error:
        raise ConfigError(f"{name}: {error}") from None


def _run(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec, path
    assert spec.loader, path  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config()
    except AttributeError as error:  # a ConfigDict is locked: a misspelt field is an AttributeError with a suggestion
        problem = str(error).strip("\"'").replace("\\'", "'").replace("\\n", " ").replace("\n", " ")
        raise ConfigError(f"no such field or function: {problem}{_derived(problem)}") from None
    except VppError:
        raise
    except Exception as error:  # of code that its user wrote
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"line {lines[-1]}: " if lines else ""
        raise ConfigError(f"{where}{type(error).__name__}: {error}{_derived(str(error))}") from None


def _derived(problem: str) -> str:
    """What to set instead, where ml_collections complains about the key of a derived field."""
    entries = [entry for group in groups(ExperimentConfig()) for entry in group.derived]
    named = [entry for entry in entries if re.search(rf'Key "{entry.name.rpartition(".")[2]}"', problem)]
    return "".join(f"; {entry.name} follows from {entry.declaration.derived_from}, set that instead" for entry in named)
