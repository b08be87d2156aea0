"""Lists the videos of a directory with their captions: three layouts, one list of clips.

Listing does not open videos. A problem of a clip (no caption, no file) is stored in it and treated like a broken video.
"""

import csv
import hashlib
import io
import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from data_pipelines.builders.video_files import SUFFIXES, BadVideoError
from data_pipelines.errors import DataError
from data_pipelines.instructions import instructions_of
from vpp_jax.common.errors import FileFormatError
from vpp_jax.common.text_files import read_json, read_text

# Something-Something-v2: split -> names of its label file; `test` has no labels. Both distributions' names.
LABEL_FILES = {
    "train": ("something-something-v2-train.json", "train.json"),
    "val": ("something-something-v2-validation.json", "validation.json"),
    "test": ("something-something-v2-test.json", "test.json"),
}
LABEL_FOLDERS, VIDEO_FOLDERS = (".", "labels"), ("20bn-something-something-v2", "videos", ".")
CAPTION_TABLES = ("captions.json", "captions.jsonl", "captions.csv", "captions.tsv")
SEPARATORS = (",", ";", "\t")  # of caption tables: Excel's depends on the country
LATENT_FOLDERS = ("latent_videos", "latent_videos_svd")  # VPP uses the second if the first does not have the file


class Clip(NamedTuple):
    """One video.

    Attributes:
      name: unique in the dataset.
      file: the video, or VPP's annotation that names it, relative to the source.
      captions: one instruction or several; () if they are only in the annotation.
      template: the caption with placeholders for its objects, if the source has it.
      problem: why it cannot be used.
    """

    split: str
    name: str
    file: str
    captions: tuple[str, ...] = ()
    template: str = ""
    problem: str = ""


class Origin(NamedTuple):
    """Inputs of a listing: directory of the videos, table or directory of captions ("": the usual places), directory of VPP annotations,
    and, for layout `folder`, the fraction of videos in split val where the caption table does not name a split."""

    source: Path
    captions: str
    annotations: str
    val_fraction: float


# --- Something-Something-v2 -----------------------------------------------------------------------------------------------------------


def something_something(origin: Origin) -> list[Clip]:
    """ID.webm in one directory; lists of {id, label, template, placeholders} for train and validation."""
    folders = [origin.source / origin.captions] if origin.captions else [origin.source / folder for folder in LABEL_FOLDERS]
    paths = {split: path for split, names in LABEL_FILES.items() if (path := _first(folders, names)) is not None}
    labels = {split: read_json(path) for split, path in paths.items()}
    if "train" not in labels:
        raise DataError(
            f"{origin.source}: none of {', '.join(LABEL_FILES['train'])} in {', '.join(map(str, folders))}; name the directory of "
            "the label files with --captions, or choose another --layout"
        )
    videos, folder = {}, ""
    for folder in VIDEO_FOLDERS:
        videos = _videos(origin.source / folder)
        if videos:
            break
    clips, seen = [], set()
    for split, entries in labels.items():
        if not isinstance(entries, list) or not all(isinstance(entry, dict) and "id" in entry for entry in entries):
            raise DataError(f"{origin.source}: the labels of {split} are not a list of entries with an 'id'")
        for number, entry in enumerate(entries):
            name = str(entry["id"])
            if split != "test":
                captions = _label(entry, f"{paths[split]} entry {number} (id {name})")
                clips.append(_clip(split, name, videos, folder, captions, str(entry.get("template", "")), name in seen))
            seen.add(name)
    unlisted = sorted(videos.keys() - seen)
    return clips + [Clip("train", name, f"{folder}/{videos[name]}", problem="no entry in the label files") for name in unlisted]


