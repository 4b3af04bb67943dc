import json
import shutil

import numpy as np
import pytest
from pictures import picture, save

from lisa.common.errors import LisaError
from lisa.data import conditions
from lisa.data import prepare as module
from lisa.data.prepare import prepare
from lisa.data.sources import check_source, paired_folder
from lisa.data.split import held_out_split


@pytest.fixture
def photographs(tmp_path):
    root = tmp_path / "photos"
    for i, name in enumerate(("one.png", "two_dogs.jpg", "sub/three.png")):
        save(picture(i, 60, 80 + i), root / name)
    return root


def stamps(folder):
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*.png")}


def test_photographs_become_a_paired_folder(photographs):
    report = prepare(photographs, "canny", caption="a photo of {name}")
    assert report.out == photographs.with_name("photos-canny") and (report.made, report.kept) == (3, 0)
    source = paired_folder(report.out)
    check_source(source)
    assert source.keys == ["one", "sub/three", "two_dogs"] and source.captions[2] == "a photo of two dogs"
    for sample in (source[0], source[1]):
        assert np.array_equal(sample.condition, conditions.make("canny", sample.image))
    assert np.array_equal(source[0].image, picture(0, 60, 80))
    assert json.loads((report.out / "prepare.json").read_text())["condition"] == "canny"


def test_a_size_crops_the_centre(photographs):
    prepare(photographs, "gray", photographs.parent / "out", size=(30, 32))
    sample = paired_folder(photographs.parent / "out")[0]
    assert sample.image.shape == sample.condition.shape == (30, 32, 3)
    assert sample.caption == ""


def test_captions_are_taken_over_and_counted(photographs):
    (photographs / "one.txt").write_text("my own words")
    report = prepare(photographs, "gray")
    assert paired_folder(report.out).captions == ["my own words", "", ""] and report.uncaptioned == 2


def test_several_crops_differ_stay_inside_and_are_kept_together_by_the_split(photographs):
    report = prepare(photographs, "lowres", size=24, crops_per_image=5)
    source = paired_folder(report.out)
    assert len(source) == 15 and source.keys[1] == "one__crop001"
    assert len({source[i].image.tobytes() for i in range(15)}) == 15
    split = held_out_split(source.keys, 5)
    assert len({source.keys[i].split("__")[0] for i in split.held_out}) == 1
    again = prepare(photographs, "lowres", photographs.parent / "again", size=24, crops_per_image=5)
    assert paired_folder(again.out).part_fingerprint("image") != ""
    assert np.array_equal(paired_folder(again.out)[7].image, source[7].image)
    other = prepare(photographs, "lowres", photographs.parent / "other", size=24, crops_per_image=5, seed=1)
    assert not np.array_equal(paired_folder(other.out)[7].image, source[7].image)


def test_crops_are_not_distorted(tmp_path):
    rows, columns = np.mgrid[:200, :250]
    save(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8), tmp_path / "photos" / "ramp.png")
    report = prepare(tmp_path / "photos", "gray", size=50, crops_per_image=8)
    zooms = set()
    for sample in (paired_folder(report.out)[i] for i in range(8)):
        inner = sample.image[2:-2, 2:-2].astype(float)
        across, down = np.diff(inner[..., 0], axis=1).mean(), np.diff(inner[..., 1], axis=0).mean()
        assert across == pytest.approx(down, abs=0.05) and 1 <= across <= 4.01
        zooms.add(round(across, 1))
    assert len(zooms) > 3


