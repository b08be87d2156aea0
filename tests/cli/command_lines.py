"""Command lines and configurations that nobody would write, for the tests of what they end in.

The flags are those of the real parsers; their values are plausible ones, the edges of every range, and whatever breaks readers of text.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from hypothesis import strategies as st

from vpp_jax.cli import compile as compile_verb
from vpp_jax.cli import convert, data, data_latents, sim, train
from vpp_jax.cli import eval as eval_verb
from vpp_jax.cli.config_help import show
from vpp_jax.cli.main import VERBS
from vpp_jax.common.config_fields import settings
from vpp_jax.config import ExperimentConfig, default_config, from_config_dict, to_dict

NUMBERS = ("0", "1", "-1", "7", "0.5", "-0.0", "1e-9", "1e9", "1e308", "1e400", "nan", "-nan", "inf", "-inf", "2147483648", "9" * 5000)
ODD_NUMBERS = ("1_000", "0x10", "1e3", "١٢", "²", "1,2", "1.0.0", "+3", " 4 ", "--5", "", "true", "None")
WORDS = (
    "a",
    "open the drawer",
    "naïve",
    "日本語",
    "🤖",
    "caf\udce9",
    "a b",
    "100%",
    "%s%d",
    "{}",
    "{0}",
    "[x]",
    "$HOME",
    "~",
    "..",
    "-",
    "'",
    '"',
)
STRUCTURES = (
    "(",
    "()",
    "((1,",
    "[" * 2000,
    "{",
    '{"a": 1}',
    "[1, 2]",
    "null",
    "NaN",
    "('a','b')",
    ",",
    "x=1",
    "\n",
    "\t",
    "\\",
    ".*",
    "(?P<",
)
ANYTHING = (*NUMBERS, *ODD_NUMBERS, *WORDS, *STRUCTURES)
FILES = {"empty": b"", "text.json": b"{}", "damaged.json": b"\xff\xfe{", "nan.json": b'{"seed": NaN}', "list.json": b"[]"}
FLAG_LIKE = ("--help", "-h", "--no_such_flag", "--config.", "--config.model", "--config.x.y=1", "--", "-x", "--=", "--debug", "@file")


def places(folder: Path) -> tuple[str, ...]:
    """Paths below `folder` (made here): files and directories of every kind that a flag may meet."""
    (folder / "directory").mkdir(exist_ok=True)
    (folder / "with space [x] 100%").mkdir(exist_ok=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "config.py").write_text("def get_config():\n    return {}\n")
    (folder / "broken.py").write_text("def get_config(:\n")
    (folder / "good.json").write_text(json.dumps(good_config()))
    if not (folder / "link").is_symlink():
        (folder / "link").symlink_to(folder / "directory")
        (folder / "loop").symlink_to(folder / "loop")
    names = ("absent", "directory", "with space [x] 100%", "with space [x] 100%/new", "empty", "text.json", "damaged.json", "nan.json")
    names += ("list.json", "config.py", "broken.py", "good.json", "link", "loop", "empty/below", "x" * 300)
    return (*(str(folder / name) for name in names), "", "memory://a/b", "file:///absent", "nosuch://x", "http://[")


def good_config() -> dict:
    """A configuration that passes every check."""
    config = default_config()
    return to_dict(from_config_dict(config.to_dict() | {"data": {"datasets": [{"path": "here"}]}}))


def _flags(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[argparse.Action]]]:
    """(words of the command, flags) of a parser and of its subcommands."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield words, [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    for action in below:
        for name, one in action.choices.items():
            yield from _flags(one, (*words, name))


def _parsers() -> dict[tuple[str, ...], list[argparse.Action]]:
    made = {
        ("train",): train._parser([]),
        ("compile",): compile_verb.compile_parser(),
        ("convert",): convert._parser(),
        ("data",): data._parser(),
        ("data", "latents"): data_latents._parser(),
        ("eval",): eval_verb._parser(["calvin"]),
        ("sim",): sim._parser(),
    }
    found = {words: flags for start, parser in made.items() for words, flags in _flags(parser, start)}
    found |= {("predict",): _captured("predict"), ("demo",): _captured("demo"), ("report",): _captured("report")}
    return {words: flags for words, flags in found.items() if flags}


