"""CLIP's byte-pair encoding, with its merge table inside the package. Does not import JAX: data workers and simulator hosts use it."""

import gzip
import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

log = logging.getLogger(__name__)

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
    encoder.normalizer = normalizers.Replace(Regex(r"\s+"), " ")
    words_alone = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    encoder.pre_tokenizer = pre_tokenizers.Sequence([words_alone, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    encoder.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(_END_OF_WORD, " ")])
    encoder.add_special_tokens([AddedToken(token, normalized=False) for token in _SPECIAL_TOKENS])
    return encoder


def _normalized(text: str) -> str:
    """Composed letters, lower case. By Python, as the published tokenizer: other lower cases do not know the sigma that ends a word."""
    return unicodedata.normalize("NFC", text).lower()


@lru_cache(maxsize=10_000)
def _warn_of_dropped(text: str, tokens: int, limit: int, dropped: str) -> None:
    """Once per text and limit."""
    log.warning("instruction of %d tokens, of which the model reads %d: '%s' loses its end '%s'", tokens, limit, text, dropped)


@dataclass(frozen=True)
class CLIPTokenizer:
    """Instructions -> token ids and mask, both `length` wide, as Hugging Face's CLIPTokenizer gives them with padding='max_length'.

    A row is start-of-text, the instruction, end-of-text, then padding. Padding is the end-of-text token itself (the mask tells them
    apart; the first one is the real one). An instruction that is too long loses its tail but keeps its end token; a warning says, once,
    what was lost.
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
            normalized = _normalized(text)
            encoding = _byte_pair_encoder().encode(normalized, add_special_tokens=False)
            tokens, limit = encoding.ids, self.length - 2
            if not tokens:
                raise ValueError(f"instruction {row} of {len(texts)} is empty ({text!r}); every example needs one")
            if len(tokens) > limit:
                _warn_of_dropped(text, len(tokens), limit, normalized[encoding.offsets[limit][0] :])
                tokens = tokens[:limit]
            ids[row, : len(tokens) + 1] = [START_OF_TEXT, *tokens]
            mask[row, : len(tokens) + 2] = True
        return ids, mask

    def decode(self, ids: Int[np.ndarray, "b l"], mask: Bool[np.ndarray, "b l"]) -> list[str]:
        """Instructions decoded from the tokens: lower case, punctuation separated, truncated to `length`."""
        rows = zip(np.asarray(ids), np.asarray(mask), strict=True)
        return [_byte_pair_encoder().decode(row[real].tolist(), skip_special_tokens=True).strip() for row, real in rows]
