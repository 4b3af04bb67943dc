"""Reading and writing pictures: any usual file to uint8 RGB, with one clear message where that fails."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from lisa.common.errors import LisaError
from lisa.common.files import atomic_write
from lisa.data.samples import ByteArray

#: File name suffixes (lower case) that are taken for pictures.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_REMEDY = "Replace the file or take it out of the folder"
# What ends a whole file. A file without it is suspect, not yet wrong: some programs add bytes of their own.
_ENDINGS = {".png": b"IEND\xaeB`\x82", ".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9"}


def list_images(folder: Path) -> list[Path]:
    """All pictures under ``folder``, sorted by path; hidden files and folders are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def load_rgb(source: Path | bytes, *, label: str = "", backdrop: tuple[int, int, int] = (255, 255, 255)) -> ByteArray:
    """A picture as uint8 (H, W, 3), upright as its EXIF orientation says.

    Args:
        source: a file or an encoded picture.
        label: what to call it in messages, if not by its path.
        backdrop: what shows through transparent pixels.

    Raises:
        LisaError: not a picture, truncated, too large, or of a kind that has no 8-bit range (floating point).
    """
    name = label or (repr(str(source)) if isinstance(source, Path) else "the picture")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image), label=name, backdrop=backdrop)
    except FileNotFoundError:
        raise LisaError(f"there is no image {name}") from None
    except Image.DecompressionBombError as error:
        raise LisaError(f"image {name} is too large ({error})", _REMEDY) from None
    except UnidentifiedImageError:
        raise LisaError(f"{name} is not a readable image", _REMEDY) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # Pillow raises all of them for damaged files
        raise LisaError(f"image {name} is truncated or damaged ({error})", _REMEDY) from None


def to_rgb(image: Image.Image, *, label: str = "the picture", backdrop: tuple[int, int, int] = (255,) * 3) -> ByteArray:
    """A Pillow image of any mode as uint8 (H, W, 3). 16-bit grey (depth maps) is scaled, not clipped.

    Raises:
        LisaError: the mode is floating point: its range is anyone's guess.
    """
    if image.mode == "F":
        raise LisaError(f"image {label} holds floating point numbers", "Save it as 8-bit or 16-bit PNG")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.max(initial=0) > 255:
            values = (values.clip(0, 65535) + 128) // 257
        return np.repeat(values.clip(0, 255).astype(np.uint8)[..., None], 3, -1)
    if "A" in image.getbands() or "transparency" in image.info:
        picture = image.convert("RGBA")
        ground = Image.new("RGBA", picture.size, (*backdrop, 255))
        image = Image.alpha_composite(ground, picture)
    return np.array(image.convert("RGB"))


def decode_cell(cell: Any, label: str, backdrop: tuple[int, int, int] = (255, 255, 255)) -> ByteArray:
    """A picture as it comes in a table: a Pillow image, encoded bytes, a path, or the struct of both.

    Raises:
        LisaError: it is none of these, or cannot be read.
    """
    if isinstance(cell, Image.Image):
        try:
            cell.load()
            return to_rgb(ImageOps.exif_transpose(cell), label=label, backdrop=backdrop)
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise LisaError(f"image {label} is truncated or damaged ({error})") from None
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, (bytes, bytearray)):
        return load_rgb(bytes(cell), label=label, backdrop=backdrop)
    if isinstance(cell, str):
        return load_rgb(Path(cell), label=label, backdrop=backdrop)
    raise LisaError(f"{label} holds {type(cell).__name__}, not a picture")


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) as :func:`load_rgb` would give it, from the file's head alone.

    A PNG may carry its orientation behind the pixels, where this does not look: decode before calling a size wrong.

    Raises:
        LisaError: the file is not a picture.
    """
    try:
        with Image.open(path) as image:
            known = image.format != "PNG" or "exif" in image.info  # else Pillow decodes the whole PNG to look for it
            turned = known and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.width, image.height) if turned else (image.height, image.width)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        raise LisaError(f"{str(path)!r} is not a readable image", _REMEDY) from None


def looks_truncated(path: Path) -> bool:
    """Does the end of the file lack what a whole PNG or JPEG ends with? A cheap hint for which files to decode."""
    ending = _ENDINGS.get(path.suffix.lower())
    if ending is None:
        return False
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        return ending not in file.read()


def save_png(image: ByteArray, path: Path, note: Mapping[str, str] | None = None) -> Path:
    """Write uint8 (H, W, 3) or (H, W) as PNG, whole or not at all; ``note`` goes into its text chunks."""
    text = PngInfo()
    for key, value in (note or {}).items():
        text.add_text(key, value)
    with atomic_write(path, durable=False) as temporary:
        Image.fromarray(image).save(temporary, format="PNG", pnginfo=text)
    return path


def read_note(path: Path, key: str) -> str | None:
    """A text chunk of a whole PNG; None if there is none or the file is damaged or absent."""
    try:
        with Image.open(path) as image:
            image.load()
            value = image.info.get(key)
    except (OSError, SyntaxError, ValueError, EOFError):
        return None
    return value if isinstance(value, str) else None
