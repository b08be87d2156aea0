"""Captions as people write them: encodings, separators, names, and several instructions per clip."""

import json
import os
import unicodedata

import numpy as np
import pytest

from data_pipelines.builders.human_video import HumanVideoSettings, list_clips
from data_pipelines.builders.video_files import BadVideoError
from data_pipelines.builders.video_listings import annotated
from data_pipelines.errors import DataError
from data_pipelines.instructions import draw, instructions_of
from data_pipelines.loader import make_iterator
from vpp_jax.common.errors import FileFormatError, VppError
from vpp_jax.common.text_files import decode_text

CAPTION = "öffne die Schublade"


@pytest.fixture
def source(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "b.mp4").write_bytes(b"")
    return tmp_path


def clips(source, **settings) -> dict[str, tuple]:
    found = list_clips(HumanVideoSettings(source=str(source), layout="folder", **settings))
    return {clip.file: clip.captions or clip.problem for clip in found}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_tables_of_any_unicode_encoding_and_separator(source, separator, encoding, line):
    rows = [("Video ", "caption"), ("a.mp4", f'"{CAPTION}, bitte"'), ("b", "shut it")]
    (source / "captions.csv").write_bytes(line.join(separator.join(row) for row in rows).encode(encoding))
    assert clips(source) == {"a.mp4": (f"{CAPTION}, bitte",), "b.mp4": ("shut it",)}


