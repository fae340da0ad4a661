"""The bundles of one task, open side by side, and what they say of the images of requests.

Images of several requests go through the graphs together; one that cannot be read spoils no other.
A new bundle takes the place of the present one when it has verified, and each answer is by one
bundle from its beginning to its end.
"""

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from assay.bundle.aliases import ALIASES, Alias
from assay.bundle.answer import AnyAnswer
from assay.bundle.bundle import Bundle, Variant
from assay.bundle.card import Card, read_card
from assay.bundle.providers import Provider
from assay.bundle.registry import Record, Registry
from assay.data.images.pyramid import ImagePyramid
from assay.errors import AssayError, ImageError
from assay.files import read_bytes
from assay.metrics.alarm import Alarm, log_odds
from assay.metrics.drift import Drift
from assay.serve.contract import MaskFormat, Model, View, for_sender

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class OpenBundle:
    """A verified bundle, and what it is called by."""

    bundle: Bundle
    model: Model
    record: Record
    drift: Drift | None
    """Of what it answered; None where its graphs give no embedding."""


Item = tuple[OpenBundle, ImagePyramid]
"""An image, and the bundle that is to look at it."""


Look = Callable[[OpenBundle, bytes], Awaitable[Any]]
"""Lets a bundle look at an image, as `inspect`, or raises why it cannot be read, in half a sentence; see `serve.looker`."""


Watch = Callable[[Sequence[str], Sequence[Alarm], float], Awaitable[dict[str, Any]]]
"""Takes the logit of a fault into a print's alarms, by a model's task, version and variant; see `serve.frames`."""


