"""How every verb and every benchmark reads its flags: argparse with one spelling, one form of help and one form of error.

Flags are written `--flag value` or `--flag=value`, with underscores, never abbreviated. An invalid command line ends the process with exit
code 2 and one paragraph that names the nearest flag.
"""

import argparse
import dataclasses
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NoReturn

from data_pipelines.storage import Location, location
from vpp_jax.cli.main import UsageError, paragraph
from vpp_jax.common.config_fields import Declaration
from vpp_jax.common.errors import VppError, nearest
from vpp_jax.common.files import local_path

KINDS = {int: "a whole number", float: "a number"}
RANGES = ("at_least", "more_than", "at_most", "less_than")


class Parser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` with the conventions above; subcommands inherit them."""

    def __init__(self, **options: Any):
        super().__init__(**{"allow_abbrev": False, "formatter_class": HelpFormatter, **options})

    def add_output(self, flag: str, *, bucket: bool = False, **options: Any) -> None:
        """A flag that names a file or directory to write: a local path, see `local_path`; with `bucket`, or a URL."""
        self.add_argument(flag, type=partial(_path_or_url if bucket else local_path, flag), **options)

    def add_robot(self) -> None:
        """The flag of commands that read a dataset."""
        text = "a row of the registry, or a TOML or JSON file (default: robot.toml next to the data, else the row with the dataset's name)"
        self.add_argument("--robot", default="", metavar="ROW|FILE", help=f"what describes the robot: {text}")

    def add_number(self, flag: str, kind: type[int] | type[float], default: float | None, help: str, **options: Any) -> None:
        """A flag for a number, with the ranges (`at_least`, ...) and checks of a configuration field."""
        ranges = {name: options.pop(name) for name in RANGES if name in options}
        self._add_declared(flag, kind, default, Declaration(help, **ranges), **options)

    def add_numbers(self, flag: str, kind: type[int] | type[float], default: str, help: str, **ranges: Any) -> None:
        """The same for several numbers, comma-separated."""
        self._add_declared(flag, lambda text: tuple(map(kind, text.split(","))), default, Declaration(help, **ranges))

    def add_names(self, flag: str, default: Sequence[str], choices: Iterable[str], help: str) -> None:
        """A flag for several names of `choices`, comma-separated."""
        self._add_declared(flag, words, ",".join(default), Declaration(help, choices=tuple(choices)))

    def add_settings(self, settings: type) -> None:
        """A flag for each field of a dataclass of `setting` fields, declared there."""
        for field in dataclasses.fields(settings):
            flag, default, declaration = f"--{field.name}", field.default, field.metadata["declaration"]
            if isinstance(default, bool):
                options = {"nargs": "?", "const": True, "metavar": "true|false"}
                self.add_argument(flag, type=boolean, default=default, help=declaration.description, **options)
            elif isinstance(default, tuple):
                self._add_declared(flag, words, ",".join(default), declaration)
            else:
                self._add_declared(flag, type(default), default, declaration)

    def _add_declared(self, flag: str, convert: Callable[[str], Any], default: Any, declaration: Declaration, **options: Any) -> None:
        text = "; ".join(filter(None, (declaration.description, declaration.range)))
        self.add_argument(flag, type=partial(_declared, convert, declaration), default=default, help=text, **options)

    def parse_known_args(self, args=None, namespace=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refuses what it does not know here, where the flags of this subcommand are known."""
        self._arguments = sys.argv[1:] if args is None else list(args)
        try:
            found, unknown = super().parse_known_args(args, namespace)
        except VppError as error:  # of the function that converts a value
            self.error(str(error))
        if unknown:
            self.error(self._unknown_flag(unknown) or f"unexpected argument '{unknown[0]}'")
        return found, unknown

    def _unknown_flag(self, arguments: Sequence[str]) -> str:
        """What is wrong with the first argument that looks like a flag and is none; '' where there is no such argument."""
        known = re.findall(r"--?\w+(?:\.\w+)?", self.format_help())
        flag = next(
            (flag for flag in (argument.partition("=")[0] for argument in arguments) if flag.startswith("--") and flag not in known), ""
        )
        similar = nearest(f"--{flag[2:].replace('-', '_')}", known)
        return f"there is no flag {flag}{similar}" if flag else ""

    def error(self, message: str) -> NoReturn:
        if "arguments are required" in message:  # because one of them is misspelt?
            message = self._unknown_flag(self._arguments) or message
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        text = message + (nearest(choice[1], re.findall(r"[\w.]+", choice[2])) if choice else "")
        end = "" if text.endswith("?") else "."
        self.exit(2, paragraph(UsageError(f"{text}{end} `{self.prog} --help` lists the flags")) + "\n")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Fills the paragraphs of descriptions, but for those with indented lines, and names the default of every flag that has one."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(part if re.search(r"^ ", part, re.MULTILINE) else textwrap.fill(part, width) for part in paragraphs)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        no_default = action.default is None or action.default is False or action.default in ("", [], (), {}, argparse.SUPPRESS)
        return action.help if no_default or "default" in (action.help or "") else f"{action.help} (default: %(default)s)"


def _path_or_url(flag: str, value: str) -> Location:
    return location(value) if "://" in value else local_path(flag, value)


def _declared(convert: Callable[[str], Any], declaration: Declaration, text: str) -> Any:
    """`text` as a value that `declaration` allows."""
    try:
        value = convert(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not {KINDS.get(convert, 'a list of numbers')}") from None
    if not declaration.allows(value):
        raise argparse.ArgumentTypeError(f"'{text}' is out of range, {declaration.expected(value)}")
    return value


def json_object(text: str) -> dict[str, Any]:
    """The type of a flag that is a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"'{text}' is not a JSON object: {{\"NAME\": VALUE, ...}}")
    return value


def boolean(text: str) -> bool:
    """The type of a flag that is `--flag` or `--flag=false` (with nargs='?' and const=True)."""
    values = {"true": True, "false": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
    return values[text.lower()]


def words(text: str) -> tuple[str, ...]:
    """The type of a flag that takes several names, comma-separated."""
    return tuple(word for word in text.split(",") if word)
