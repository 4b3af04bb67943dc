"""Real photographs without a download: those that scikit-image carries inside its package."""

from __future__ import annotations

from pathlib import Path

from lisa.common.errors import LisaError, need
from lisa.common.files import write_text
from lisa.data.images import load_rgb, save_png

#: Name in scikit-image's data folder -> caption. Drawings, text pages and test cards are left out; of the stereo pair
#: of the motorcycle one view is enough.
PHOTOS: dict[str, str] = {
    "astronaut": "a portrait of an astronaut in an orange suit",
    "brick": "a brick wall",
    "camera": "a photographer with a camera on a tripod",
    "chelsea": "the face of a tabby cat",
    "coffee": "a cup of coffee on a red saucer",
    "coins": "ancient coins on a dark background",
    "grass": "a lawn of grass",
    "gravel": "gravel",
    "hubble_deep_field": "galaxies in the night sky",
    "ihc": "stained tissue under a microscope",
    "moon": "the surface of the moon",
    "motorcycle_left": "a motorcycle in a workshop",
    "retina": "the retina of an eye",
    "rocket": "a rocket on its launch pad at dusk",
}
_SUFFIXES = (".png", ".jpg")


def sample_photos() -> dict[str, Path]:
    """Files of the photographs inside the installed scikit-image, by name; never downloads.

    Raises:
        LisaError: this installation carries none.
    """
    skimage = need("skimage", "conditions")

    # Files are looked up directly: skimage.data's own functions may download what they do not find.
    folder = Path(skimage.__file__).parent / "data"
    found = {n: folder / f"{n}{s}" for n in PHOTOS for s in _SUFFIXES if (folder / f"{n}{s}").is_file()}
    if not found:
        raise LisaError(
            f"this installation of scikit-image carries no photographs (looked in {str(folder)!r})",
            "Install scikit-image from PyPI, or use a folder of your own",
        )
    return found


def export_sample_photos(out_dir: str | Path) -> list[Path]:
    """Write the photographs as RGB PNGs with a caption (.txt) beside each; returns the pictures' paths.

    Files that are there already are left as they are.

    Raises:
        LisaError: there are none, or the folder cannot be written.
    """
    written = []
    for name, file in sample_photos().items():
        target = Path(out_dir) / f"{name}.png"
        if not target.is_file():
            save_png(load_rgb(file), target)
        if not target.with_suffix(".txt").is_file():
            write_text(target.with_suffix(".txt"), PHOTOS[name] + "\n", durable=False)
        written.append(target)
    return written
