"""Frames of a print that are sent one by one, and the state of its alarms between them.

All states are held by one process, the server's front, which has one replica: HAProxy gives two frames
of a print to any two replicas of a task, so that none of these could know the sum so far. A replica looks at
the image and tells the front a single number; the front's one thread takes these in turn, so that no frame
of several under way together is lost. Hashing print ids to replicas would move prints whenever replicas
come or go, and a process of its own would have to be watched over as the front is already. What is
held is in memory: if the front dies or is deployed anew, prints begin anew, and the answer's number of frames
says so. Another version of a bundle has states of its own, as its threshold is of its own logits.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from assay.errors import ConfigError
from assay.metrics.alarm import Alarm, AlarmState

REPEATED = 64
"""Last frames of a print that are known again by their request's id."""


@dataclass(frozen=True)
class Frame:
    """What a request says of the frame that it brings."""

    print_id: str
    request: str
    """Id of the request, the same when it is sent again."""
    seconds: float | None = None
    """When it was taken, of whatever beginning."""


@dataclass
class _Print:
    """A print between two frames."""

    states: list[AlarmState]
    rang: list[float | None]
    """Time of the frame at which each alarm rang first, where it had one."""
    met: float = 0.0
    """When its last frame came, by the clock of this process."""
    seconds: float | None = None
    """Time of its last frame that had one."""
    answers: OrderedDict[str, dict[str, Any]] = field(default_factory=OrderedDict)
    """What was said of the last frames, by request."""


class PrintStates:
    """The alarms of several prints, as far as their frames have come.

    Args:
        most: prints that are held; the longest unused goes.
        expires_s: seconds after its last frame at which a print is forgotten.
        clock: tells the seconds.
    """

    def __init__(
        self, most: int, expires_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.most, self.expires_s, self.clock = most, expires_s, clock
        self.prints: OrderedDict[tuple[str, ...], _Print] = OrderedDict()
        """The longest unused first."""

    def advance(
        self, model: Sequence[str], frame: Frame, alarms: Sequence[Alarm], logit: float
    ) -> dict[str, Any]:
        """Take a frame into its print, unless it was; return what the print's alarms say, or `status` and `error`.

        Args:
            model: what answered: prints of another task, version or variant have states of their own.
            frame: which of the prints, and when.
            alarms: of the model's bundle.
            logit: of the fault in the frame.
        """
        now, key = self.clock(), (*model, frame.print_id)
        while self.prints and next(iter(self.prints.values())).met + self.expires_s < now:
            self.prints.popitem(last=False)
        each = self.prints.setdefault(
            key, _Print([AlarmState() for _ in alarms], [None for _ in alarms])
        )
        each.met = now
        self.prints.move_to_end(key)
        if len(self.prints) > self.most:
            self.prints.popitem(last=False)
        if frame.request in each.answers:
            return each.answers[frame.request]
        seconds, last = frame.seconds, each.seconds
        if seconds is not None and last is not None and seconds <= last:
            text = f"The frame's time is {seconds:.13g} s, and that of the print's last one {last:.13g} s; send the frames of a print in order of time, or leave the time out."
            return {"status": 422, "error": text}
        return _take(each, frame, alarms, logit)


def _take(each: _Print, frame: Frame, alarms: Sequence[Alarm], logit: float) -> dict[str, Any]:
    """Take a new frame into its print; return what is answered."""
    try:
        states = [a.advance(s, logit) for a, s in zip(alarms, each.states, strict=True)]
    except ConfigError as error:
        return {"status": 422, "error": str(error)}
    pairs = zip(states, each.states, each.rang, strict=True)
    each.rang = [frame.seconds if now.first != was.first else at for now, was, at in pairs]
    each.states = states
    each.seconds = each.seconds if frame.seconds is None else frame.seconds
    told = [
        {
            "kind": alarm.kind,
            "value": state.value if state.value > -float("inf") else None,
            "threshold": alarm.threshold,
            "rings": state.first is not None,
            "first_frame": None if state.first is None else state.first + 1,
            "first_time": rang,
        }
        for alarm, state, rang in zip(alarms, states, each.rang, strict=True)
    ]
    answer = {"id": frame.print_id, "frames": states[0].num, "alarms": told}
    each.answers[frame.request] = answer
    if len(each.answers) > REPEATED:
        each.answers.popitem(last=False)
    return answer
