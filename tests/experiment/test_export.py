"""What a bundle is made of, where images change while a run is trained."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from assay.data.manifest import DataConfig, read_manifest
from assay.errors import ManifestError
from assay.experiment.export import _golden


@pytest.mark.parametrize("spoil", ["changed", "gone"])
def test_an_image_that_is_no_longer_what_was_trained_on_is_named_and_no_graph_blamed(
    tmp_path: Path, spoil: str
) -> None:
    for number in (1, 2):
        path = tmp_path / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        assert cv2.imwrite(str(path), np.full((40, 50, 3), number, np.uint8))
    data = DataConfig(
        root=tmp_path / "images", patterns=("{name}",), label="", group=(), domains=()
    )
    job: Any = SimpleNamespace(manifest=read_manifest(data, tmp_path / "hashes.sqlite"))
    assert _golden(job, 1) == path
    before = path.read_bytes()
    if spoil == "gone":
        path.unlink()
    else:
        path.write_bytes(before[:-1])
    with pytest.raises(ManifestError, match=r"no longer what was trained on \(The image .*2\.png"):
        _golden(job, 1)
    path.write_bytes(before)
    assert _golden(job, 1) == path
