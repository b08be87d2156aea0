"""README, CONTRIBUTING and docs are true: links, commands, flags, configuration fields, paths and Python code exist as written.

Each check is a function from a page to a list of errors; the last tests show for each of them what it finds.
"""

import ast
import importlib
import importlib.util
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path

import pytest

from vpp_jax.cli.bench import BENCHMARKS
from vpp_jax.cli.main import VERBS
from vpp_jax.cli.parser import Parser
from vpp_jax.common.config_tree import field_type
from vpp_jax.common.errors import VppError
from vpp_jax.config import ExperimentConfig

PROJECT = Path(__file__).resolve().parents[1]
OURS = ("vpp_jax", "data_pipelines", "eval", "configs")
TOPS = (*OURS, "tests", "tools", "benchmarks", "launch", "docs")
GROUPS = tuple(field.name for field in fields(ExperimentConfig) if is_dataclass(field_type(ExperimentConfig, field.name)))
WORD = r"[\w./{},*-]"
# What a newcomer looks for, and the file that has it: at most two hops from the README
LANDMARKS = {
    "the loss of stage 1": "vpp_jax/video_predictor.py",
    "the loss of stage 2": "vpp_jax/policy.py",
    "where a dataset row is added": "data_pipelines/openx/registry.py",
    "where a width is changed": "configs/sizes.py",
    "the sharding rules": "vpp_jax/parallel/partition.py",
}


@dataclass(frozen=True)
class Page:
    """A Markdown text. `path` is relative to the project."""

    path: str
    text: str

    @property
    def blocks(self) -> list[tuple[str, str]]:
        """(language, code) of fenced blocks, and of blocks that are indented by four spaces."""
        fenced = re.findall(r"^```(\w*)\n(.*?)^```", self.text, re.M | re.S)
        indented = re.findall(r"(?<=\n\n)((?:    .*\n|\n(?=    ))+)", self.prose + "\n")
        return [*fenced, *(("", re.sub(r"^    ", "", code, flags=re.M)) for code in indented)]

    @property
    def prose(self) -> str:
        return re.sub(r"^```.*?^```", "", self.text, flags=re.M | re.S)

    @property
    def spans(self) -> list[str]:
        """Inline code, a line break in it read as a space."""
        return [re.sub(r"\s+", " ", span).replace(r"\|", "|") for span in re.findall(r"`([^`]+)`", self.prose)]

    @property
    def code(self) -> list[str]:
        return [*self.spans, *(code for _, code in self.blocks)]

    @property
    def links(self) -> list[str]:
        return re.findall(r"\]\(([^)\s]+)\)", self.prose)


@cache
def pages() -> list[Page]:
    paths = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").rglob("*.md"))]
    return [Page(path.relative_to(PROJECT).as_posix(), path.read_text()) for path in paths]


# --- links


def broken_links(page: Page) -> list[str]:
    """Relative links and images without a file, and anchors without a heading."""
    errors = []
    for link in page.links:
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (PROJECT / page.path).parent / name if name else PROJECT / page.path
        if not target.exists():
            errors.append(f"{page.path}: {link} does not exist")
        elif anchor and anchor not in anchors(target.read_text()):
            errors.append(f"{page.path}: {link}: there is no such heading")
    return errors


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", Page("", text).prose, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- paths and names


def missing_paths(page: Page) -> list[str]:
    """Paths in code that start with one of our folders; capital placeholders such as NAME stand for anything."""
    found = {path.rstrip(".,") for code in page.code for path in re.findall(rf"(?<![\w/.-])(?:{'|'.join(TOPS)})/{WORD}*", code)}
    return [f"{page.path}: {path} does not exist" for path in sorted(found) for one in expand_braces(path) if not matches(one)]


def expand_braces(path: str) -> Iterator[str]:
    """'a/{b,c}.py' -> 'a/b.py', 'a/c.py'."""
    if braces := re.search(r"\{(.*?)\}", path):
        for choice in braces[1].split(","):
            yield from expand_braces(path.replace(braces[0], choice, 1))
    else:
        yield path


def matches(path: str) -> bool:
    if (PROJECT / path).exists():
        return True
    pattern = re.sub(r"\b[A-Z]{3,}\b", "*", path)
    return "*" in pattern and any(PROJECT.glob(pattern))


def missing_names(page: Page) -> list[str]:
    """Dotted names of our modules, and "`NAME` in `PATH.py`"."""
    errors = []
    for span in page.spans:
        if re.fullmatch(rf"({'|'.join(OURS)})(\.\w+)+", span) and not defined(span):
            errors.append(f"{page.path}: {span} does not exist")
    for name, path in re.findall(r"`([\w.]+)` in\s`([\w/]+\.py)`", page.text):
        if (PROJECT / path).exists() and not has_name(PROJECT / path, name):
            errors.append(f"{page.path}: {path} has no {name}")
    return errors


