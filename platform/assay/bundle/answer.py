"""What every answer of a bundle can do, whatever its kind, and how graphs are run.

A kind of input is one file beside this one: its answer, and the answerer that comes to it.

    classify   patches, image   a class: `Answer`; of several views of one part a `Verdict`
    segment    tiles            a mask: `MaskAnswer`
    embed      embedding        a vector: `EmbeddingAnswer`

Several images go through the graphs together. Numpy, an image decoder and onnxruntime are all that
is needed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from assay.bundle.card import Card
from assay.config import Settings
from assay.data.images.pyramid import ImagePyramid
from assay.shapes import UInt8

S = TypeVar("S", bound=Settings)


@runtime_checkable
class AnyAnswer(Protocol):
    """What a bundle says of one image."""

    @property
    def embedding(self) -> np.ndarray | None:
        """What the last layer decided from; None where the graph does not say."""

    def golden(self) -> dict[str, float]:
        """Return numbers that every opening of the bundle must repeat."""

    def form(self, mask: str, explain: bool = False) -> dict[str, Any]:
        """Return plain values that go over the wire; `mask`: png, rle or none; `explain`: the evidence too."""

    def cells(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return one row of a table; what has no single value is JSON."""

    def pictures(self) -> dict[str, np.ndarray]:
        """Return images to be kept whole beside the row, by the folder that they go to."""

    def draw(self, image: UInt8[np.ndarray, "h w 3"], scale: np.ndarray) -> None:
        """Mark on a small copy of the image what it says; `scale`: copy over image, x and y."""


@runtime_checkable
class Answerer(Protocol):
    """Comes to the answers of one kind by a bundle's card and graphs."""

    decides: bool
    """Its answers are classes by the card's decision, whose golden output training computed."""

    def __init__(self, card: Card, graphs: Mapping[str, Any]) -> None: ...

    def predict(self, pyramids: Sequence[ImagePyramid]) -> Sequence[AnyAnswer]:
        """Answer for each image."""

    def together(self, views: Sequence[Any]) -> Any:
        """Answer for one part by several views of it; None where views stay apart."""


def settings_of(kind: type[S], values: Mapping[str, Any]) -> S:
    """Rebuild settings from a bundle's card, where pydantic is not installed."""
    return kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


def run_graph(graph: Any, names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[Any]:
    """Return outputs by name; None for each row where the graph does not give one."""
    present = {end.name for end in graph.get_outputs()}
    asked = [name for name in names if name in present]
    outputs = dict(zip(asked, graph.run(asked, feed), strict=True))
    num = len(next(iter(outputs.values())))
    return [outputs.get(name, [None] * num) for name in names]
