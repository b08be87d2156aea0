"""Our CLIP tokens against transformers' CLIPTokenizer, built from the published merge table that the wheel of open_clip carries.

Ours comes from the table in this package, so the comparison holds that table, too.
"""

import gzip
import importlib.metadata

import numpy as np
import pytest

pytest.importorskip("transformers", reason="transformers is not installed: `make parity` compares with it")

from transformers import CLIPTokenizer as TheirTokenizer

from vpp_jax.models.tokenizer import CLIPTokenizer

INSTRUCTIONS = (
    "push the sliding door to the left side",
    "grasp and lift the red block",
    "turn off the green light",
    "a",
    "Open the DRAWER.",
    "rotate the pink block 90 degrees to the right",
    "place the grasped object in the sliding cabinet",
    "42",
    "3.14159 metres",
    "don't push it; they'll've fallen",
    "it's the robot's arm, isn't it?",
    "I'd say we're done!",
    "e-mail: robot@example.com",
    "https://example.com/a?b=c&d=e#f",
    "{'key': [1, 2, 3]}",
    "C++ & C# != F#",
    "100% sure... (or not?)",
    "$5.00 + 20€ = £12",
    "  many   spaces\tand\nlines  ",
    "ÄÖÜ äöü ß",
    "café naïve façade",
    "Ærøskøbing",
    "Привет, мир",
    "стол и стул",
    "你好,世界",
    "把红色方块推到左边",
    "日本語のテキスト",
    "한국어 문장",
    "שלום עולם",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "ไทย",
    "smile 😀 and 🤖🦾",
    "½ cup, 3² tiles, №5",
    "α β γ δ σ ρ",
    "→ left ← right",
    "“quoted” ‘text’ – dash — long",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "zzzzzzzzzzzzzzqqqqqqqqqqxxxx",
    "UPPER lower MiXeD",
    "tab\tseparated\tvalues",
    "_under_scores_and-hyphens-",
    "<b>bold</b>",
    "ﬁne ligature",
    "ﾊﾝｶｸ",
    "cafe\u0301 nai\u0308ve, decomposed letters",
    "\u1100\u1161 jamo",
    "a\u00a0b\u3000c\u200bd\u0085e",
    "\u1112\u1161\u11ab\u1100\u1173\u11af, decomposed Hangul",
    "<|startoftext|>open<|endoftext|> the drawer",
    " ".join(["lift the very heavy blue block"] * 20),
    "word " * 100,
)


def bytes_as_characters() -> dict[int, str]:
    """Byte-level BPE's alphabet: printable bytes stand for themselves, the others for the characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@pytest.fixture(scope="module")
def theirs():
    try:
        files = importlib.metadata.files("open_clip_torch") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    table = next((file.locate() for file in files if file.name.startswith("bpe_simple_vocab")), None)
    if table is None:
        pytest.skip("open_clip_torch is not installed: its wheel carries CLIP's merge table")
    lines = gzip.decompress(table.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    alphabet = list(bytes_as_characters().values())
    words = [*alphabet, *(character + "</w>" for character in alphabet), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return TheirTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=merges)


@pytest.mark.parametrize("length", [20, 77])
def test_ids_and_masks(length, theirs):
    """padding and truncation to a length, as the published code asks for: 20 tokens for the U-Net, 77 for the goal."""
    want = theirs(list(INSTRUCTIONS), padding="max_length", max_length=length, truncation=True, return_tensors="np")
    ids, mask = CLIPTokenizer(length)(list(INSTRUCTIONS))
    different = [text for text, a, b in zip(INSTRUCTIONS, ids, want["input_ids"], strict=True) if not np.array_equal(a, b)]
    assert not different
    np.testing.assert_array_equal(mask, want["attention_mask"].astype(bool))