class Inspector:
    """Answers for one task.

    Args:
        registry: where its bundles are.
        task: its name.
        threads: that the graphs may use; 0: all CPUs.
        provider: what runs the graphs.
    """

    def __init__(
        self, registry: Registry, task: str, threads: int = 0, provider: Provider = "auto"
    ) -> None:
        self.registry, self.task = registry, task
        self.threads, self.provider = threads, provider
        self.opened: dict[str, OpenBundle] = {}
        self.refused: dict[str, str] = {}
        self.drifts: dict[Model, Drift | None] = {}
        """Of bundles that were put away."""
        self.keep = False

    def configure(self, config: Mapping[str, Any]) -> None:
        """Open and verify the bundles of a configuration, then let them answer.

        A bundle that does not open leaves the present one in its place, and `refused` names its record.

        Args:
            config: the record of each alias by its id ("" for none), the variant, and whether
                answers come with a small picture to keep.

        Raises:
            Exception: the champion does not open, and there is none yet.
        """
        opened = dict(self.opened)
        self.refused, self.keep = {}, bool(config.get("keep"))
        for alias in ALIASES:
            if not config.get(alias):
                opened.pop(alias, None)
                continue
            try:
                opened[alias] = self._open(alias, config[alias], config["variant"])
            except Exception as error:  # whatever it is, what answers goes on answering
                logger.error(f"{self.task} {alias}: {error}")
                self.refused[alias] = config[alias]
                if alias == "champion" and alias not in opened:
                    raise
        self.opened = opened

    def _open(self, alias: Alias, name: str, variant: Variant) -> OpenBundle:
        record = self.registry.record(self.task, name)
        folder = self.registry.fetch(record)
        model = _model(record, alias, variant, read_card(folder))
        present = self.opened.get(alias)
        if present is not None and present.model == model:
            return present
        bundle = Bundle(folder, True, model.variant, self.threads, self.provider)
        drift = self.drifts.get(model) or Drift.from_card(bundle.card.embedding)
        return OpenBundle(bundle, model, record, drift)

    def put_away(self) -> None:
        """Close the bundles; what answers now keeps its own until its end, and the drift of answers is kept."""
        self.drifts = {each.model: each.drift for each in self.opened.values()}
        self.opened = {}

    async def answer(
        self,
        images: Sequence[bytes],
        alias: Alias,
        mask: MaskFormat,
        explain: bool,
        look: Look,
        watch: Watch | None = None,
    ) -> dict[str, Any]:
        """Return a reply's parts, of a frame with its print's if `watch` is given; or a status and why there is none."""
        opened = self.opened.get(alias)
        if opened is None:
            return {"status": 404, "error": f"{self.task} has no {alias}."}
        why = "" if watch is None else _refuse_watch(opened, len(images))
        if why:
            return {"status": 422, "error": why}
        looks = [look(opened, content) for content in images]
        outcomes: list[Any] = await asyncio.gather(*looks, return_exceptions=True)
        for number, outcome in enumerate(outcomes, 1):
            if isinstance(outcome, ImageError):
                why = for_sender(str(outcome))
                return {"status": 422, "error": f"Image {number} cannot be read: {why}."}
            if isinstance(outcome, BaseException):
                raise outcome
        parts = self._parts(opened, outcomes, mask, explain)
        if watch is None:
            return parts
        told = await _tell(opened, outcomes[0][0], watch)
        return told if "status" in told else parts | {"print": told}

    def _parts(
        self,
        opened: OpenBundle,
        outcomes: Sequence[tuple[Any, tuple[int, int], np.ndarray]],
        mask: MaskFormat,
        explain: bool,
    ) -> dict[str, Any]:
        """Put the answers for a request's images into their form, and take note of their drift."""
        verdict = opened.bundle.together([answer for answer, _, _ in outcomes])
        views = [_form(answer, size, mask, explain) for answer, size, _ in outcomes]
        if opened.drift is not None:
            for answer, _, _ in outcomes:
                opened.drift.add(answer.embedding)
        return {
            "model": opened.model.model_dump(),
            "classes": opened.bundle.classes,
            "answer": None if verdict is None else verdict.verdict(),
            "views": views,
            "thumb": _encode_jpeg(outcomes[0][2]) if self.keep else "",
        }

    def sample(self) -> bytes | None:
        """Return the champion's golden image; None where its files are gone."""
        opened = self.opened.get("champion")
        if opened is None:
            return None
        try:
            folder = self.registry.fetch(opened.record)
            return read_bytes(folder / opened.bundle.card.golden.image)
        except (AssayError, OSError):  # what answers goes on without its files
            logger.warning(f"{self.task} has lost its golden image", exc_info=True)
            return None

    def describe(self) -> dict[str, Any]:
        """Tell what a person may want to know of the bundles, by alias; also which records do not open."""
        late = {"refused": dict(self.refused)} if self.refused else {}
        return {
            alias: _describe(each.model, each.record, each.bundle.card) | late
            for alias, each in self.opened.items()
        }

    def look_up(self, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Tell the same of a configuration's bundles by their cards alone, without opening them.

        Raises:
            AssayError: a record or a card is gone or damaged.
        """
        told: dict[str, dict[str, Any]] = {}
        for alias in filter(config.get, ALIASES):
            record = self.registry.record(self.task, config[alias])
            card = self.registry.card(record)
            told[alias] = _describe(_model(record, alias, config["variant"], card), record, card)
        return told


def _fault_of(opened: OpenBundle) -> int | None:
    """Return the class that a bundle's alarms are on; None where it has none."""
    card = opened.bundle.card
    return card.decision.positive if card.alarms and card.decision else None


def _refuse_watch(opened: OpenBundle, num_images: int) -> str:
    """Say why images are no frame that alarms could take in; nothing where they are one."""
    if _fault_of(opened) is None:
        return f"The {opened.model.alias} of {opened.model.task} has no alarm over frames; leave print out, or promote a run that was trained with times and a class in decide.positive."
    if num_images > 1:
        return f"{num_images} images were sent as one frame of a print; send one."
    return ""


async def _tell(opened: OpenBundle, answer: Any, watch: Watch) -> dict[str, Any]:
    """Take the answer for a frame into its print's alarms; return what they say, or a status and why nothing."""
    card, model, fault = opened.bundle.card, opened.model, _fault_of(opened)
    assert fault is not None
    (logit,) = log_odds(answer.logits[None], fault).tolist()
    return await watch((model.task, model.version, model.variant), card.alarms, logit)


def _model(record: Record, alias: Alias, variant: Variant, card: Card) -> Model:
    """Name what answers: the variant that is wanted, where a bundle has it."""
    chosen: Variant = variant if card.pipeline.get("int8") else "fp32"
    return Model(task=record.task, alias=alias, version=record.version, variant=chosen)


def _describe(model: Model, record: Record, card: Card) -> dict[str, Any]:
    return model.model_dump() | {
        "run": record.run,
        "data": record.data,
        "since": record.time,
        "kind": card.pipeline["kind"],
        "classes": card.classes,
        "metrics": record.metrics,
    }


def inspect(items: Sequence[Item]) -> list[Any]:
    """Return for each item an answer with the image's size and smallest level, or why there is none; of a damaged image no more than that."""
    outcomes: list[Any] = [None] * len(items)
    for opened in {id(item[0]): item[0] for item in items}.values():
        indices = [i for i, item in enumerate(items) if item[0] is opened]
        answers = _predict(opened.bundle, [items[i][1] for i in indices])
        for i, outcome in zip(indices, answers, strict=True):
            outcomes[i] = outcome
    return outcomes


def _predict(bundle: Bundle, entries: Sequence[ImagePyramid]) -> list[Any]:
    try:
        answers = bundle.predict_each(entries)
    except Exception as error:  # whatever a graph may raise must reach its own request alone
        if len(entries) == 1:
            return [error]
        return [_predict(bundle, [entry])[0] for entry in entries]
    return [
        _damaged(answer)
        if isinstance(answer, ImageError)
        else (answer, entry.size, entry.uint8(np.asarray(entry.levels[-1])))
        for answer, entry in zip(answers, entries, strict=True)
    ]


def _damaged(error: ImageError) -> ImageError:
    """Keep what was found of an image to the log."""
    logger.warning(str(error))
    return ImageError("it is damaged")


def _encode_jpeg(level: np.ndarray) -> str:
    """Encode a small picture as JPEG in base64."""
    ordered = np.ascontiguousarray(level[..., ::-1])
    return base64.b64encode(cv2.imencode(".jpg", ordered)[1].tobytes()).decode()


def _form(
    answer: AnyAnswer, size: tuple[int, int], mask: MaskFormat, explain: bool
) -> dict[str, Any]:
    """Put what is said of an image of this height and width into its form."""
    height, width = size
    return View(height=height, width=width, **answer.form(mask, explain)).model_dump()
