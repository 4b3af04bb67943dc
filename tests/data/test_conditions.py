import numpy as np
import pytest
from pictures import picture

from lisa.common.errors import LisaError
from lisa.data import conditions
from lisa.data.conditions.canny import edge_mask
from lisa.data.conditions.edges import edge_strength
from lisa.data.conditions.gray import luminance
from lisa.data.scenes import make_scene


def step_picture(height=40, width=60, at=30):
    image = np.full((height, width, 3), 40, np.uint8)
    image[:, at:] = 200
    return image


@pytest.mark.parametrize("name", conditions.NAMES)
@pytest.mark.parametrize("shape", [(64, 64), (37, 53)])
def test_every_condition_is_a_picture_of_the_same_size_and_repeatable(name, shape):
    image = picture(1, *shape)
    made = conditions.make(name, image)
    assert made.shape == image.shape and made.dtype == np.uint8 and made.any()
    assert np.array_equal(made, conditions.make(name, image.copy()))
    assert conditions.describe(name)


def test_canny_finds_a_step_where_it_is_and_nothing_else():
    mask = edge_mask(step_picture())
    rows, columns = np.nonzero(mask)
    assert set(columns) <= {29, 30} and len(set(rows)) >= 32
    made = conditions.make("canny", step_picture())
    assert set(np.unique(made)) == {0, 255} and np.array_equal(made[..., 0] > 0, mask)


def test_soft_edges_grow_with_the_step():
    weak, strong = step_picture(), step_picture()
    weak[:, 30:] = 60
    assert edge_strength(weak).max() < 0.3 * edge_strength(strong).max()
    assert set(np.argmax(edge_strength(strong), axis=1)) <= {29, 30}
    assert edge_strength(strong)[:, :20].max() < 1e-6


def test_gray_is_the_luminance():
    image = np.asarray([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    assert np.allclose(luminance(image)[0], [0.2126, 0.7152, 0.0722, 1.0], atol=1e-5)
    made = conditions.make("gray", image)
    assert made[0, 1].tolist() == [182, 182, 182]


def test_lowres_is_the_scenes_own_on_whole_blocks_and_keeps_odd_sizes():
    scene = make_scene(4, 2)
    assert np.array_equal(conditions.make("lowres", scene.image(64)), scene.condition("lowres", 64))
    constant = np.full((13, 21, 3), 77, np.uint8)
    assert np.array_equal(conditions.make("lowres", constant), constant)


def test_blur_keeps_the_mean_and_takes_the_detail():
    image = picture(2, 64, 64)
    made = conditions.make("blur", image, sigma=4)
    assert abs(made.mean() - image.mean()) < 2 and made.std() < 0.2 * image.std()


def test_bad_input_is_named():
    with pytest.raises(LisaError, match=r"unknown condition 'cany' \(did you mean 'canny'\?\).*Choices: canny, edges"):
        conditions.make("cany", picture())
    with pytest.raises(LisaError, match=r"uint8 \(H, W, 3\), this is float64 \(8, 8\)"):
        conditions.make("gray", np.zeros((8, 8)))