def _captured(verb: str) -> list[argparse.Action]:
    """The flags of a verb that makes its parser in `main`."""
    import importlib

    from vpp_jax.cli.parser import Parser

    class Stop(Exception):
        pass

    made, before = [], Parser.parse_args

    def capture(self, *_):
        made.append(self)
        raise Stop

    Parser.parse_args = capture
    try:
        importlib.import_module(f"vpp_jax.cli.{verb}").main([])
    except Stop:
        pass
    finally:
        Parser.parse_args = before
    return [action for action in made[0]._actions if not isinstance(action, argparse._HelpAction)]


def _value(action: argparse.Action, where: tuple[str, ...]) -> st.SearchStrategy[str]:
    plausible = [str(choice) for choice in action.choices] if action.choices else []
    if action.default not in (None, argparse.SUPPRESS, [], ()):
        plausible.append(str(action.default))
    return st.one_of(*([st.sampled_from(plausible)] if plausible else []), st.sampled_from(where), st.sampled_from(ANYTHING), _text)


_text = st.text(max_size=12).filter(lambda text: "\0" not in text)  # no shell passes one


@st.composite
def command_lines(draw: st.DrawFn, where: tuple[str, ...]) -> list[str]:
    """One command line after `vpp`."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.lists(st.one_of(st.sampled_from((*VERBS, *FLAG_LIKE, *WORDS)), _text), max_size=4))
    table = _TABLE.setdefault("flags", _parsers())
    words = draw(st.sampled_from(sorted(table)))
    line = list(words)
    for action in draw(st.lists(st.sampled_from(table[words]), max_size=6)) + [action for action in table[words] if action.required]:
        values = [draw(_value(action, where)) for _ in range(action.nargs if isinstance(action.nargs, int) else 1)]
        if not action.option_strings:
            line += values
        elif isinstance(action, argparse._StoreTrueAction):
            line.append(action.option_strings[-1])
        elif len(values) == 1 and draw(st.booleans()):
            line.append(f"{action.option_strings[-1]}={values[0]}")
        else:
            line += [action.option_strings[-1], *values]
    if "--config" in {flag for action in table[words] for flag in action.option_strings}:
        line += draw(st.lists(overrides(where), max_size=3))
        if draw(st.booleans()):  # the last one counts
            line.append(f"--config={next(place for place in where if place.endswith('good.json'))}")
    return [*line, *draw(st.lists(st.sampled_from(FLAG_LIKE), max_size=1))] if draw(st.integers(0, 9)) == 0 else line


_TABLE: dict = {}


@st.composite
def overrides(draw: st.DrawFn, where: tuple[str, ...]) -> str:
    """`--config.NAME=VALUE`."""
    fields = _TABLE.setdefault("fields", list(settings(ExperimentConfig())))
    field = draw(st.sampled_from(fields))
    name = field.name.replace("[i]", f"[{draw(st.sampled_from(('0', '1', '-1', '99', 'x', '')))}]")
    if draw(st.integers(0, 19)) == 0:
        name = draw(st.sampled_from((name[:-1], name + ".x", name.upper(), "", ".", "a..b", name.partition(".")[0])))
    choices = (show(field.value), *field.declaration.choices)
    value = draw(st.one_of(st.sampled_from(choices), st.sampled_from(ANYTHING), st.sampled_from(where)))
    return f"--config.{name}={value}"


_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from((*WORDS, *STRUCTURES)),
    st.lists(st.integers(-2, 9), max_size=3),
    st.dictionaries(st.sampled_from(("path", "kind", "x")), st.none(), max_size=2),
)


@st.composite
def configurations(draw: st.DrawFn) -> dict:
    """A good configuration of which up to three fields hold something else."""
    tree = good_config()
    for _ in range(draw(st.integers(0, 3))):
        place, path = tree, []
        while isinstance(place, dict) and place:
            key = draw(st.sampled_from(sorted(place)))
            path.append((place, key))
            place = place[key]
            if draw(st.integers(0, 4)) == 0:
                break
        if path:
            holder, key = path[-1]
            holder[draw(st.sampled_from((key, key, key, key + "x")))] = draw(_LEAVES)
    return tree
