"""folder.py: fields of names, by patterns."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.folder import scan_folder
from assay.errors import ManifestError

PIECES = st.lists(st.sampled_from(["_", "a", "ab", "-", "_a", "/", "a/"]), min_size=1, max_size=4)


@given(pieces=PIECES, name=st.text("ab_-/", min_size=1, max_size=14))
def test_fields_are_the_shortest_from_the_left(tmp_path_factory, pieces, name):
    """As a regular expression of lazy fields finds them that tries every end of each."""
    if any(part in ("", "-") for part in name.split("/")):
        return  # no path, or a folder's name that starts an option
    root = tmp_path_factory.mktemp("root")
    image = root / f"{name}.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    image.touch()
    pattern = "".join(f"{{f{i}}}{piece}" for i, piece in enumerate(pieces)) + "{last}"
    lazy = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+?)", re.escape(pattern))
    match = re.fullmatch(lazy, name)
    if match is None:
        with pytest.raises(ManifestError, match="fit no pattern"):
            scan_folder(root, [pattern], "", "split")
    else:
        assert dict(scan_folder(root, [pattern], "", "split")[0].fields) == match.groupdict()


def test_a_name_that_fits_in_no_way_is_refused_at_once(tmp_path):
    """Ten fields have more ends in sixty underscores than could be tried."""
    (tmp_path / ("a_" * 60 + "b.png")).touch()
    pattern = "_".join(f"{{f{i}}}" for i in range(10)) + "-{label}"
    began = time.monotonic()
    with pytest.raises(ManifestError, match="fit no pattern"):
        scan_folder(tmp_path, [pattern], "", "split")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("name", ["c_mask.png", "c-GT.jpg", "c Masks.png", "c_segmentation.tif"])
def test_masks_beside_their_images_are_no_images(tmp_path, name):
    for file in ("good/a.png", "good/d_mask.png", "bad/c.png"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert len(scan_folder(tmp_path, ["{label}/{name}"], "label", "split")) == 3
    (tmp_path / "bad" / name).touch()
    with pytest.raises(ManifestError, match="lies beside the image c, as its mask does"):
        scan_folder(tmp_path, ["{label}/{name}"], "label", "split")
