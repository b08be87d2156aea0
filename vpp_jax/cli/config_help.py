"""The configuration's fields as text: for `--help`, and as the reference page.

`python -m vpp_jax.cli.config_help` writes docs/reference/configuration.md anew.
"""

import re
import textwrap
from pathlib import Path
from typing import Any

from vpp_jax.common.config_fields import Group, Setting, groups, settings
from vpp_jax.common.files import write_atomically
from vpp_jax.config import ExperimentConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "configuration.md"
HEAD = """# Configuration

Every field that a configuration file, `--config.NAME=VALUE` or a run's `config.json` may set. This page is generated from the declarations
in the code (`python -m vpp_jax.cli.config_help` regenerates it); `vpp train --help` prints the same in a terminal, and
`vpp train --config=FILE --help` with the values of a file.

A configuration file starts from the defaults (the published size) and changes fields:

```python
from vpp_jax.config import default_config


def get_config():
    config = default_config()
    config.stage = "video"
    config.data.datasets = ({"path": "data/calvin_abc", "name": "calvin"},)
    config.train.update(steps=100_000, save_every=1_000)
    return config
```

On resume: *free* fields may change silently; *announced* fields may change, and the run prints and logs both values; if any other field has
changed, the run is refused.
"""
DERIVED = """## Derived

Widths that two parts must share are set in one of them; the other follows. No file or flag sets these.

| field | follows from | description |
|---|---|---|"""


def field_help(config: ExperimentConfig, width: int = 100) -> str:
    """Every field with its value in `config`, type, range and description, by group."""
    defaults = {entry.name: entry.value for entry in settings(ExperimentConfig())}
    return "\n\n".join(_group_help(one, defaults, width) for one in groups(config) if one.settings)


def _group_help(group: Group, defaults: dict[str, Any], width: int) -> str:
    lines = textwrap.wrap(f"{group.name or 'experiment'}: {group.description}", width)
    for entry in group.settings:
        default = defaults.get(re.sub(r"\[\d+\]", "[i]", entry.name), entry.value)
        facts = [entry.type_name, entry.declaration.range, "" if default == entry.value else f"default {show(default)}"]
        head, facts = f"  --config.{entry.name}={show(entry.value)}", f"({'; '.join(filter(None, facts))})"
        lines += [f"{head}  {facts}"] if len(head) + len(facts) < width else [head, *_indented(facts, width)]
        lines += _indented(entry.declaration.description, width)
    return "\n".join(lines)


def _indented(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)


def show(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        entries = ", ".join(repr(item) if isinstance(item, str) else show(item) for item in value)
        return f"({entries},)" if len(value) == 1 else f"({entries})"
    return "''" if value == "" else "none" if value is None else str(value)


def reference_page() -> str:
    """docs/reference/configuration.md."""
    found = list(groups(ExperimentConfig()))
    first = {one.details: one.name for one in reversed(found)}  # groups of one class have the same details, which are shown once
    return "\n".join([HEAD, *(_group_table(one, first[one.details]) for one in found if one.settings), DERIVED, *_derived_rows(found), ""])


def _group_table(group: Group, explained_at: str) -> str:
    lines = [f"## {f'`{group.name}`' if group.name else 'The experiment'}", "", group.description, ""]
    if group.details and explained_at != group.name:
        lines += [f"Explained at `{explained_at}`.", ""]
    elif group.details:
        lines += ["```text", group.details, "```", ""]
    header = ["| field | default | type | range | on resume | description |", "|---|---|---|---|---|---|"]
    return "\n".join([*lines, *header, *map(_field_row, group.settings), ""])


def _field_row(entry: Setting) -> str:
    about = entry.declaration
    return _row(f"`{entry.name}`", f"`{show(entry.value)}`", entry.type_name, about.range, about.on_resume, about.description)


def _derived_rows(found: list[Group]) -> list[str]:
    entries = [entry for one in found for entry in one.derived]
    return [_row(f"`{entry.name}`", entry.declaration.derived_from, entry.declaration.description) for entry in entries]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


if __name__ == "__main__":
    write_atomically(PAGE, reference_page())
    print(f"wrote {PAGE}")
