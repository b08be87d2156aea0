"""How every verb and every benchmark reads its flags: argparse with one spelling, one form of help and one form of error.

Flags are written `--flag value` or `--flag=value`, with underscores, never abbreviated. An invalid command line ends the process with exit
code 2 and one paragraph that names the nearest flag.
"""

import argparse
import re
import sys
import textwrap
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from data_pipelines.storage import Location, location
from vpp_jax.cli.main import UsageError, paragraph
from vpp_jax.common.errors import VppError, nearest
from vpp_jax.common.files import local_path


class Parser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` with the conventions above; subcommands inherit them."""

    def __init__(self, **options: Any):
        super().__init__(**{"allow_abbrev": False, "formatter_class": HelpFormatter, **options})

    def add_output(self, flag: str, *, bucket: bool = False, **options: Any) -> None:
        """A flag that names a file or directory to write: a local path, see `local_path`; with `bucket`, or a URL."""
        self.add_argument(flag, type=partial(_path_or_url if bucket else local_path, flag), **options)

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


def boolean(text: str) -> bool:
    """The type of a flag that is `--flag` or `--flag=false` (with nargs='?' and const=True)."""
    values = {"true": True, "false": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
    return values[text.lower()]


def words(text: str) -> tuple[str, ...]:
    """The type of a flag that takes several names, comma-separated."""
    return tuple(word for word in text.split(",") if word)