def module_file(module: str) -> Path | None:
    stem = PROJECT / module.replace(".", "/")
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.exists()), None)


def defined(dotted: str) -> bool:
    """Whether a dotted name is a module or package of ours, or something that one defines."""
    if module_file(dotted) or (PROJECT / dotted.replace(".", "/")).is_dir():
        return True
    module, name = dotted, ""
    while "." in module:
        module, _, last = module.rpartition(".")
        name = f"{last}.{name}".rstrip(".")
        if file := module_file(module):
            return has_name(file, name)
    return False


def has_name(file: Path, dotted: str) -> bool:
    node: ast.AST | None = ast.parse(file.read_text())
    for name in dotted.split("."):
        node = members(node).get(name) if node else None
    return node is not None


def members(node: ast.AST) -> dict[str, ast.AST]:
    """What a module or class defines or imports: name -> node."""
    found: dict[str, ast.AST] = {}
    for child in getattr(node, "body", []):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            found[child.name] = child
        elif isinstance(child, ast.Assign | ast.AnnAssign):
            targets = child.targets if isinstance(child, ast.Assign) else [child.target]
            found |= {name.id: child for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(child, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name: child for alias in child.names}
    return found


# --- commands


class _Found(Exception):
    """Carries the parser of a verb out of its main function."""


@cache
def parser_of(verb: str) -> Parser:
    """The parser of 'train', 'data latents', ... : what `main` would parse a command line with."""

    def stop(parser, *_):
        raise _Found(parser)

    name, *rest = verb.split()
    main = importlib.import_module(f"vpp_jax.cli.{name}").main
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parser, "parse_known_args", stop)
        with pytest.raises(_Found) as found:
            main(rest)
    return found.value.args[0]


def wrong_commands(page: Page) -> list[str]:
    """`vpp ...`, `make TARGET`, `python -m MODULE`, and the options of our scripts; `vpp` also behind the `--` of a launch script."""
    errors = []
    for line in (line for code in page.code for line in command_lines(code)):
        prefix, vpp, rest = line.partition("vpp ")
        if vpp and re.fullmatch(r"(\$ )?(\w+=\S* )*", prefix):
            errors += check_vpp(rest)
        elif script := re.match(r"(?:python )?((?:launch|tools|benchmarks)/\w+\.(?:sh|py))(.*)", line):
            options, _, command = script[2].partition(" -- ")
            errors += check_script(script[1], options) + check_vpp(command)
        elif target := re.match(r"make ([a-z][\w-]*)", line):
            errors += [] if target[1] in make_targets() else [f"make has no target {target[1]}"]
        elif module := re.match(r"\S*python -m ([\w.]+)", line):
            ours = module[1].partition(".")[0] in TOPS
            errors += [] if module_file(module[1]) or not ours else [f"there is no module {module[1]}"]
    return [f"{page.path}: {error}" for error in errors]


def command_lines(code: str) -> list[str]:
    """Lines without comments, continued ones joined, and `a | b` of a table or usage as several: 'vpp data index | stats DIR'."""
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in re.sub(r"\\\n\s*", " ", code).splitlines())
    found = []
    for line in filter(None, lines):
        first, *others = re.split(r" \| ", line)
        found += [first, *(f"{first.rpartition(' ')[0]} {other}" for other in others)]
    return found


def check_script(name: str, options: str) -> list[str]:
    """Flags that a script does not mention, neither itself nor in what launch scripts share."""
    sources = [PROJECT / name, *([PROJECT / "launch" / "common.sh"] if name.startswith("launch/") else [])]
    if not sources[0].exists():
        return [f"there is no {name}"]
    known = set(re.findall(r"--\w+", "\n".join(path.read_text() for path in sources)))
    return [f"{name} has no flag {flag}" for flag in re.findall(r"(?<!\S)--\w+", re.sub(r"\$\(.*?\)", "", options)) if flag not in known]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (PROJECT / "Makefile").read_text(), re.M))


def check_vpp(text: str) -> list[str]:
    """What is wrong with the arguments of `vpp`, as far as verbs and the names of flags go; values are not looked at."""
    words = [word for word in shlex.split(text.replace("…", "...")) if word != "..."]
    if not words or words[0] == "VERB" or words[0].startswith("--"):
        return []
    verb, *rest = words
    if verb not in VERBS:
        return [f"vpp has no verb {verb}"]
    if verb == "bench":
        return [f"vpp bench has no {name}" for name in rest[:1] if name not in BENCHMARKS and name != "[options]"]
    if rest[:1] == ["latents"]:
        verb, rest = "data latents", rest[1:]
    if verb == "eval" and ":" in "".join(rest[:1]):  # a benchmark of one's own, with the flags that all have
        rest = ["calvin", *rest[1:]]
    return check_arguments(parser_of(verb), f"vpp {verb}", rest)


