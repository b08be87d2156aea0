"""Lists the videos of a directory with their captions: three layouts, one list of clips.

Listing does not open videos. A problem of a clip (no caption, no file) is stored in it and treated like a broken video.
"""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from data_pipelines.builders.video_files import SUFFIXES, BadVideoError
from data_pipelines.errors import DataError

# Something-Something-v2: split -> names of its label file; `test` has no labels. Both distributions' names.
LABEL_FILES = {
    "train": ("something-something-v2-train.json", "train.json"),
    "val": ("something-something-v2-validation.json", "validation.json"),
    "test": ("something-something-v2-test.json", "test.json"),
}
LABEL_FOLDERS, VIDEO_FOLDERS = (".", "labels"), ("20bn-something-something-v2", "videos", ".")
CAPTION_TABLES = ("captions.json", "captions.jsonl", "captions.csv")
LATENT_FOLDERS = ("latent_videos", "latent_videos_svd")  # VPP uses the second if the first does not have the file


class Clip(NamedTuple):
    """One video.

    Attributes:
      name: unique in the dataset.
      file: the video, or VPP's annotation that names it, relative to the source.
      caption: "" if it is only in the annotation.
      template: the caption with placeholders for its objects, if the source has it.
      problem: why it cannot be used.
    """

    split: str
    name: str
    file: str
    caption: str = ""
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
    labels = {split: _read_json(path) for split, names in LABEL_FILES.items() if (path := _first(folders, names)) is not None}
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
        for entry in entries:
            name = str(entry["id"])
            if split != "test":
                clips.append(_clip(split, name, videos, folder, _label(entry), str(entry.get("template", "")), name in seen))
            seen.add(name)
    unlisted = sorted(videos.keys() - seen)
    return clips + [Clip("train", name, f"{folder}/{videos[name]}", problem="no entry in the label files") for name in unlisted]


def _label(entry: Mapping[str, Any]) -> str:
    """The label; if it is missing, the template with its placeholders filled in."""
    label = str(entry.get("label") or "").strip()
    if label:
        return label
    label = str(entry.get("template") or "")
    for placeholder in entry.get("placeholders") or ():
        before, _, rest = label.partition("[")
        _, _, after = rest.partition("]")
        label = f"{before}{placeholder}{after}"
    return label.strip()


def _clip(split: str, name: str, videos: Mapping[str, str], folder: str, caption: str, template: str, again: bool) -> Clip:
    file = f"{folder}/{videos[name]}" if name in videos else f"{folder}/{name}"
    problem = "is listed twice" if again else "no such video" if name not in videos else "" if caption else "empty caption"
    return Clip(split, f"{name} (again)" if again else name, file, caption, template, problem)


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
    found = sorted(path.relative_to(origin.source).as_posix() for path in origin.source.rglob("*") if path.suffix.lower() in SUFFIXES)
    if origin.captions and not (origin.source / origin.captions).is_file():
        raise DataError(f"--captions: {origin.source / origin.captions} does not exist")
    table = origin.source / origin.captions if origin.captions else _first([origin.source], CAPTION_TABLES)
    if table is None:
        rows = {name: (_caption_file(origin.source / name), "") for name in found}
    else:
        rows = _table(table, found)
    clips, present = [], set(found)
    for name in dict.fromkeys((*found, *rows)):
        caption, split = rows.get(name, ("", ""))
        problem = "no such video" if name not in present else "" if caption else "no caption"
        clips.append(Clip(split or _drawn_split(name, origin.val_fraction), name, name, caption, problem=problem))
    return clips


def _caption_file(video: Path) -> str:
    text = video.with_suffix(".txt")
    return " ".join(text.read_text().split()) if text.is_file() else ""


def _table(path: Path, found: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Video -> (caption, split or ""). Videos are named with or without their suffix, relative to the source."""
    stems = {name.rsplit(".", 1)[0]: name for name in found}
    rows: dict[str, tuple[str, str]] = {}
    for row in _rows(path):
        video = row.get("video") if isinstance(row, dict) else None
        if not isinstance(video, str):
            raise DataError(f"{path}: {str(row)[:80]!r} has no 'video'; expected rows with video, caption and optionally split")
        name, split = stems.get(video, video), str(row.get("split") or "")
        if name in rows:
            raise DataError(f"{path}: {name} is listed twice")
        rows[name] = " ".join(str(row.get("caption") or "").split()), {"validation": "val"}.get(split, split)
    return rows


def _rows(path: Path) -> Iterable[Any]:
    match path.suffix.lower():
        case ".json":
            tree = _read_json(path)
            return [{"video": name, "caption": caption} for name, caption in tree.items()] if isinstance(tree, dict) else tree
        case ".jsonl":
            return [_parsed(line, f"{path} line {number}") for number, line in enumerate(path.read_text().splitlines(), 1) if line.strip()]
        case ".csv":
            with open(path, newline="") as file:
                return list(csv.DictReader(file))
    raise DataError(f"{path}: not a caption table, expected .json, .jsonl or .csv")


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
        tree = json.loads((source / clip.file).read_text())
        caption = str(tree["texts"][0]).strip() if tree.get("texts") else ""
        entry = tree["latent_videos"][0]["latent_video_path"] if latents else tree["videos"][0]["video_path"]
        file = PurePosixPath(entry)
        length = len(tree["state"]) if "state" in tree else tree.get("video_length")
    except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
        key = "latent_videos" if latents else "videos"
        raise BadVideoError(f"{where}: no annotation with 'texts' and '{key}' ({type(error).__name__}: {error})") from error
    if file.is_absolute() or ".." in file.parts:
        raise BadVideoError(f"{where}: names {entry}, which is not below {source}")
    if latents and file.parts[0] == LATENT_FOLDERS[0] and not (source / file).is_file():
        file = PurePosixPath(LATENT_FOLDERS[1], *file.parts[1:])
    if not caption:
        raise BadVideoError(f"{where}: empty caption")
    return clip._replace(file=file.as_posix(), caption=caption), length if isinstance(length, int) else None


LAYOUTS: dict[str, Callable[[Origin], list[Clip]]] = {"something_something": something_something, "folder": folder, "vpp": vpp}


# --- files ----------------------------------------------------------------------------------------------------------------------------


def _first(folders: Iterable[Path], names: Iterable[str]) -> Path | None:
    return next((path / name for path in folders for name in names if (path / name).is_file()), None)


def _read_json(path: Path) -> Any:
    return _parsed(path.read_text(), str(path))


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from error
