"""Extractors: what they read against transformers' own pipelines, and which weights they say they have."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_readers
from lisa.cli.common import quiet_libraries
from lisa.common.errors import LisaError
from lisa.evaluate.extractors.clip import ClipReader
from lisa.evaluate.extractors.depth import DepthReader, normalised
from lisa.evaluate.extractors.pose import PoseReader
from lisa.evaluate.extractors.segmentation import SegmentationReader
from lisa.evaluate.extractors.weights import locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of weights by its maker's name, made once."""
    quiet_libraries()
    root, folders = tmp_path_factory.mktemp("readers"), {}

    def folder(name):
        if name not in folders:
            folders[name] = getattr(tiny_readers, name)(root / name)
        return folders[name]

    return folder


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def pipeline(task, folder, image, **options):
    from PIL import Image
    from transformers import pipeline

    return pipeline(task, model=str(folder), device="cpu")(Image.fromarray(image), **options)


def test_depth_is_what_the_pipeline_of_transformers_reads(made, image):
    expected = pipeline("depth-estimation", made("depth"), image)["predicted_depth"].numpy().astype(np.float64)
    found = DepthReader(locate(str(made("depth"))))(image)
    assert found.shape == (48, 64) and found.min() == 0 and found.max() == 1 and found.std() > 0.05
    np.testing.assert_allclose(found, normalised(expected), atol=1e-5)
    raw = DepthReader(locate(str(made("depth")))).raw(image)
    assert raw.shape == (64, 64), "the network's own size"
    resized = torch.nn.functional.interpolate(torch.from_numpy(raw)[None, None], size=(48, 64), mode="bicubic")
    np.testing.assert_allclose(resized[0, 0], expected, atol=1e-5)
    assert not normalised(np.full((2, 2), 7.0)).any(), "a flat map"


@pytest.mark.parametrize("name", ["segformer", "mask2former"])
def test_classes_are_what_the_pipeline_of_transformers_reads(made, image, name):
    reader = SegmentationReader(locate(str(made(name))))
    found = reader(image)
    assert reader.classes == 3 and found.shape == (48, 64) and len(np.unique(found)) > 1
    for part in pipeline("image-segmentation", made(name), image, subtask="semantic"):
        number = int(part["label"].removeprefix("LABEL_"))
        assert np.array_equal(np.asarray(part["mask"]) > 0, found == number)


def test_joints_move_with_the_person(made, monkeypatch):
    """The same content 7 and 12 pixels further on, in a box that is moved with it: so are all joints."""
    reader = PoseReader(locate(str(made("pose"))), locate(str(made("detector"))))
    content = np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    people = []
    for left, top in ((20, 20), (27, 32)):
        image = np.zeros((100, 90, 3), np.uint8)
        image[top : top + 40, left : left + 30] = content
        box = np.asarray([[left, top, left + 30, top + 40]], np.float64)
        monkeypatch.setattr(reader, "_find", lambda _, box=box: box)
        people.append(reader(image))
    assert people[0].joints.shape == (1, 4, 2) and np.array_equal(people[0].seen, people[1].seen)
    np.testing.assert_allclose(people[1].joints - people[0].joints, np.full((1, 4, 2), [7, 12]), atol=1e-3)
    monkeypatch.setattr(reader, "_find", lambda _: np.zeros((0, 4)))
    assert len(reader(content).boxes) == 0


def test_people_are_what_the_detector_calls_so(made, image, tmp_path):
    pose = locate(str(made("pose")))
    people = PoseReader(pose, locate(str(made("detector"))))(image)
    assert people.boxes.shape == (3, 4) and people.joints.shape == (3, 4, 2)
    boxes = pipeline("object-detection", made("detector"), image, threshold=0.5)
    expected = [[each["box"][end] for end in ("xmin", "ymin", "xmax", "ymax")] for each in boxes]
    np.testing.assert_allclose(np.sort(people.boxes, 0), np.sort(np.asarray(expected), 0), atol=1)
    sure_of_cats = locate(str(tiny_readers.detector(tmp_path / "cats", names=("person", "cat"))))
    assert len(PoseReader(pose, sure_of_cats)(image).boxes) == 0
    with pytest.raises(LisaError, match="knows no class 'person'"):
        PoseReader(pose, locate(str(tiny_readers.detector(tmp_path / "none", names=("dog", "cat")))))


def test_clip_embeds_as_its_own_forward_pass(made, image):
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    reader, folder, words = ClipReader(locate(str(made("clip")))), made("clip"), ["a cat", "x " * 200]
    pictures = [image, image[::-1]]
    inputs = AutoImageProcessor.from_pretrained(folder)(images=pictures, return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(words, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(folder)(**inputs, **tokens)
    for found, theirs in (
        (reader.images(pictures), expected.image_embeds),
        (reader.captions(words), expected.text_embeds),
    ):
        np.testing.assert_allclose(found / np.linalg.norm(found, axis=-1, keepdims=True), theirs, atol=1e-5)
    many = reader.images([image] * 33 + [image[::-1]])
    np.testing.assert_allclose(many[[32, 33]], reader.images(pictures), atol=1e-5)


def test_weights_are_named_by_what_they_are(made, tmp_path):
    first = locate(str(made("segformer")))
    copied = shutil.copytree(made("segformer"), tmp_path / "copy")
    (copied / "notes.md").write_text("not part of them")
    assert locate(str(copied)).revision == first.revision and first.revision.startswith("content:")
    tensors = load_file(copied / "model.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1}, copied / "model.safetensors", metadata={"format": "pt"})
    assert locate(str(copied)).revision != first.revision
    assert first.to_json() == {"source": str(made("segformer")), "revision": first.revision}


def test_weights_on_the_hub_are_named_by_their_commit(made, tmp_path, monkeypatch):
    """The cache as the Hub's client leaves it, without a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        LisaError, match=r"'owner/model' are not on this disk, and could not be fetched .*name a folder"
    ):
        locate("owner/model")
    place = tmp_path / "models--owner--model"
    shutil.copytree(made("segformer"), place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    found = locate("owner/model")
    assert found.to_json() == {"source": "owner/model", "revision": COMMIT}
    assert locate(f"owner/model@{COMMIT}").folder == found.folder and SegmentationReader(found).classes == 3
    with pytest.raises(LisaError, match="'owner/model@v2' are not on this disk"):
        locate("owner/model@v2")


def test_weights_that_do_not_fit_are_named(made, tmp_path):
    with pytest.raises(LisaError, match=r"segformer' cannot be read as AutoModelForDepthEstimation.*evaluation\.md"):
        DepthReader(locate(str(made("segformer"))))
    headless = shutil.copytree(made("segformer"), tmp_path / "headless")
    tensors = {k: v for k, v in load_file(headless / "model.safetensors").items() if not k.startswith("decode_head")}
    save_file(tensors, headless / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LisaError, match=r"lacks \d+ tensors of a Segformer.*decode_head"):
        SegmentationReader(locate(str(headless)))
    (headless / "model.safetensors").write_bytes(b"half")
    with pytest.raises(LisaError, match="cannot be read as AutoModelForSemanticSegmentation"):
        SegmentationReader(locate(str(headless)))
    with pytest.raises(LisaError, match=r"has no config\.json"):
        locate(str(tmp_path))
    with pytest.raises(LisaError, match="there is no folder '/nowhere/at/all', and it is no name on the Hub"):
        locate("/nowhere/at/all")