def check_arguments(parser: Parser, command: str, words: list[str]) -> list[str]:
    errors, flags, words = [], parser._option_string_actions, list(words)
    while words:
        word = words.pop(0)
        flag, equals, _ = word.partition("=")
        verbs = next((action.choices for action in parser._actions if isinstance(action.choices, dict)), None)
        if flag.startswith("--config."):
            errors += unknown_field(flag.removeprefix("--config."))
        elif flag.startswith("--"):
            if flag not in flags:
                errors.append(f"{command} has no flag {flag}")
            elif not equals and words and flags[flag].nargs != 0 and not words[0].startswith("--"):
                words.pop(0)
        elif verbs is not None:
            if word not in verbs and not word.isupper():
                return [*errors, f"{command} has no verb {word}"]
            return errors + (check_arguments(verbs[word], f"{command} {word}", words) if word in verbs else [])
        elif all(action.option_strings for action in parser._actions):
            errors.append(f"{command} takes no argument {word}")
    return errors


def unknown_field(name: str) -> list[str]:
    if name in ("NAME", "key"):
        return []
    try:
        field_type(ExperimentConfig, re.sub(r"\[\w\]", "[0]", name))
    except VppError as error:
        return [str(error)]
    return []


def unknown_fields(page: Page) -> list[str]:
    """Inline code such as `data.batch_size` or `train.fly = 3`: fields of the configuration."""
    if page.path == "docs/reference/configuration.md":  # is generated, and lists the fields that follow from others
        return []
    errors = []
    for span in page.spans:
        found = re.fullmatch(rf"((?:{'|'.join(GROUPS)})\.[\w.\[\]]+)( ?= ?.+)?", span)
        if found and not found[1].endswith((".py", ".json", ".log")):
            errors += [f"{page.path}: {error}" for error in unknown_field(found[1])]
    return errors


def unknown_flags(page: Page) -> list[str]:
    """Inline code that starts with a flag: it belongs to a verb of ours, to one of our scripts, or (`--xla_...`) to XLA."""
    spans = (span for span in page.spans if re.match(r"--(?!xla_)\w", span))
    flags = {word.partition("=")[0] for span in spans for word in span.split() if word.startswith("--")}
    errors = [error for flag in flags if flag.startswith("--config.") for error in unknown_field(flag.removeprefix("--config."))]
    errors += [f"no verb or script has a flag {flag}" for flag in flags if not flag.startswith("--config.") and flag not in all_flags()]
    return [f"{page.path}: {error}" for error in sorted(errors)]


@cache
def all_flags() -> set[str]:
    """Flags of all verbs, and those written in launch scripts, benchmarks, tools and the program itself (of compilers, of gcloud)."""

    def of(parser: Parser) -> set[str]:
        nested = [one for action in parser._actions if isinstance(action.choices, dict) for one in action.choices.values()]
        return set(parser._option_string_actions).union(*map(of, nested))

    verbs = [verb for verb in (*VERBS, "data latents") if verb != "bench"]
    scripts = [
        path for folder in ("launch", "benchmarks", "tools") for path in (PROJECT / folder).rglob("*") if path.suffix in (".sh", ".py")
    ]
    written = set(re.findall(r"--\w+", "\n".join(path.read_text() for path in scripts)))
    return set().union(*(of(parser_of(verb)) for verb in verbs)) | written | {"--debug", "--version"}


# --- Python


def wrong_python(page: Page) -> list[str]:
    """Python blocks compile; what they import exists; keyword arguments of our functions and dataclasses are among their parameters."""
    errors = []
    for language, code in page.blocks:
        if language == "python":
            try:
                errors += check_python(ast.parse(code))
            except SyntaxError as error:
                errors.append(f"line {error.lineno} of a block is not Python: {error.msg}")
    return [f"{page.path}: {error}" for error in errors]


def check_python(tree: ast.Module) -> list[str]:
    errors, ours = [], {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            if module.partition(".")[0] not in OURS:
                errors += [] if importlib.util.find_spec(module.partition(".")[0]) else [f"module {module} is not installed"]
            elif not (file := module_file(module)):
                errors.append(f"there is no module {module}")
            elif isinstance(node, ast.ImportFrom):
                known = members(ast.parse(file.read_text()))
                ours |= {alias.asname or alias.name: known[alias.name] for alias in node.names if alias.name in known}
                errors += [f"{module} has no {alias.name}" for alias in node.names if alias.name not in known]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and (parameters := parameters_of(ours.get(node.func.id))):
            wrong = [keyword.arg for keyword in node.keywords if keyword.arg and keyword.arg not in parameters]
            errors += [f"{node.func.id} has no parameter {name}" for name in wrong]
    return errors


def parameters_of(node: ast.AST | None) -> set[str]:
    """Names of the parameters; empty where any keyword is taken, or the definition is elsewhere."""
    if isinstance(node, ast.FunctionDef):
        every = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        return set() if node.args.kwarg else {argument.arg for argument in every}
    if isinstance(node, ast.ClassDef):  # a dataclass or NamedTuple
        return {child.target.id for child in node.body if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name)}
    return set()