def test_an_interrupted_run_goes_on_and_a_second_one_makes_nothing(photographs, monkeypatch):
    make = conditions.make
    calls = []

    def die_at_third(name, image, **options):
        calls.append(name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return make(name, image, **options)

    monkeypatch.setattr(module.conditions, "make", die_at_third)
    with pytest.raises(KeyboardInterrupt):
        prepare(photographs, "canny")
    out = photographs.with_name("photos-canny")
    before = stamps(out)
    assert len(before) == 4
    with pytest.raises(LisaError, match="without a caption"):
        paired_folder(out)  # not taken for a finished folder
    monkeypatch.setattr(module.conditions, "make", make)
    seen = []
    report = prepare(photographs, "canny", progress=lambda done, total: seen.append((done, total)))
    assert (report.made, report.kept) == (1, 2) and seen == [(3, 3)]
    assert {k: v for k, v in stamps(out).items() if k in before} == before
    complete = stamps(out)
    assert prepare(photographs, "canny").made == 0 and stamps(out) == complete


def test_a_damaged_result_is_made_again(photographs):
    out = prepare(photographs, "canny").out
    path = out / "conditions" / "one.png"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    assert prepare(photographs, "canny").made == 1 and path.read_bytes() == good


def test_a_changed_photograph_or_setting_is_never_mixed_with_stale_results(photographs):
    out = prepare(photographs, "canny").out
    with pytest.raises(LisaError, match=r"was made from another picture or with other settings.*overwrite"):
        prepare(photographs, "canny", sigma=2.0)
    save(picture(9, 60, 80), photographs / "one.png")
    with pytest.raises(LisaError, match=r"one.png' was made from another picture"):
        prepare(photographs, "canny")
    report = prepare(photographs, "canny", overwrite=True)
    assert (report.made, report.kept) == (1, 2)
    assert np.array_equal(paired_folder(out)[0].image, picture(9, 60, 80))


def test_a_removed_photograph_does_not_stay_in_the_result(photographs):
    out = prepare(photographs, "canny").out
    (photographs / "one.png").unlink()
    with pytest.raises(LisaError, match=r"holds 1 other pictures \(such as 'one.png'\)"):
        prepare(photographs, "canny")
    prepare(photographs, "canny", overwrite=True)
    assert paired_folder(out).keys == ["sub/three", "two_dogs"]
    save(picture(), out / "images" / "precious.png")
    with pytest.raises(LisaError, match="precious"):
        prepare(photographs, "canny", overwrite=True)
    assert (out / "images" / "precious.png").is_file()


def test_foreign_pictures_are_not_overwritten(photographs):
    out = photographs.parent / "mine"
    save(picture(5), out / "images" / "one.png")
    with pytest.raises(LisaError, match=r"one.png' was made from another picture or with other settings"):
        prepare(photographs, "canny", out)
    assert np.array_equal(paired_folder(out, require_condition=False, default_caption="")[0].image, picture(5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"condition": "cany"}, "unknown condition 'cany'"),
        ({"size": 4}, "size is 4x4"),
        ({"crops_per_image": 3}, "3 crops per image need a size"),
        ({"crops_per_image": 0, "size": 32}, "crops per image is 0"),
    ],
)
def test_bad_settings_are_named_before_anything_is_written(photographs, arguments, message):
    with pytest.raises(LisaError, match=message):
        prepare(photographs, **{"condition": "canny", **arguments})
    assert [p.name for p in photographs.parent.iterdir()] == ["photos"]


def test_bad_folders_are_named_before_anything_is_written(photographs):
    with pytest.raises(LisaError, match=r"there is no folder '.*photo' \(did you mean 'photos'\?\)"):
        prepare(photographs.with_name("photo"), "canny")
    for out in (photographs, photographs / "inside"):
        with pytest.raises(LisaError, match="would go into the folder of photographs itself"):
            prepare(photographs, "canny", out)
    path = photographs / "sub" / "three.png"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(LisaError, match=r"three.png' is truncated or damaged"):
        prepare(photographs, "canny")
    shutil.rmtree(photographs)
    photographs.mkdir()
    with pytest.raises(LisaError, match="holds no images"):
        prepare(photographs, "canny")
    assert [p.name for p in photographs.parent.iterdir()] == ["photos"]


def test_photographs_in_a_folder_called_clips_are_photographs(tmp_path):
    for name in ("clips/2020/a", "holidays/b"):
        save(picture(), tmp_path / "photos" / f"{name}.png")
    out = prepare(tmp_path / "photos", "gray").out
    assert paired_folder(out, default_caption="").keys == ["clips/2020/a", "holidays/b"]


@pytest.mark.parametrize("video", ["a.mp4", "clips/a.mp4"])
def test_pictures_beside_videos_are_an_error_and_not_prepared_alone(tmp_path, video):
    save(picture(), tmp_path / "vids" / "thumbs" / "a.png")
    (tmp_path / "vids" / video).parent.mkdir(exist_ok=True)
    (tmp_path / "vids" / video).write_bytes(b"")
    message = r"holds both pictures \(such as 'a.png'\) and videos \(such as 'a.mp4'\).*folders of their own"
    with pytest.raises(LisaError, match=message):
        prepare(tmp_path / "vids", "gray")
    assert [path.name for path in tmp_path.iterdir()] == ["vids"]
    (tmp_path / "vids" / "thumbs").rename(tmp_path / "vids" / "images")
    assert prepare(tmp_path / "vids", "gray").samples == 1
