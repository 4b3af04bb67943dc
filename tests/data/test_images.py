import io

import numpy as np
import pytest
from pictures import picture, save
from PIL import Image

from lisa.common.errors import LisaError
from lisa.data.images import image_size, load_rgb, looks_truncated, read_note, save_png, to_rgb


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "depth.png")
    read = load_rgb(tmp_path / "depth.png")
    assert read.dtype == np.uint8 and np.abs(read[..., 0].astype(float) - ramp / 257).max() <= 0.51
    assert (read[..., 0] == read[..., 2]).all()


def test_grey_palette_and_cmyk_become_rgb():
    base = Image.fromarray(picture())
    for mode in ("L", "P", "CMYK", "1"):
        assert to_rgb(base.convert(mode)).shape == (24, 32, 3)
    with pytest.raises(LisaError, match="floating point"):
        to_rgb(base.convert("F"))


def test_pictures_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture()).save(tmp_path / "a.png", exif=exif)
    read = load_rgb(tmp_path / "a.png")
    assert np.array_equal(read, np.rot90(picture(), -1))
    assert image_size(tmp_path / "a.png") == read.shape[:2] == (32, 24)


def test_encoded_bytes_and_missing_files(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(picture(3)).save(buffer, "PNG")
    assert np.array_equal(load_rgb(buffer.getvalue()), picture(3))
    with pytest.raises(LisaError, match=r"cell 7 is truncated or damaged"):
        load_rgb(buffer.getvalue()[:-200], label="cell 7")
    with pytest.raises(LisaError, match="there is no image"):
        load_rgb(tmp_path / "none.png")


def test_the_cheap_look_at_a_files_end(tmp_path):
    for suffix in ("png", "jpg"):
        path = save(picture(1, 64, 64), tmp_path / f"a.{suffix}")
        assert not looks_truncated(path)
        path.write_bytes(path.read_bytes()[:-100])
        assert looks_truncated(path)
    assert not looks_truncated(save(picture(), tmp_path / "a.bmp"))


def test_notes_survive_in_whole_files_only(tmp_path):
    path = save_png(picture(), tmp_path / "new" / "a.png", {"who": "me"})
    assert read_note(path, "who") == "me" and read_note(path, "what") is None
    path.write_bytes(path.read_bytes()[:-300])
    assert read_note(path, "who") is None and read_note(tmp_path / "none.png", "who") is None
