"""The paired layout of folders, for pictures and for clips alike: samples, conditions and captions by their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lisa.common.errors import LisaError, nearest
from lisa.data.images import SUFFIXES, list_images
from lisa.data.metadata import Row, read_metadata, read_text
from lisa.data.video import VIDEO_SUFFIXES, list_clips


@dataclass(frozen=True)
class Kind:
    """What a folder holds.

    Attributes:
        noun: what one of them is called.
        folder: where they lie.
        find: lists them in a folder.
        supported: what is taken for one, for people.
        advice: what to do where the folder is missing.
    """

    noun: str
    folder: str
    find: Callable[[Path], list[Path]]
    supported: str
    advice: str


PICTURES = Kind(
    "image",
    "images",
    list_images,
    ", ".join(SUFFIXES),
    "Put the images into 'images/' and their conditions, under the same names, into 'conditions/'; "
    "'lisa prepare' makes both from a folder of photographs",
)
CLIPS = Kind(
    "clip",
    "clips",
    list_clips,
    f"folders of frames ({', '.join(SUFFIXES)}) and {', '.join(VIDEO_SUFFIXES)}",
    "Put the clips (a folder of frames or a video each) into 'clips/' and their conditions, under the same names, into "
    "'conditions/'; 'lisa prepare' makes both from a folder of clips",
)


@dataclass(frozen=True)
class Entry:
    """One sample: its files; its caption; of a clip, frames per second and motion where metadata tell them.

    Attributes:
        key: path without suffix.
        image: picture, video, or folder of frames.
        conditions: the same, to be stacked in this order; empty where there is none.
        caption: may be empty.
    """

    key: str
    image: Path
    conditions: tuple[Path, ...]
    caption: str
    rate: float | None = None
    motion: float | None = None


def read_layout(
    path: str | Path, kind: Kind, *, require_condition: bool, default_caption: str | None, conditions: Sequence[str]
) -> tuple[Path, list[Entry]]:
    """The folder and its samples, in the order of their names; see :func:`lisa.data.folders.paired_folder`."""
    root = require_folder(path)
    images = root / kind.folder if (root / kind.folder).is_dir() else root
    if require_condition and images == root:
        raise LisaError(f"{str(root)!r} has no folder {kind.folder!r}", kind.advice)
    files = [f for f in kind.find(images) if images != root or f.relative_to(root).parts[0] != "conditions"]
    if not files:
        raise LisaError(f"{str(images)!r} holds no {kind.noun}s", f"Supported are {kind.supported}")
    keys = [key_of(file, images) for file in files]
    _refuse_twins(images, keys, kind)
    if kind is CLIPS:
        _refuse_nested(images, keys)
    metadata = read_metadata(root, images, clips=kind is CLIPS)
    folders = _condition_folders(root, images, conditions, kind)
    found = [_by_key(folder, kind) for folder in folders]
    drafts = [_draft(key, file, root, metadata, found, default_caption) for key, file in zip(keys, files, strict=True)]
    _refuse_incomplete(root, folders, drafts, require_condition, kind)
    return root, [
        Entry(d.key, d.image, _known(d.conditions), d.caption or "", d.row.rate, d.row.motion) for d in drafts
    ]


def require_folder(path: str | Path) -> Path:
    """The folder at ``path``.

    Raises:
        LisaError: it does not exist (the nearest name beside it is given) or is a file.
    """
    root = Path(path).expanduser()
    if root.is_dir():
        return root
    if root.exists():
        raise LisaError(f"{str(path)!r} is a file, a folder is needed")
    beside = [p.name for p in root.parent.iterdir() if p.is_dir()] if root.parent.is_dir() else []
    hint = nearest(root.name, beside)
    raise LisaError(f"there is no folder {str(path)!r}" + (f" ({hint})" if hint else ""), "Check the path")


def key_of(file: Path, folder: Path) -> str:
    """The path of a file in a folder without its suffix; of a folder of frames its whole path."""
    inside = file.relative_to(folder)
    return (inside if file.is_dir() else inside.with_suffix("")).as_posix()


def few(names: Iterable[str], count: int = 3) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    shown = ", ".join(repr(n) for n in names[:count])
    return shown + (f" and {len(names) - count} more" if len(names) > count else "")


@dataclass(frozen=True)
class _Draft:
    key: str
    image: Path
    conditions: tuple[Path | None, ...]
    caption: str | None
    row: Row


def _known(conditions: tuple[Path | None, ...]) -> tuple[Path, ...]:
    """All of them, or none where one is missing."""
    known = tuple(file for file in conditions if file is not None)
    return known if len(known) == len(conditions) else ()


def _condition_folders(root: Path, images: Path, names: Sequence[str], kind: Kind) -> list[Path]:
    """Where each kind of condition lies. A single one has the folder to itself, unless there is one of its name (which
    is not just the mirror of a subfolder of the images).
    """
    folder = root / "conditions"
    if len(names) == 1 and (not (folder / names[0]).is_dir() or (images / names[0]).is_dir()):
        return [folder]
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        there = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        raise LisaError(
            f"{str(root)!r} has no folder 'conditions/{missing[0]}'",
            f"Several conditions lie in one folder each, under the names of the {kind.noun}s",
            there,
        )
    return [folder / name for name in names] or [folder]


def _draft(
    key: str,
    image: Path,
    root: Path,
    metadata: dict[Path, Row],
    conditions: Sequence[dict[str, Path]],
    default_caption: str | None,
) -> _Draft:
    row = metadata.get(image.resolve(), Row())
    caption = row.caption
    for text in (root / "captions" / f"{key}.txt", image.with_name(f"{Path(key).name}.txt")):
        if caption is None and text.is_file():
            caption = read_text(text).strip()
    files = tuple(known.get(key) for known in conditions)
    if row.condition is not None and len(files) == 1:  # what a metadata file names is one condition
        files = (row.condition,)
    return _Draft(key, image, files, default_caption if caption is None else caption, row)


def _refuse_twins(images: Path, keys: list[str], kind: Kind) -> None:
    twins = [key for key, count in Counter(keys).items() if count > 1]
    if twins:
        raise LisaError(
            f"{str(images)!r} holds several {kind.noun}s named {few(twins)} that differ only in their suffix",
            "Names without suffix must be unique: rename or remove them",
        )


def _refuse_nested(clips: Path, keys: list[str]) -> None:
    """A clip made is a folder of frames of its name: one that lies inside another would be mixed up with it."""
    known = set(keys)
    for key in keys:
        outer = known & {parent.as_posix() for parent in Path(key).parents}
        if outer:
            raise LisaError(
                f"{str(clips)!r} holds a clip named {min(outer)!r} and in a folder of that name another, {key!r}",
                "Rename one of them",
            )


def _refuse_incomplete(
    root: Path, folders: list[Path], drafts: list[_Draft], require_condition: bool, kind: Kind
) -> None:
    problems, remedies = [], []
    for number, folder in enumerate(folders if require_condition else []):
        bare = [d.key for d in drafts if d.conditions[number] is None]
        if bare:
            place = folder.relative_to(root).as_posix()
            which = "a condition" if len(folders) == 1 else f"a condition in {place!r}"
            problems.append(f"{_counted(bare, drafts, kind)} without {which} ({few(bare)})")
            what = "picture" if kind is PICTURES else kind.noun
            remedies.append(f"put a {what} of the same name into '{place}/' for each, or make them with 'lisa prepare'")
    mute = [d.key for d in drafts if d.caption is None]
    if mute:
        problems.append(f"{_counted(mute, drafts, kind)} without a caption ({few(mute)})")
        remedies.append(
            f"write a .txt of the same name beside each {kind.noun}, or set a default caption (it may be empty)"
        )
    if problems:
        remedy = "; ".join(remedies)
        raise LisaError(f"{str(root)!r} has " + " and ".join(problems), remedy[0].upper() + remedy[1:])


def _counted(some: Sequence[str], everything: Sequence[_Draft], kind: Kind) -> str:
    return f"{len(some)} {kind.noun}{'s' if len(some) != 1 else ''} of {len(everything)}"


def _by_key(folder: Path, kind: Kind) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    files = kind.find(folder)
    keys = [key_of(file, folder) for file in files]
    _refuse_twins(folder, keys, kind)
    return dict(zip(keys, files, strict=True))
