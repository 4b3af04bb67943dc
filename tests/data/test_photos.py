import socket

import numpy as np
import pytest

from lisa.data.images import load_rgb
from lisa.data.photos import PHOTOS, export_sample_photos, sample_photos
from lisa.data.sources import check_source, paired_folder


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_dozen_photographs_without_a_download(tmp_path, no_network):
    paths = export_sample_photos(tmp_path / "photos")
    assert len(paths) >= 12 and {p.stem for p in paths} <= set(PHOTOS)
    source = paired_folder(tmp_path / "photos", require_condition=False)
    report = check_source(source, require_condition=False)
    assert report.samples == len(paths) and min(report.smallest) >= 256
    assert dict(zip(source.keys, source.captions, strict=True))["chelsea"] == "the face of a tabby cat"
    pictures = [source[i].image for i in range(len(source))]
    assert all(p.std() > 5 for p in pictures), "each is a picture of something"


def test_the_pixels_are_scikit_images_own_and_existing_files_are_left(tmp_path, no_network):
    mine = tmp_path / "coffee.txt"
    mine.write_text("my cup")
    export_sample_photos(tmp_path)
    assert np.array_equal(load_rgb(tmp_path / "astronaut.png"), load_rgb(sample_photos()["astronaut"]))
    assert mine.read_text() == "my cup"
    before = (tmp_path / "coffee.png").stat().st_mtime_ns
    export_sample_photos(tmp_path)
    assert (tmp_path / "coffee.png").stat().st_mtime_ns == before
