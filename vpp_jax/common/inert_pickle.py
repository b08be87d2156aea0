"""Pickles read as data: the opcodes build a tree of plain values and of records of the calls that the pickle contains.

Nothing is imported, looked up or called. `REDUCE` makes a `Call` record, `GLOBAL` a `Global` record, `BUILD` stores a state in a record;
there is no opcode that does more. A file with names outside the caller's table is refused.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vpp_jax.common.errors import FileFormatError


@dataclass(frozen=True)
class Global:
    """A name in a module; it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Call:
    """A call in a pickle: the function, its arguments, and what is stored into the result. It is never made."""

    function: Any
    arguments: tuple
    items: dict = field(default_factory=dict)  # SETITEM(S) on the result
    elements: list = field(default_factory=list)  # APPEND(S) on the result
    state: Any = None  # BUILD on the result


@dataclass(frozen=True)
class Persistent:
    """A reference to an object outside of the pickle (in PyTorch: a storage)."""

    identity: Any


_VALUES = {
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "LONG4",
    "BINFLOAT",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BYTEARRAY8",
    "BINSTRING",
    "SHORT_BINSTRING",
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


def read_pickle(
    data: bytes,
    allowed: Callable[[Global], bool],
    where: str,
    *,
    content: str = "weight files",
    advice: str = "If the file is yours, save the tensors alone, best as safetensors",
) -> Any:
    """The tree of one pickle. FileFormatError where it is damaged, uses opcodes that `content` does not, or names what is not allowed."""
    try:
        tree, names = _interpret(data, where, content)
    except FileFormatError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise FileFormatError(f"{where}: the pickle is damaged ({type(error).__name__}: {error})") from None
    forbidden = sorted({str(name) for name in names if not allowed(name)})
    if forbidden:
        listed = ", ".join(forbidden[:8]) + (", ..." if len(forbidden) > 8 else "")
        raise FileFormatError(
            f"{where} is refused: its pickle calls for {listed}, which {content} have no use for. Nothing of it was run. {advice}"
        )
    return tree


def _interpret(data: bytes, where: str, content: str) -> tuple[Any, list[Global]]:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    names: list[Global] = []

    def since_mark() -> list[Any]:
        place = len(stack) - 1 - stack[::-1].index(_MARK)
        values = stack[place + 1 :]
        del stack[place:]
        return values

    def name(module: str, attribute: str) -> None:
        names.append(Global(module, attribute))
        stack.append(names[-1])

    argument: Any  # its type depends on the opcode
    for opcode, argument, position in pickletools.genops(data):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack[-1], names
            case kind if kind in _VALUES:
                stack.append(argument)
            case kind if kind in _CONSTANTS:
                stack.append(_CONSTANTS[kind])
            case kind if kind in _EMPTY:
                stack.append(_EMPTY[kind]())
            case "MARK":
                stack.append(_MARK)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case kind if kind in _TUPLES:
                count = _TUPLES[kind]
                values = tuple(stack[-count:])
                del stack[-count:]
                stack.append(values)
            case "APPEND":
                value = stack.pop()
                _elements(stack[-1]).append(value)
            case "APPENDS":
                values = since_mark()
                _elements(stack[-1]).extend(values)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _items(stack[-1])[_key(key)] = value
            case "SETITEMS":
                values = since_mark()
                _items(stack[-1]).update(zip(map(_key, values[::2]), values[1::2], strict=True))
            case "GLOBAL":
                name(*argument.split(" ", 1))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                name(str(module), str(attribute))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                stack.append(Call(function, tuple(arguments)))
            case "BUILD":
                state, target = stack.pop(), stack[-1]
                if isinstance(target, Call):  # a state of other values is never needed
                    target.state = state
            case "BINPERSID":
                stack.append(Persistent(stack.pop()))
            case kind:
                raise FileFormatError(f"{where} is refused: its pickle has opcode {kind} at byte {position}, which {content} never use")
    raise ValueError("it ends without STOP")


def _items(target: Any) -> dict:
    return target.items if isinstance(target, Call) else _expect(target, dict)


def _elements(target: Any) -> list:
    return target.elements if isinstance(target, Call) else _expect(target, list)


def _key(value: Any) -> Any:
    """A dict's key. Plain values only: hashing a deeply nested tuple would overflow the interpreter's stack."""
    if value is not None and not isinstance(value, str | int | float | bytes):
        raise TypeError(f"a {type(value).__name__} as the key of a dict")
    return value


def _expect(target: Any, kind: type) -> Any:
    if type(target) is not kind:
        raise TypeError(f"expected a {kind.__name__}, found a {type(target).__name__}")
    return target
