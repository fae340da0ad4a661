"""The bundle: what ships. It opens with numpy, an image decoder and onnxruntime; no torch, no Ray.

    bundle/
        *.onnx        graphs
        golden.*      one image, as the data had it
        bundle.json   input pipeline, classes, decision, metrics with intervals, fingerprints,
                      SHA-256 of every other file, golden output; written last

A bundle checks its files and repeats its golden output before it says that it is ready.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import onnxruntime

from assay.bundle.answer import Answerer, AnyAnswer
from assay.bundle.card import check_content, read_card
from assay.bundle.classify import ImageClassifier, PatchClassifier, Verdict
from assay.bundle.embed import Embedder
from assay.bundle.providers import Provider, open_session
from assay.bundle.segment import Segmenter
from assay.data.images import decode
from assay.data.images.entry import SUFFIX, open_entry
from assay.data.images.pyramid import ImagePyramid
from assay.errors import BundleError, ImageError, StoreError

Variant: TypeAlias = Literal["fp32", "int8"]


TOLERANCE = 1e-3
"""Largest difference of a probability between the golden output and its repetition."""


KINDS: dict[str, type[Answerer]] = {
    "image": ImageClassifier,
    "patches": PatchClassifier,
    "tiles": Segmenter,
    "embedding": Embedder,
}
"""Answerers by the kind of what a pipeline is shown."""


class Bundle:
    """An opened bundle; `predict` answers for one image.

    Args:
        folder: the bundle's directory.
        verify: repeat the golden output before returning.
        variant: fp32, or the int8 graphs where the bundle has them.
        threads: that the graphs may use; 0: all CPUs.
        provider: what runs the graphs; auto: a GPU or OpenVINO where this onnxruntime can load it.

    Raises:
        BundleError: whatever is wrong with it: a file is missing or changed, the schema is another
            one, a graph does not load, by the provider that is asked for, or the golden output is
            not repeated.
    """

    def __init__(
        self,
        folder: Path,
        verify: bool = True,
        variant: Variant = "fp32",
        threads: int = 0,
        provider: Provider = "auto",
    ) -> None:
        self.card = card = read_card(folder)
        check_content(folder, card)
        try:
            self._start(folder, variant, threads, provider)
            if verify:
                golden = card.golden
                repeated = golden.probs if variant == "fp32" else golden.int8 or {}
                self._compare(self.predict(folder / golden.image), repeated, folder)
        except BundleError:
            raise
        # onnxruntime's own, and whatever a card leads to that misfits its graphs
        except Exception as error:
            why = (str(error).splitlines() or [""])[0][:300] or type(error).__name__
            raise BundleError(
                f"{folder} does not open ({why}); export the bundle again."
            ) from error

    def _start(self, folder: Path, variant: str, threads: int, provider: Provider) -> None:
        pipeline = self.card.pipeline
        if pipeline["kind"] not in KINDS:
            raise BundleError(
                f"{folder} needs the input pipeline {pipeline['kind']!r}; this Assay has: {', '.join(KINDS)}."
            )
        names = {name: name for name in pipeline["graphs"]}
        if variant != "fp32":
            if not pipeline.get("int8"):
                raise BundleError(f"{folder} holds no int8 graph; open its fp32 form.")
            names = dict(zip(names, pipeline["int8"], strict=True))
        self.pipeline, self.classes = pipeline, self.card.classes
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # threads that wait for more by spinning take CPUs from other replicas (tests/benchmarks/sessions.md)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.graphs = {
            name: open_session(folder / f"{file}.onnx", options, provider)
            for name, file in names.items()
        }
        self._answerer = KINDS[pipeline["kind"]](self.card, self.graphs)

    def _compare(self, answer: AnyAnswer, expected: Mapping[str, float], folder: Path) -> None:
        golden = answer.golden()
        if not expected:
            raise BundleError(f"{folder} has no golden output to repeat; export it again.")
        worst = max(abs(golden[name] - value) for name, value in expected.items())
        if not worst <= TOLERANCE:
            raise BundleError(
                f"{folder} does not repeat its golden output (off by {worst:.2g}, allowed {TOLERANCE}); export it again on this machine's onnxruntime."
            )

    def predict(self, source: str | Path | bytes) -> Any:
        """Answer for one image file, or its content: an `Answer`, a `MaskAnswer` or an `EmbeddingAnswer`, by the task.

        Raises:
            ImageError: the image cannot be read.
        """
        (answer,) = self.predict_each([Path(source) if isinstance(source, str) else source])
        if isinstance(answer, ImageError):
            raise answer
        return answer

    def predict_each(
        self, sources: Sequence[Path | bytes | ImagePyramid | ImageError]
    ) -> list[Any]:
        """Answer for several images at once; in the place of an answer stands why there is none."""
        images = [self.read(source) for source in sources]
        answers = iter(self._answers([im for im in images if isinstance(im, ImagePyramid)]))
        return [next(answers) if isinstance(im, ImagePyramid) else im for im in images]

    def read(self, source: Path | bytes | ImagePyramid | ImageError) -> ImagePyramid | ImageError:
        """Decode an image as the data were decoded, unless that was done or tried before.

        Of a file of the store (.pixels) only what is looked at is read. Returns why it cannot be read.
        """
        if isinstance(source, ImagePyramid | ImageError):
            return source
        try:
            if isinstance(source, Path) and source.suffix == SUFFIX:
                pyramid = open_entry(source)
            else:
                pyramid = ImagePyramid.read(source, self.card.page)
        except (ImageError, StoreError) as error:
            return ImageError(str(error))
        try:
            return self.by_white(pyramid)
        except ImageError as error:
            return ImageError(f"Image {decode.name(source)} cannot be read: {error}.")

    def by_white(self, pyramid: ImagePyramid) -> ImagePyramid:
        """Read an image's values by the white level of the data.

        Raises:
            ImageError: they are of another level; half a sentence that says so.
        """
        pyramid.range.scale(self.card.white)
        return replace(pyramid, white=self.card.white)

    def _answers(self, pyramids: Sequence[ImagePyramid]) -> list[Any]:
        try:
            return list(self._answerer.predict(pyramids)) if pyramids else []
        except (ImageError, StoreError) as error:  # a tile that was looked at is damaged
            if len(pyramids) == 1:
                return [ImageError(str(error))]
            return [self._answers([pyramid])[0] for pyramid in pyramids]

    def together(self, views: Sequence[Any]) -> Verdict | None:
        """Answer for one part by the answers for several views of it; nothing where those are no classes."""
        verdict: Verdict | None = self._answerer.together(views)
        return verdict
