"""Frames of a print sent one by one: the alarms say what they say of the whole print, whatever happens on the way."""

import asyncio
import itertools
import math
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.bundle.bundle import Bundle
from assay.bundle.promotion import promote
from assay.bundle.registry import Registry
from assay.metrics.alarm import Alarm, first_above, log_odds
from assay.serve.frames import REPEATED, Frame, PrintStates
from assay.serve.http import make_app
from assay.serve.limits import Limits
from assay.serve.tokens import Tokens

ALARMS = [
    Alarm(kind="cusum", reference=-1.0, window=1, threshold=1.5),
    Alarm(kind="average", reference=0.0, window=3, threshold=-0.5),
]
NUMBERS = itertools.count()
MODEL = ("frames", "v", "fp32")
TOKEN = "a-long-secret"


class Clock:
    """Seconds that a test lets pass."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def states_of(most: int = 100, expires_s: float = 60.0) -> tuple[PrintStates, Clock]:
    clock = Clock()
    return PrintStates(most, expires_s, clock), clock


def frame_of(print_id: str, request: str = "", seconds: float | None = None) -> Frame:
    return Frame(print_id, request or f"r{next(NUMBERS)}", seconds)


def told_of(logits: list[float]) -> dict[str, Any]:
    """What is to be told after the last of these frames, from the whole print at once."""
    told = []
    for alarm in ALARMS:
        values = alarm.path(np.array(logits))
        first = first_above(values, alarm.threshold)
        told.append(
            {
                "kind": alarm.kind,
                "value": values[-1] if values[-1] > -math.inf else None,
                "threshold": alarm.threshold,
                "rings": first is not None,
                "first_frame": None if first is None else first + 1,
                "first_time": None,
            }
        )
    return {"frames": len(logits), "alarms": told}


SENT = st.lists(st.tuples(st.sampled_from("abc"), st.floats(-4, 4, width=32)), max_size=40)


@given(SENT, st.lists(st.integers(0, 39), max_size=5))
def test_frames_of_several_prints_are_told_as_each_print_alone(sent, repeated):
    """Also where some are sent twice: the second time they are answered as the first, and count once."""
    states, _ = states_of()
    logits: dict[str, list[float]] = {}
    for place, (name, logit) in enumerate(sent):
        logits.setdefault(name, []).append(logit)
        frame = frame_of(name)
        told = states.advance(MODEL, frame, ALARMS, logit)
        assert told == {"id": name} | told_of(logits[name])
        if place in repeated:
            assert states.advance(MODEL, frame, ALARMS, 9.0) == told


def test_prints_of_another_model_are_other_prints():
    states, _ = states_of()
    for version in ("v", "w"):
        model = ("frames", version, "fp32")
        assert states.advance(model, frame_of("a"), ALARMS, 1.0)["frames"] == 1
    assert states.advance(MODEL, frame_of("a"), ALARMS, 1.0)["frames"] == 2


def test_the_longest_unused_print_goes_and_one_that_is_late_begins_anew():
    states, clock = states_of(most=2, expires_s=10.0)

    def frames(name: str) -> int:
        return states.advance(MODEL, frame_of(name), ALARMS, 1.0)["frames"]

    assert [frames(name) for name in "abacba"] == [1, 1, 2, 1, 1, 1]
    assert len(states.prints) == 2
    clock.now = 10.0
    assert frames("a") == 2
    clock.now = 20.5
    assert frames("a") == 1
    assert len(states.prints) == 1


def test_a_frame_is_known_again_among_the_last_ones():
    states, _ = states_of()
    first = frame_of("a")
    states.advance(MODEL, first, ALARMS, 0.0)
    for _ in range(REPEATED - 1):
        states.advance(MODEL, frame_of("a"), ALARMS, 0.0)
    assert states.advance(MODEL, first, ALARMS, 0.0)["frames"] == 1
    states.advance(MODEL, frame_of("a"), ALARMS, 0.0)
    assert len(states.prints[*MODEL, "a"].answers) == REPEATED


def test_times_may_be_given_and_do_not_run_backwards():
    states, _ = states_of()

    def send(seconds: float | None, request: str = "", logit: float = 3.0) -> dict[str, Any]:
        return states.advance(MODEL, frame_of("a", request, seconds), ALARMS, logit)

    send(5.0, logit=-3.0)
    first = send(6.5, "again")
    assert first["alarms"][0]["first_time"] == 6.5
    assert send(None)["frames"] == 3
    for seconds in (6.0, 6.5):
        refused = send(seconds)
        assert refused["status"] == 422
        text = f"The frame's time is {seconds:g} s, and that of the print's last one 6.5 s; send"
        assert refused["error"].startswith(text)
    assert send(6.5, "again") == first  # sent again is not backwards
    last = send(8.0)
    assert (last["frames"], last["alarms"][0]["first_time"]) == (4, 6.5)
    # of the mean the first window is full at the third frame, which had no time
    assert (last["alarms"][1]["first_frame"], last["alarms"][1]["first_time"]) == (3, None)
    refused = send(9.0, logit=math.nan)
    assert (refused["status"], "not a number" in refused["error"]) == (422, True)
    assert send(9.0)["frames"] == 5


# Through HTTP


@pytest.fixture(scope="module")
def watched(tmp_path_factory, make_bundle, judged_rows) -> Registry:
    """Frames with alarms, and parts without."""
    folder = tmp_path_factory.mktemp("frames")
    registry = Registry(str(folder / "registry"))
    for task, alarms in (("frames", ALARMS), ("parts", ())):
        bundle = make_bundle(folder / task, task, alarms=alarms)
        promote(registry, bundle, judged_rows(0.9), "champion")
    return registry


@pytest.fixture
def service(here, watched, decoders) -> Any:
    return type(here)(watched, decoders)


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> list[Path]:
    """Noise that grows redder from frame to frame."""
    folder, rng = tmp_path_factory.mktemp("print"), np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(8)]
    for number, path in enumerate(paths):
        image = rng.integers(0, 120, (32, 32, 3), dtype=np.uint8)
        image[: number + 1, :2, 2] = 100 + 20 * number
        cv2.imwrite(str(path), image)
    return paths


def logits_of(watched: Registry, paths: list[Path]) -> list[float]:
    bundle = Bundle(watched.fetch(watched.holder("frames", "champion")))
    return log_odds(np.stack([bundle.predict(path).logits for path in paths]), 0).tolist()


def test_the_server_says_of_each_frame_what_the_whole_print_says(ask, service, watched, frames):
    logits = logits_of(watched, frames)
    first = told_of(logits)["alarms"]
    assert [0 < each["first_frame"] - 1 < len(frames) - 1 for each in first] == [True, True]
    for number, path in enumerate(frames, 1):
        reply = ask("POST", "/v1/frames?print=line-4.17", service, content=path.read_bytes())
        assert reply.status_code == 200, reply.text
        assert reply.json()["print"] == {"id": "line-4.17"} | told_of(logits[:number])
    plain = ask("POST", "/v1/frames", service, content=frames[0].read_bytes()).json()
    assert plain["print"] is None


def test_frames_under_way_together_all_count_and_those_sent_twice_once(service, frames):
    app = make_app(service, Limits(), Tokens(TOKEN))

    async def send() -> list[dict[str, Any]]:
        transport = httpx.ASGITransport(app)
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://here", headers=headers
        ) as client:
            sent = [
                client.post(
                    "/v1/frames?print=together",
                    content=path.read_bytes(),
                    headers={"x-request-id": path.stem},
                )
                for path in [*frames, *frames]
            ]
            return [reply.json()["print"] for reply in await asyncio.gather(*sent)]

    told = asyncio.run(send())
    nums = [each["frames"] for each in told]
    assert sorted(nums) == sorted(2 * list(range(1, len(frames) + 1)))
    assert told[: len(frames)] == told[len(frames) :]


def test_what_is_no_frame_of_a_print_is_refused_in_a_sentence(ask, service, frames):
    whole = frames[0].read_bytes()

    def refusal(path: str, **fields: Any) -> str:
        reply = ask("POST", path, service, **(fields or {"content": whole}))
        assert reply.status_code == 422, reply.text
        return reply.json()["error"]

    assert refusal("/v1/parts?print=a").startswith("The champion of parts has no alarm over frames")
    for odd in ("", "a b", "a/b", "x" * 65):
        assert "print cannot be used" in refusal(f"/v1/frames?print={odd}")
    assert "give print too" in refusal("/v1/frames?time=4")
    for odd in ("nan", "inf", "soon"):
        assert "time cannot be used" in refusal(f"/v1/frames?print=a&time={odd}")
    files = [("image", (path.name, path.read_bytes())) for path in frames[:2]]
    assert refusal("/v1/frames?print=a", files=files).startswith("2 images were sent as one frame")
    assert ask("POST", "/v1/frames?print=a&time=4.5", service, content=whole).status_code == 200
    assert "4 s, and that of the print's last one 4.5 s" in refusal("/v1/frames?print=a&time=4")