def test_a_separator_line_for_excel(source):
    (source / "captions.csv").write_text("sep=;\nvideo;caption\na.mp4;open\nb.mp4;shut")
    assert clips(source) == {"a.mp4": ("open",), "b.mp4": ("shut",)}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_caption_files_and_json_with_a_byte_order_mark(source, encoding):
    (source / "a.txt").write_bytes(CAPTION.encode(encoding))
    assert clips(source) == {"a.mp4": (CAPTION,), "b.mp4": "no caption"}
    (source / "captions.json").write_bytes(json.dumps({"a.mp4": CAPTION}, ensure_ascii=False).encode(encoding))
    assert clips(source)["a.mp4"] == (CAPTION,)
    (source / "captions.json").unlink()
    row = {"video": "a", "caption": f"{CAPTION}\u2028now"}
    (source / "captions.jsonl").write_bytes(json.dumps(row, ensure_ascii=False).encode(encoding))
    assert clips(source)["a.mp4"] == (f"{CAPTION} now",)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (f"video,caption\na.mp4,{CAPTION}".encode("latin-1"), r"captions\.csv: byte 20 \(0xf6, line 2\) is not UTF-8; .*Latin-1"),
        ("video,caption\na.mp4,“open”".encode("cp1252"), "is not UTF-8; it looks like Windows-1252"),
        (f"video,caption\na.mp4,{CAPTION}".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        ("video,caption\na.mp4,öffne".encode("utf-16-be"), "UTF-16 without a byte order mark"),
        (b"\xff\xfev", "begins as UTF-16 but is damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        (b"video,caption\na.mp4,\x00", "holds NUL characters"),
        (b'video,caption\na.mp4,"' + b"x" * 200_000, "not a table separated by"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_encoding(source, data, problem):
    (source / "captions.csv").write_bytes(data)
    with pytest.raises(VppError, match=problem):
        clips(source)


def test_names_that_were_written_elsewhere_are_found(source):
    (source / "deep").mkdir()
    composed = unicodedata.normalize("NFC", "tür.mp4")
    (source / "deep" / unicodedata.normalize("NFD", composed)).write_bytes(b"")
    (source / "._a.mp4").write_bytes(b"")  # macOS's, on disks of others
    table = {"./a.mp4": "open", "b.mp4 ": "shut", f"deep\\{composed}": "turn"}
    (source / "captions.json").write_text(json.dumps(table))
    assert list(clips(source).values()) == [("open",), ("shut",), ("turn",)]


def test_a_file_name_that_is_not_utf_8_is_a_problem_of_its_clip(source):
    os.close(os.open(os.fsencode(str(source)) + b"/caf\xe9.mp4", os.O_CREAT))
    assert clips(source, val_fraction=0.5)["caf\\xe9.mp4"] == "its name is not UTF-8; rename it (convmv does so for whole directories)"


def test_several_captions_of_a_clip(source):
    (source / "captions.json").write_text(json.dumps({"a.mp4": ["lift it", " raise  the cube", "lift it", ""], "b.mp4": "shut it"}))
    assert clips(source) == {"a.mp4": ("lift it", "raise the cube"), "b.mp4": ("shut it",)}


@pytest.mark.parametrize("value", [{"en": "lift it"}, float("nan"), 3, True, [["lift"]], ["lift", 3], "\ud800"])
def test_captions_that_are_no_texts_are_refused_with_file_and_row(source, value):
    rows = [{"video": "b.mp4", "caption": "shut it"}, {"video": "a.mp4", "caption": value}]
    (source / "captions.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"captions\.json row 2 \(a\.mp4\), 'caption': (expected a text|half of a character)"):
        clips(source)


def test_captions_of_the_other_layouts(tmp_path):
    (tmp_path / "1.webm").write_bytes(b"")
    labels = [{"id": "1", "label": ["push it", "move it"]}, {"id": "2", "label": None, "template": "Push [it]", "placeholders": ["a cup"]}]
    (tmp_path / "train.json").write_text(json.dumps(labels), "utf-8-sig")
    found = list_clips(HumanVideoSettings(source=str(tmp_path)))
    assert [clip.captions for clip in found] == [("push it", "move it"), ("Push a cup",)]
    (tmp_path / "train.json").write_text(json.dumps([{"id": "1", "label": {"en": "push"}}]))
    with pytest.raises(DataError, match=r"train\.json entry 0 \(id 1\), 'label': expected a text"):
        list_clips(HumanVideoSettings(source=str(tmp_path)))
    annotation = tmp_path / "annotation" / "train" / "0.json"
    annotation.parent.mkdir(parents=True)
    annotation.write_text(json.dumps({"texts": ["open", "pull"], "videos": [{"video_path": "1.webm"}]}), "utf-16")
    (clip,) = list_clips(HumanVideoSettings(source=str(tmp_path), layout="vpp"))
    assert annotated(tmp_path, clip, latents=False)[0].captions == ("open", "pull")
    for content, problem in (({"texts": [3], "videos": []}, "'texts': expected a text"), ([], "no annotation"), ("\xe9", "no annotation")):
        annotation.write_text(json.dumps(content))
        with pytest.raises(BadVideoError, match=rf"0\.json.*{problem}"):
            annotated(tmp_path, clip, latents=False)
    annotation.write_bytes(b"\xe9")
    with pytest.raises(BadVideoError, match=r"0\.json.*is not UTF-8"):
        annotated(tmp_path, clip, latents=False)


# --- one of several instructions is drawn ---------------------------------------------------------------------------------------------


def test_every_epoch_draws_one_instruction_by_its_numbers():
    texts = ("lift it", "raise it", "pick it up")
    drawn = [draw(texts, 7, epoch) for epoch in range(60)]
    assert set(drawn) == set(texts)
    assert drawn == [draw(texts, 7, epoch) for epoch in range(60)]
    assert drawn != [draw(texts, 8, epoch) for epoch in range(60)]
    assert {draw(("open",), 7, epoch) for epoch in range(9)} == {"open"}


def test_values_that_are_instructions():
    assert instructions_of(np.array(b"open"), "here") == ("open",)
    assert instructions_of(np.array([b"open", b"", b"pull"], object), "here") == ("open", "pull")
    assert instructions_of(np.bytes_(b"open"), "here") == ("open",)
    assert instructions_of(np.str_("open"), "here") == ("open",)
    assert instructions_of("\ufeff open\n", "here") == ("open",)
    assert instructions_of(None, "here") == instructions_of([], "here") == instructions_of(" ", "here") == ()


class Epochs:
    """Examples that show their number and epoch."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.in_epoch(index, 0)

    def metadata(self):
        return {}

    def in_epoch(self, index, epoch):
        return {"number": np.array(index), "epoch": np.array(epoch)}


@pytest.mark.parametrize("threads", [0, 2])
def test_the_loader_tells_a_source_its_epoch(threads):
    batches = make_iterator(Epochs(), 2, seed=0, threads=threads)
    shown = [(int(n), int(e)) for _ in range(6) for batch in [next(batches)] for n, e in zip(batch["number"], batch["epoch"], strict=True)]
    assert [epoch for _, epoch in shown] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert all({number for number, _ in shown[start : start + 3]} == {0, 1, 2} for start in (0, 3, 6, 9))


def test_a_text_is_decoded_or_refused():
    assert decode_text("ä".encode(), "here") == "ä"
    with pytest.raises(FileFormatError, match="here"):
        decode_text(b"\xc3", "here")