# --- the pages

CHECKS: tuple[Callable[[Page], list[str]], ...] = (
    broken_links,
    missing_paths,
    missing_names,
    wrong_commands,
    unknown_fields,
    unknown_flags,
    wrong_python,
)


@pytest.mark.parametrize("check", CHECKS)
def test_pages(check):
    errors = [error for page in pages() for error in check(page)]
    assert not errors, "\n".join(errors)


@pytest.mark.parametrize("what", LANDMARKS)
def test_two_hops_from_the_readme(what):
    """The first hop may lead to a page, the last one leads to the file: as a link, or as a path that is named."""
    by_path = {page.path: page for page in pages()}
    readme = by_path["README.md"]
    linked = [(Path(readme.path).parent / link.partition("#")[0]).as_posix() for link in readme.links]
    first = [readme, *(by_path[path] for path in linked if path in by_path)]
    assert any(LANDMARKS[what] in code for page in first for code in page.code), f"{what}: no page of {[page.path for page in first]}"


# --- that each check finds something


@pytest.mark.parametrize(
    ("check", "text", "errors"),
    [
        (broken_links, "[a](nowhere.md), ![b](docs/images/none.png), [c](docs/README.md#no-such-heading)", 3),
        (broken_links, "[a](docs/README.md), [b](docs/README.md#documentation), [c](https://example.org/x)", 0),
        (missing_paths, "`vpp_jax/nowhere.py`, `configs/tiny_calvin_{vae,none}.py`, `tests/data/NAME.none`", 3),
        (missing_paths, "`vpp_jax/policy.py`, `configs/NAME.py`, `docs/`, `runs/eval/policy`, `requirements/*.txt`", 0),
        (missing_paths, "```\npython tools/nowhere.py\n```\n", 1),
        (missing_names, "`vpp_jax.nowhere`, `eval.envs.base.Nothing`, `NOTHING` in `vpp_jax/parallel/partition.py`", 3),
        (missing_names, "`vpp_jax.policy`, `eval.envs.base.LanguageEnvironment`, `VideoPredictor.loss` in `vpp_jax/video_predictor.py`", 0),
        (wrong_commands, "`vpp fly`, `vpp data fly`, `vpp train --fly=1`, `vpp data build calvin --fly`, `vpp bench fly`, `make fly`", 6),
        (wrong_commands, "`vpp train --config.train.fly=1`, `vpp report --out FILE DIR`, `python -m tests.fly`, `vpp demo DIR`", 3),
        (wrong_commands, "```\nA=1 vpp train --config=FILE \\\n    --fly   # --comment\n```\n\n    vpp data index | fly DIR\n", 2),
        (wrong_commands, "```\nlaunch/tpu.sh start --name x --fly -- train --fly\n```\n", 2),
        (wrong_commands, "`python tools/faults.py --out DIR --fly`, `python tools/fly.py`, `launch/xpk.sh --dry_run`", 2),
        (wrong_commands, "`vpp train --config=X --config.data.datasets[0].path=Y`, `vpp data stats --quantiles 0 1 DIR`, `vpp VERB`", 0),
        (unknown_fields, "`data.fly`, `train.fly = 3`, `model.unet.in_channels`", 3),
        (unknown_fields, "`data.batch_size`, `data.datasets[i].path`, `policy_diffusion.feature_draws = 0`, `policy.act`", 0),
        (unknown_flags, "`--fly`, `--workers 3 --fly=1`, `--config.train.fly=1`", 2),
        (unknown_flags, "`--workers N`, `--config.train.steps=3`, `--dry_run`", 0),
        (wrong_python, "```python\nimport nowhere_at_all\nfrom vpp_jax.nowhere import x\nfrom vpp_jax.policy import Nothing\n```\n", 3),
        (wrong_python, "```python\nfrom eval.host_loop import Episode\nEpisode(fly=1)\n```\n```python\nfor for\n```\n", 2),
        (wrong_python, "```python\nfrom eval.host_loop import Episode\nEpisode(index=1)\n```\n", 0),
    ],
)
def test_what_a_check_finds(check, text, errors):
    found = check(Page("README.md", text))
    assert len(found) == errors, found
