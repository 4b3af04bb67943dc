import json
import os
import shutil

import numpy as np
import pytest
from pictures import picture, save
from PIL import Image

from lisa.common.errors import LisaError
from lisa.data.samples import HasCaptions, Source, Subset, captions_of, iterate
from lisa.data.sources import check_source, open_source, paired_folder


def test_a_paired_folder_gives_its_samples(paired):
    source = paired_folder(paired)
    assert isinstance(source, Source) and isinstance(source, HasCaptions)
    assert source.keys == ["a", "b", "c", "sub/d"] and len(source) == 4
    sample = source[3]
    assert sample.key == "sub/d" and sample.caption == "caption of sub/d" and sample.truth is None
    assert np.array_equal(sample.image, picture(3)) and np.array_equal(sample.condition, picture(103))
    assert captions_of(source) == [s.caption for s in iterate(source)]
    report = check_source(source)
    assert (report.samples, report.checked, report.smallest, report.largest) == (4, 4, (24, 32), (24, 32))


def test_captions_beside_the_images(paired):
    for text in (paired / "captions").rglob("*.txt"):
        shutil.move(text, paired / "images" / text.relative_to(paired / "captions"))
    assert paired_folder(paired)[3].caption == "caption of sub/d"


@pytest.mark.parametrize("place", ["", "images"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_captions_and_conditions_from_a_metadata_file(paired, place, kind):
    shutil.rmtree(paired / "captions")
    shutil.move(paired / "conditions", paired / "elsewhere")
    up = "images/" if not place else ""
    down = "" if not place else "../"
    rows = [
        {
            "file_name": f"{up}{key}.png",
            "text": f'"{key}", says the file',
            "conditioning_image": f"{down}elsewhere/{key}.png",
        }
        for key in ("a", "b", "c", "sub/d")
    ]
    if kind == "jsonl":
        text = "\n".join(json.dumps(r) for r in rows) + "\n\n"
    else:
        quoted = [[v.replace('"', '""') for v in r.values()] for r in rows]
        text = "\ufefffile_name,text,conditioning_image\n" + "".join('"' + '","'.join(q) + '"\n' for q in quoted)
    (paired / place / f"metadata.{kind}").write_text(text, encoding="utf-8")
    sample = paired_folder(paired)[3]
    assert sample.caption == '"sub/d", says the file'
    assert np.array_equal(sample.condition, picture(103))


def test_a_plain_folder_of_pictures_where_no_condition_is_needed(tmp_path):
    save(picture(1), tmp_path / "x.png")
    save(picture(2), tmp_path / ".hidden" / "y.png")
    source = open_source(tmp_path, require_condition=False, default_caption="")
    assert source.keys == ["x"] and source[0].condition is None and source[0].caption == ""
    assert check_source(source, require_condition=False).checked == 1
    with pytest.raises(LisaError, match="has no folder 'images'"):
        paired_folder(tmp_path)


def test_a_missing_folder_names_the_nearest_one(paired):
    with pytest.raises(LisaError, match=r"there is no folder '.*pair' \(did you mean 'pairs'\?\)"):
        open_source(paired.parent / "pair")
    with pytest.raises(LisaError, match="is a file, a folder is needed"):
        open_source(paired / "images" / "a.png")


def test_an_empty_folder(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(LisaError, match=r"holds no images.*\.png"):
        open_source(tmp_path)


def test_images_without_condition_or_caption_are_named_and_counted(paired):
    (paired / "conditions" / "b.png").unlink()
    (paired / "captions" / "a.txt").unlink()
    (paired / "captions" / "c.txt").unlink()
    with pytest.raises(LisaError) as caught:
        open_source(paired)
    message = str(caught.value)
    assert "1 image of 4 without a condition ('b')" in message
    assert "2 images of 4 without a caption ('a', 'c')" in message
    assert len(open_source(paired, require_condition=False, default_caption="x")) == 4


def test_many_missing_conditions_are_cut_short(paired):
    for i in range(20):
        save(picture(i), paired / "images" / f"z{i:02d}.png")
    with pytest.raises(LisaError, match=r"20 images of 24 without a condition \('z00', 'z01', 'z02' and 17 more\)"):
        paired_folder(paired, default_caption="")


@pytest.mark.parametrize("where", ["images", "conditions"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_image_is_named_even_beyond_the_sample_limit(paired, where, suffix):
    noise = picture(7, 200, 200)
    for part in ("images", "conditions"):
        (paired / part / "b.png").unlink()
        save(noise, paired / part / f"b.{suffix}")
    path = paired / where / f"b.{suffix}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    source = paired_folder(paired)
    with pytest.raises(LisaError, match=rf"image '.*{where}/b.{suffix}' is truncated or damaged"):
        check_source(source, sample_limit=1)


@pytest.mark.parametrize("content", [b"", b"not a picture at all"])
def test_a_file_that_is_no_picture_is_named(paired, content):
    (paired / "images" / "b.png").write_bytes(content)
    with pytest.raises(LisaError, match=r"'.*images/b.png' is not a readable image"):
        check_source(paired_folder(paired), sample_limit=1)
    with pytest.raises(LisaError, match=r"'.*images/b.png' is not a readable image"):
        _ = paired_folder(paired)[1]


def test_a_condition_of_another_size_is_named_even_beyond_the_sample_limit(paired):
    save(picture(1, 24, 40), paired / "conditions" / "c.png")
    with pytest.raises(LisaError, match=r"condition of 'c' is 40x24 pixels, its image 32x24"):
        check_source(paired_folder(paired), sample_limit=1)


def test_conditions_that_are_all_constant(paired):
    for i, path in enumerate(sorted((paired / "conditions").rglob("*.png"))):
        save(np.full((24, 32, 3), 40 * i, np.uint8), path)
    with pytest.raises(LisaError, match="all 4 condition images checked are constant"):
        check_source(paired_folder(paired))
    save(picture(5), paired / "conditions" / "a.png")
    assert check_source(paired_folder(paired)).notes == ["3 of 4 condition images checked are constant"]


def test_two_images_of_one_name(paired):
    save(picture(9), paired / "images" / "a.jpg")
    with pytest.raises(LisaError, match="several images named 'a' that differ only in their suffix"):
        paired_folder(paired)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "images/a.png", "text": "x"}\n{oops', "line 2 of '.*' is not valid JSON"),
        ('{"text": "x"}', "entry 1, has no 'file_name'"),
        ('{"file_name": "images/zz.png", "text": "x"}', "entry 1, names 'images/zz.png', which does not exist"),
        ('{"file_name": "images/a.png", "conditioning_image": "q.png"}', "names 'q.png', which does not exist"),
        ('{"file_name": "images/a.png"}\n{"file_name": "images/a.png"}', "entry 2, names 'images/a.png' again"),
    ],
)
def test_bad_metadata_is_named(paired, text, message):
    (paired / "metadata.jsonl").write_text(text)
    with pytest.raises(LisaError, match=message):
        paired_folder(paired)


def test_two_metadata_files(paired):
    (paired / "metadata.jsonl").write_text("")
    (paired / "images" / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(LisaError, match="several metadata files"):
        paired_folder(paired)


def test_a_caption_that_is_not_utf8(paired):
    (paired / "captions" / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(LisaError, match=r"a.txt' is not UTF-8"):
        paired_folder(paired)


def test_the_fingerprint_follows_content_and_nothing_else(paired, tmp_path):
    before = paired_folder(paired)
    copy = tmp_path / "copy"
    shutil.copytree(paired, copy)
    for path in copy.rglob("*.*"):
        os.utime(path, (1, 1))
    assert paired_folder(copy).fingerprint == before.fingerprint

    def parts(source):
        return {part: source.part_fingerprint(part) for part in ("image", "condition", "caption")}

    def changed():
        now = paired_folder(copy)
        assert now.fingerprint != before.fingerprint
        return {part for part in parts(now) if parts(now)[part] != parts(before)[part]}

    (copy / "captions" / "a.txt").write_text("other words")
    assert changed() == {"caption"}
    save(picture(50), copy / "conditions" / "a.png")
    assert changed() == {"caption", "condition"}
    save(picture(51), copy / "images" / "a.png")
    assert changed() == {"image", "condition", "caption"}


def test_a_subset_is_a_source(paired):
    source = paired_folder(paired)
    subset = Subset(source, [3, 1])
    assert isinstance(subset, Source)
    assert subset.keys == ["sub/d", "b"] and subset.captions == ["caption of sub/d", "caption of b"]
    assert np.array_equal(subset[0].image, source[3].image) and len(subset) == 2
    assert subset.fingerprint != Subset(source, [1, 3]).fingerprint != source.fingerprint
    with pytest.raises(LisaError, match="there is no sample 4"):
        Subset(source, [4])


def test_transparent_conditions_are_seen_on_black_and_images_on_white(tmp_path):
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[:4] = (10, 20, 30, 255)
    for part in ("images", "conditions"):
        (tmp_path / part).mkdir()
        Image.fromarray(clear).save(tmp_path / part / "a.png")
    sample = paired_folder(tmp_path, default_caption="")[0]
    assert sample.image[0, 0].tolist() == [10, 20, 30] == sample.condition[0, 0].tolist()
    assert sample.image[7, 7].tolist() == [255] * 3 and sample.condition[7, 7].tolist() == [0] * 3
