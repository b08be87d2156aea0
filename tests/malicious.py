"""Pickles that run something when `pickle` loads them: they create a file. Harmless, and they show that a reader runs nothing."""

import os
import pickle
import struct
import subprocess
from pathlib import Path


class Malicious:
    """Pickles to a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self._call = (function, arguments)

    def __reduce__(self):
        return self._call


def attacks(canary: Path) -> dict[str, bytes]:
    """Name -> a pickle that creates the file `canary` when it is loaded."""
    run = f"open({str(canary)!r}, 'w').close()"
    command = f"touch {canary}"
    raw = command.encode()
    text = b"X" + struct.pack("<I", len(raw)) + raw
    code = b"X" + struct.pack("<I", len(run)) + run.encode()
    return {
        "reduce, protocol 2": pickle.dumps({"model": Malicious(os.system, command)}, 2),
        "reduce, protocol 4 (STACK_GLOBAL)": pickle.dumps({"model": Malicious(os.system, command)}, 4),
        "reduce, protocol 0": pickle.dumps({"model": Malicious(os.system, command)}, 0),
        "eval": pickle.dumps({"model": Malicious(eval, run)}, 2),
        "exec below args": pickle.dumps({"model": {}, "args": {"deep": [1, (2, Malicious(exec, run))]}}, 2),
        "subprocess": pickle.dumps({"model": Malicious(subprocess.call, ["touch", str(canary)])}, 2),
        "dotted name": b"\x80\x04\x8c\x08builtins\x8c\x0deval.__call__\x93" + code + b"\x85R.",
        "getattr of an allowed module": b"\x80\x02c__builtin__\ngetattr\nc__builtin__\n__import__\nX\x02\0\0\0os\x85RX\x06\0\0\0system\x86R"
        + text
        + b"\x85R.",
        "INST": b"(S'" + raw + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\n" + text + b"o.",
        "NEWOBJ_EX and BUILD": pickle.dumps({"model": Malicious(os.system, command)}, 2)[:-1] + b"}b.",
        "memoised function": b"\x80\x02cos\nsystem\nq\x01" + text + b"\x85q\x02h\x01h\x02R.",
    }
