import pytest
from pictures import picture, save


@pytest.fixture
def paired(tmp_path):
    """A good paired folder with four samples, one of them in a subfolder, and captions in .txt files."""
    root = tmp_path / "pairs"
    for i, key in enumerate(("a", "b", "c", "sub/d")):
        save(picture(i), root / "images" / f"{key}.png")
        save(picture(100 + i), root / "conditions" / f"{key}.png")
        text = root / "captions" / f"{key}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(f"caption of {key}\n")
    return root
