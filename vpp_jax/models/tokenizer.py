"""CLIP's byte-pair encoding, with its merge table inside the package. Does not import JAX: data workers and simulator hosts use it."""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

START_OF_TEXT = 49406
END_OF_TEXT = 49407
VOCABULARY_SIZE = 49408

_END_OF_WORD = "</w>"
_SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
# English contractions, runs of letters, single digits, runs of anything else that is visible; white space separates and is dropped.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def _byte_alphabet() -> list[str]:
    """One visible character per byte, in the vocabulary's order: printable bytes are themselves, the others are numbered from 256 on."""
    printable = [chr(code) for first, last in ("!~", "¡¬", "®ÿ") for code in range(ord(first), ord(last) + 1)]
    return printable + [chr(code) for code in range(256, 512 - len(printable))]


@cache
def _byte_pair_encoder() -> Tokenizer:
    """Built once per process (about 0.2 s). Not a field of `CLIPTokenizer`, so that pickling one stays cheap."""
    table = (resources.files("vpp_jax.models") / "clip_bpe" / "merges.txt.gz").read_bytes()
    merges = [(left, right) for left, right in map(str.split, gzip.decompress(table).decode().splitlines())]
    alphabet = _byte_alphabet()
    words = [*alphabet, *(character + _END_OF_WORD for character in alphabet), *(left + right for left, right in merges), *_SPECIAL_TOKENS]
    vocabulary = {word: number for number, word in enumerate(words)}
    encoder = Tokenizer(BPE(vocabulary, merges, end_of_word_suffix=_END_OF_WORD, unk_token=_SPECIAL_TOKENS[1]))
    encoder.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words_alone = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    encoder.pre_tokenizer = pre_tokenizers.Sequence([words_alone, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    encoder.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(_END_OF_WORD, " ")])
    encoder.add_special_tokens([AddedToken(token, normalized=False) for token in _SPECIAL_TOKENS])
    return encoder


@dataclass(frozen=True)
class CLIPTokenizer:
    """Instructions -> token ids and mask, both `length` wide, as Hugging Face's CLIPTokenizer gives them with padding='max_length'.

    A row is start-of-text, the instruction, end-of-text, then padding. Padding is the end-of-text token itself (the mask tells them
    apart; the first one is the real one). An instruction that is too long loses its tail but keeps its end token.
    """

    length: int = 77

    def __post_init__(self):
        if not 3 <= self.length <= 77:
            raise ValueError(f"text length must be in [3, 77] (start, at least one token, end; CLIP has 77 positions), got {self.length}")

    def __call__(self, texts: Sequence[str]) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """-> (ids int32, mask bool, True on start, instruction and end tokens). Raises ValueError for an instruction without a token."""
        if isinstance(texts, str):
            raise TypeError(f"expected a list of instructions, got one string: {texts!r}")
        ids = np.full((len(texts), self.length), END_OF_TEXT, np.int32)
        mask = np.zeros((len(texts), self.length), bool)
        for row, text in enumerate(texts):
            tokens = _byte_pair_encoder().encode(text, add_special_tokens=False).ids[: self.length - 2]
            if not tokens:
                raise ValueError(f"instruction {row} of {len(texts)} is empty ({text!r}); every example needs one")
            ids[row, : len(tokens) + 1] = [START_OF_TEXT, *tokens]
            mask[row, : len(tokens) + 2] = True
        return ids, mask

    def decode(self, ids: Int[np.ndarray, "b l"], mask: Bool[np.ndarray, "b l"]) -> list[str]:
        """Instructions decoded from the tokens: lower case, punctuation separated, truncated to `length`."""
        rows = zip(np.asarray(ids), np.asarray(mask), strict=True)
        return [_byte_pair_encoder().decode(row[real].tolist(), skip_special_tokens=True).strip() for row, real in rows]
