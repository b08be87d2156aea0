"""CLIP's byte-pair encoding: known ids, padding, truncation, and its place outside JAX."""

import gzip
import hashlib
import pickle
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest

from vpp_jax.models.tokenizer import END_OF_TEXT, START_OF_TEXT, CLIPTokenizer


def test_known_ids():
    ids, mask = CLIPTokenizer(8)(["a photo of a cat"])
    np.testing.assert_array_equal(ids, [[49406, 320, 1125, 539, 320, 2368, 49407, 49407]])
    np.testing.assert_array_equal(mask, [[True] * 7 + [False]])
    assert ids.dtype == np.int32
    assert mask.dtype == bool


def test_case_and_spacing_do_not_matter():
    ids, _ = CLIPTokenizer(20)(["push the red block", "  Push   THE red\nblock "])
    np.testing.assert_array_equal(ids[0], ids[1])


def test_composed_and_decomposed_letters_are_the_same():
    ids, mask = CLIPTokenizer(8)(["caf\u00e9 na\u00efve 2", "cafe\u0301 nai\u0308ve 2"])
    np.testing.assert_array_equal(ids, [[49406, 15304, 1097, 35689, 563, 273, 49407, 49407]] * 2)
    assert mask.sum() == 14


def test_rows_are_start_text_end_padding():
    ids, mask = CLIPTokenizer(20)(["lift the red block from the drawer", "open the drawer", "don't push café 42!"])
    for row, row_mask in zip(ids, mask, strict=True):
        count = int(row_mask.sum())
        assert row[0] == START_OF_TEXT
        assert np.all(row_mask[:count])
        assert not np.any(row_mask[count:])
        assert np.argmax(row == END_OF_TEXT) == count - 1  # the first end token is the real one
        assert np.all(row[count - 1 :] == END_OF_TEXT)


def test_width_only_adds_padding():
    short, long = (CLIPTokenizer(length)(["open the drawer"]) for length in (10, 77))
    np.testing.assert_array_equal(short[0], long[0][:, :10])
    np.testing.assert_array_equal(short[1], long[1][:, :10])
    assert not long[1][:, 10:].any()


def test_long_instructions_keep_their_end_token():
    instruction = "a photo of a cat " * 30
    (cut,), (cut_mask,) = CLIPTokenizer(20)([instruction])
    (whole,), _ = CLIPTokenizer(77)([instruction])
    np.testing.assert_array_equal(cut[:19], whole[:19])
    assert cut[19] == END_OF_TEXT
    assert cut_mask.all()


@pytest.mark.parametrize("empty", ["", "   ", "\n\t"])
def test_empty_instruction_is_refused(empty):
    with pytest.raises(ValueError, match="instruction 1 of 2 is empty"):
        CLIPTokenizer(20)(["open the drawer", empty])


def test_one_string_is_refused():
    with pytest.raises(TypeError, match="list of instructions"):
        CLIPTokenizer(20)("open the drawer")


@pytest.mark.parametrize("length", [0, 2, 78])
def test_bad_length_is_refused(length):
    with pytest.raises(ValueError, match="text length"):
        CLIPTokenizer(length)


def test_pickles_for_worker_processes():
    tokenizer = CLIPTokenizer(20)
    tokenizer(["open the drawer"])
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy(["open the drawer"])[0], tokenizer(["open the drawer"])[0])


def test_no_instructions_give_empty_arrays():
    ids, mask = CLIPTokenizer(20)([])
    assert ids.shape == mask.shape == (0, 20)


def test_encoding_needs_neither_jax_nor_a_hub(project):
    """The package `tokenizers` depends on huggingface_hub: it must stay on the disk, since nothing is fetched at run time."""
    code = """
import sys
from vpp_jax.models.tokenizer import CLIPTokenizer
CLIPTokenizer(20)(["open the drawer"])
assert not {"jax", "huggingface_hub", "requests", "transformers"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=project, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_vocabulary_is_the_published_one():
    """The package's merge table by its contents: a byte that is lost in packaging would change ids silently."""
    table = resources.files("vpp_jax.models") / "clip_bpe" / "merges.txt.gz"
    merges = gzip.decompress(table.read_bytes())
    assert hashlib.sha256(merges).hexdigest() == "d308b7377a8ceaa9707a21614fe8c831b9196e197b7aeb69833359362907af02"
    assert (table.parent / "LICENSE").read_text().count("Copyright (c) 2021 OpenAI") == 1


def test_decode_gives_the_instructions_back():
    instructions = ["open the drawer", "push the sliding door to the left side", "turn off the green lamp"]
    tokenizer = CLIPTokenizer(20)
    assert tokenizer.decode(*tokenizer(instructions)) == instructions
    short = CLIPTokenizer(5)
    assert short.decode(*short(["push the door to the left"])) == ["push the door"]


def test_the_sigma_that_ends_a_word_is_another_letter():
    """As Python lowers it, and with it the published tokenizer; Hangul and letters with accents are composed first."""
    ids, _ = CLIPTokenizer(20)(["ΟΔΟΣ ΣΟΦΙΑΣ", "οδος σοφιας", "οδοσ σοφιασ"])
    np.testing.assert_array_equal(ids[0], ids[1])
    assert (ids[0] != ids[2]).any()
    ids, _ = CLIPTokenizer(20)(["한글", "\u1112\u1161\u11ab\u1100\u1173\u11af", "CAFÉ", "cafe\u0301"])
    np.testing.assert_array_equal(ids[0], ids[1])
    np.testing.assert_array_equal(ids[2], ids[3])


def test_what_a_long_instruction_loses_is_said_once(caplog):
    tokenizer, long = CLIPTokenizer(6), "Push the red block to the LEFT side"
    tokenizer([long, "open the drawer"])
    tokenizer([long])
    assert [record.message for record in caplog.records] == [
        "instruction of 8 tokens, of which the model reads 4: 'Push the red block to the LEFT side' loses its end 'to the left side'"
    ]
    CLIPTokenizer(7)([long])
    assert "reads 5" in caplog.records[-1].message
