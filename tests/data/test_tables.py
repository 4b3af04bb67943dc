import io

import numpy as np
import pytest
from pictures import picture
from PIL import Image

from lisa.common.errors import LisaError
from lisa.data.samples import HasCaptions, Source
from lisa.data.sources import check_source, open_source, parquet


def encoded(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def table(tmp_path):
    """Writes a parquet file, as plain bytes or with the picture feature of ``datasets``."""

    def write(name="a.parquet", rows=5, typed=True, **changes):
        import datasets

        data = {
            "image": [{"bytes": encoded(picture(i)), "path": None} for i in range(rows)],
            "conditioning_image": [{"bytes": encoded(picture(50 + i)), "path": None} for i in range(rows)],
            "text": [f" caption {i} " for i in range(rows)],
            "id": [f"row{i}" for i in range(rows)],
            **changes,
        }
        made = datasets.Dataset.from_dict({k: v for k, v in data.items() if v is not None})
        if typed:
            for column in ("image", "conditioning_image"):
                if column in made.column_names:
                    made = made.cast_column(column, datasets.Image())
        path = tmp_path / "tables" / name
        path.parent.mkdir(exist_ok=True)
        made.to_parquet(path)
        return path

    return write


@pytest.fixture
def options(tmp_path):
    return {"cache_dir": tmp_path / "cache"}


@pytest.mark.parametrize("typed", [True, False])
def test_a_parquet_file_gives_its_samples(table, options, typed):
    source = open_source(table(typed=typed), table_options=options)
    assert isinstance(source, Source) and isinstance(source, HasCaptions)
    assert len(source) == 5 and source.keys[2] == "00000002" and source.captions[2] == "caption 2"
    sample = source[2]
    assert np.array_equal(sample.image, picture(2)) and np.array_equal(sample.condition, picture(52))
    assert sample.caption == "caption 2" and source[-1].key == "00000004"
    assert check_source(source).checked == 5
    with pytest.raises(IndexError):
        source[5]


def test_a_folder_of_parquet_files_and_named_columns(table, options):
    table("b.parquet", rows=2, text=["x", "y"], id=["p", "q"])
    path = table("a.parquet", rows=3)
    source = open_source(path.parent, table_options={**options, "key_column": "id"})
    assert source.keys == ["row0", "row1", "row2", "p", "q"]
    bare = parquet(path, **options, condition_column=None, caption_column=None, default_caption="nothing")
    assert bare[0].condition is None and bare.captions == ["nothing"] * 3


def test_the_fingerprint_follows_the_files_bytes(table, options):
    first = parquet(table(), **options)
    assert parquet(table(), **options).fingerprint == first.fingerprint
    elsewhere = table().rename(table().with_name("moved.parquet"))
    assert parquet(elsewhere, **options).fingerprint == first.fingerprint
    other = [{"bytes": encoded(picture(9 + i)), "path": None} for i in range(5)]
    assert parquet(table(image=other), **options).part_fingerprint("image") != first.part_fingerprint("image")
    changed = parquet(table(text=["other"] * 5), **options)
    assert changed.fingerprint != first.fingerprint
    assert changed.part_fingerprint("caption") != first.part_fingerprint("caption")
    assert parquet(table(), **options, caption_column="id").part_fingerprint("image") == first.part_fingerprint("image")


def test_a_missing_column_names_the_others(table, options):
    with pytest.raises(LisaError, match=r"no column 'texts' \(did you mean 'text'\?\).*Choices: image"):
        parquet(table(), **options, caption_column="texts")


def test_missing_captions_and_double_keys_are_named(table, options):
    path = table(text=["a", None, "c", None, "e"])
    with pytest.raises(LisaError, match=r"2 rows of 5 without a caption \(first: row 1\)"):
        parquet(path, **options)
    assert parquet(path, **options, default_caption="").captions == ["a", "", "c", "", "e"]
    with pytest.raises(LisaError, match="holds 'same' several times"):
        parquet(table(id=["same"] * 5), **options, key_column="id")


def test_a_damaged_cell_is_named(table, options):
    rows = [{"bytes": encoded(picture(i)), "path": None} for i in range(5)]
    rows[3]["bytes"] = rows[3]["bytes"][:-300]
    source = parquet(table(image=rows), **options)
    with pytest.raises(LisaError, match=r"'image' of row 3 of .*a.parquet is truncated or damaged"):
        check_source(source)


def test_a_cell_that_holds_no_picture_is_named(table, options):
    source = parquet(table(typed=False, image=[1, 2, 3, 4, 5]), **options)
    with pytest.raises(LisaError, match=r"'image' of row 0 of .* holds int, not a picture"):
        source[0]


def test_what_is_not_there_or_not_parquet(tmp_path, options):
    with pytest.raises(LisaError, match="no parquet file at"):
        open_source(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(LisaError, match=r"data set '.*bad.parquet' cannot be loaded"):
        open_source(tmp_path / "bad.parquet", table_options=options)


def test_a_hub_name_that_cannot_be_loaded(monkeypatch):
    import datasets

    def refuse(*args, **kwargs):
        raise ConnectionError("no network\nmore lines")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(LisaError, match=r"there is no folder 'owner/name', and as a Hub name: .*\(no network\)"):
        open_source("owner/name")
    with pytest.raises(LisaError, match=r"data set 'owner/name' cannot be loaded \(no network\)"):
        open_source("hub:owner/name")


def test_a_hub_data_set(table, monkeypatch, options):
    import datasets

    local = datasets.load_dataset(
        "parquet", data_files=str(table()), split="train", cache_dir=str(options["cache_dir"])
    )
    asked = {}

    def answer(kind, **arguments):
        asked.update(arguments, kind=kind)
        return local

    monkeypatch.setattr(datasets, "load_dataset", answer)
    source = open_source("owner/name", table_options={"split": "test", "revision": "abc"})
    assert (asked["kind"], asked["split"], asked["revision"]) == ("owner/name", "test", "abc")
    assert source.name == "owner/name" and np.array_equal(source[1].image, picture(1))


def test_several_condition_columns_are_stacked(table, options):
    low = [{"bytes": encoded(picture(80 + i)), "path": None} for i in range(5)]
    path = table(low=low)
    columns = {**options, "condition_column": ["conditioning_image", "low"]}
    source = open_source(path, conditions=["gray", "lowres"], table_options=columns)
    assert np.array_equal(source[2].condition, np.concatenate([picture(52), picture(82)], axis=-1))
    assert check_source(source).checked == 5
    alone = [parquet(path, **{**options, "condition_column": name}) for name in ("conditioning_image", ["low"])]
    prints = {each.part_fingerprint("condition") for each in (source, *alone)}
    assert len(prints) == 3 and {each.part_fingerprint("image") for each in alone} == {source.part_fingerprint("image")}
    small = [{"bytes": encoded(picture(i)[:10]), "path": None} for i in range(5)]
    uneven = parquet(table("b.parquet", low=small), **columns)
    with pytest.raises(LisaError, match=r"the conditions of row 1 of .* Stacked conditions must have one size"):
        uneven[1]
    with pytest.raises(LisaError, match="has no column 'lwo'"):
        parquet(path, **{**options, "condition_column": ["low", "lwo"]})


def test_as_many_columns_as_conditions(table, options, monkeypatch):
    from lisa.build import parts
    from lisa.train.config import DataSettings

    monkeypatch.setenv("HF_DATASETS_CACHE", str(options["cache_dir"]))
    settings = DataSettings(source=str(table()), condition=["gray", "lowres"], held_out=2)
    with pytest.raises(LisaError, match=r"names 2 conditions \(gray, lowres\), .* gives 1. Name a column for each"):
        parts.open_data(settings, 0)