def _label(entry: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The label; if it is missing, the template with its placeholders filled in."""
    labels = instructions_of(entry.get("label"), f"{where}, 'label'")
    if labels:
        return labels
    label = str(entry.get("template") or "")
    for placeholder in instructions_of(entry.get("placeholders"), f"{where}, 'placeholders'"):
        before, _, rest = label.partition("[")
        _, _, after = rest.partition("]")
        label = f"{before}{placeholder}{after}"
    return instructions_of(label, where)


def _clip(split: str, name: str, videos: Mapping[str, str], folder: str, captions: tuple[str, ...], template: str, again: bool) -> Clip:
    file = f"{folder}/{videos[name]}" if name in videos else f"{folder}/{name}"
    problem = "is listed twice" if again else "no such video" if name not in videos else "" if captions else "empty caption"
    return Clip(split, f"{name} (again)" if again else name, file, captions, template, problem)


def _videos(folder: Path) -> dict[str, str]:
    """Stem -> name of the videos directly in a directory."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.lower().endswith(SUFFIXES))
    return {name.rsplit(".", 1)[0]: name for name in names}


# --- any directory of videos ----------------------------------------------------------------------------------------------------------


def folder(origin: Origin) -> list[Clip]:
    """Videos anywhere below the directory, captioned by one table, or else by NAME.txt next to NAME.mp4."""
    paths = (path for path in origin.source.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    found = sorted(path.relative_to(origin.source).as_posix() for path in paths)
    if origin.captions and not (origin.source / origin.captions).is_file():
        raise DataError(f"--captions: {origin.source / origin.captions} does not exist")
    table = origin.source / origin.captions if origin.captions else _first([origin.source], CAPTION_TABLES)
    if table is None:
        rows = {name: (_caption_file(origin.source / name), "") for name in found if _is_utf8(name)}
    else:
        rows = _table(table, found)
    clips, present = [], set(found)
    for name in dict.fromkeys((*found, *rows)):
        captions, split = rows.get(name, ((), ""))
        problem = "no such video" if name not in present else "" if captions else "no caption"
        if not _is_utf8(name):
            name, problem = _shown(name), "its name is not UTF-8; rename it (convmv does so for whole directories)"
        clips.append(Clip(split or _drawn_split(name, origin.val_fraction), name, name, captions, problem=problem))
    return clips


def _is_utf8(name: str) -> bool:
    """Whether a file name is: Python gives the bytes of others as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _shown(name: str) -> str:
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _caption_file(video: Path) -> tuple[str, ...]:
    text = video.with_suffix(".txt")
    return instructions_of(read_text(text), str(text)) if text.is_file() else ()


def _table(path: Path, found: Iterable[str]) -> dict[str, tuple[tuple[str, ...], str]]:
    """Video -> (captions, split or ""). Videos are named with or without their suffix, relative to the source."""
    known = {_plain(written): name for name in found for written in (name.rsplit(".", 1)[0], name)}
    rows: dict[str, tuple[tuple[str, ...], str]] = {}
    for number, row in enumerate(_rows(path), 1):
        where = f"{path} row {number}"
        video = row.get("video") if isinstance(row, dict) else None
        if not isinstance(video, str):
            raise DataError(f"{where}: {str(row)[:80]!r} has no 'video'; expected rows with video, caption and optionally split")
        name, split = known.get(_plain(video), video), str(row.get("split") or "").strip()
        if name in rows:
            raise DataError(f"{where}: {name} is listed twice")
        captions = instructions_of(row.get("caption"), f"{where} ({name}), 'caption'")
        rows[name] = captions, {"validation": "val"}.get(split, split)
    return rows


def _plain(name: str) -> str:
    """A file's name as it is compared: composed letters (macOS decomposes them), forward slashes, no './' in front."""
    return PurePosixPath(unicodedata.normalize("NFC", name.strip().replace("\\", "/"))).as_posix()


def _rows(path: Path) -> Iterable[Any]:
    match path.suffix.lower():
        case ".json":
            tree = read_json(path)
            return [{"video": name, "caption": caption} for name, caption in tree.items()] if isinstance(tree, dict) else tree
        case ".jsonl":
            return [_parsed(line, f"{path} line {number}") for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
        case ".csv" | ".tsv":
            return _separated(path)
    raise DataError(f"{path}: not a caption table, expected .json, .jsonl, .csv or .tsv")


def _separated(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with any of `SEPARATORS`, by the names in its first line."""
    text = read_text(path)
    head = text.partition("\n")[0]
    if head.startswith("sep="):  # for Excel
        text, head = text.partition("\n")[2], text.split("\n", 2)[1] if text.count("\n") else ""
    separator = max(SEPARATORS, key=head.count)
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
        rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
        return list(rows)
    except csv.Error as error:
        raise DataError(f"{path}: not a table separated by commas, semicolons or tabs ({error})") from None


def _drawn_split(name: str, val_fraction: float) -> str:
    """Depends on the name only: adding videos does not move others between splits."""
    draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "val" if draw < val_fraction else "train"


# --- the format of the published code ----------------------------------------------------------------------------------------------------


def vpp(origin: Origin) -> list[Clip]:
    """ANNOTATIONS/SPLIT/ID.json. There may be 200,000 of them, so each is read with its clip (`annotated`)."""
    root = origin.source / origin.annotations
    splits = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if not splits:
        raise DataError(f"{root} has no split directories; expected annotation/SPLIT/ID.json (name the directory with --annotations)")
    return [
        Clip(split, f"{split}/{path.stem}", path.relative_to(origin.source).as_posix())
        for split in splits
        for path in sorted((root / split).glob("*.json"), key=lambda path: (len(path.stem), path.stem))
    ]


def annotated(source: Path, clip: Clip, latents: bool) -> tuple[Clip, int | None]:
    """A clip of layout `vpp` with its file and caption, and its number of frames if the annotation has it. BadVideoError if it is invalid.

    Args:
      latents: use the recorded latents of the first camera instead of its video.
    """
    where = f"{source / clip.file}"
    try:
        tree = read_json(source / clip.file)
        captions = instructions_of(tree.get("texts"), f"{where}, 'texts'")
        entry = tree["latent_videos"][0]["latent_video_path"] if latents else tree["videos"][0]["video_path"]
        file = PurePosixPath(entry)
        length = len(tree["state"]) if "state" in tree else tree.get("video_length")
    except (FileFormatError, DataError) as error:
        raise BadVideoError(str(error)) from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
        key = "latent_videos" if latents else "videos"
        raise BadVideoError(f"{where}: no annotation with 'texts' and '{key}' ({type(error).__name__}: {error})") from error
    if file.is_absolute() or ".." in file.parts:
        raise BadVideoError(f"{where}: names {entry}, which is not below {source}")
    if latents and file.parts[0] == LATENT_FOLDERS[0] and not (source / file).is_file():
        file = PurePosixPath(LATENT_FOLDERS[1], *file.parts[1:])
    if not captions:
        raise BadVideoError(f"{where}: empty caption")
    return clip._replace(file=file.as_posix(), captions=captions), length if isinstance(length, int) else None


LAYOUTS: dict[str, Callable[[Origin], list[Clip]]] = {"something_something": something_something, "folder": folder, "vpp": vpp}


# --- files ----------------------------------------------------------------------------------------------------------------------------


def _first(folders: Iterable[Path], names: Iterable[str]) -> Path | None:
    return next((path / name for path in folders for name in names if (path / name).is_file()), None)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from error
