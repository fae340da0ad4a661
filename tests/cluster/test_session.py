"""Ray that is late, or that cannot be reached, is tried again, and then said in a sentence."""

import os
import socket
import subprocess
import sys

import pytest
import ray
from ray.exceptions import ActorUnavailableError, RayTaskError

from assay.cluster import session
from assay.cluster.session import PATIENT, ray_session
from assay.errors import ResourceError


def start(monkeypatch: pytest.MonkeyPatch, faults: list[Exception]) -> list[str]:
    """Enter a session whose first starts fail; returns what each start was given to wait."""
    waits: list[str] = []

    def init(**options: object) -> None:
        waits.append(os.environ[next(iter(PATIENT))])
        if faults:
            raise faults.pop(0)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for name in (*PATIENT, "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", "")
    with ray_session():
        pass
    return waits


def test_ray_is_given_time_and_a_second_try(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    late = Exception("The current node timed out during startup.\nThis could happen")
    assert start(monkeypatch, [late]) == [*PATIENT.values()] * 2
    assert capsys.readouterr().err.splitlines() == [
        "Ray did not start (The current node timed out during startup. This could happen); trying again."
    ]
    with pytest.raises(ResourceError, match=r"2 tries \(late\); end other programs"):
        start(monkeypatch, [Exception("late")] * 2)


def test_a_cluster_that_cannot_be_reached_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: (_ for _ in ()).throw(ConnectionError()))
    monkeypatch.setenv("RAY_ADDRESS", "nowhere:6379")
    with (
        pytest.raises(ResourceError, match=r"\(ConnectionError\); see that the cluster"),
        ray_session(),
    ):
        pass


WATCHES = """
import socket, sys, threading, time
from assay.cluster import session

def cluster_at(address):
    with socket.create_connection(("127.0.0.1", int(address)), 5) as head:
        return head.recv(10)

session.LOOK_S, session._cluster_at = 0.05, cluster_at
threading.Thread(target=session._watch, args=(sys.argv[1], threading.Event()), daemon=True).start()
time.sleep(100)
"""


@pytest.mark.parametrize("is_begun_again", [False, True])
def test_a_head_that_is_gone_ends_a_command_with_a_sentence_whatever_it_waits_for(
    is_begun_again: bool,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        words = [sys.executable, "-c", WATCHES, str(head.getsockname()[1])]
        with subprocess.Popen(words, stderr=-1, text=True) as command:

            def answer(name: bytes) -> None:
                with head.accept()[0] as caller:
                    caller.send(name)

            for _ in range(3):
                answer(b"first")  # it looks again and again
            assert command.poll() is None
            if is_begun_again:
                answer(b"second")
            else:
                head.close()
            _, told = command.communicate(timeout=60)
    assert command.returncode == 2
    assert told.startswith("ResourceError: The head of the cluster at ")
    assert len(told.splitlines()) == 1


def test_what_is_lost_is_a_sentence_and_what_a_task_raised_is_not() -> None:
    words = r"ActorUnavailableError.*same command"
    with pytest.raises(ResourceError, match=words), session._losses():
        raise ActorUnavailableError("it is gone", None)
    with pytest.raises(RayTaskError), session._losses():
        raise RayTaskError("look", "Traceback", KeyError("loss"))
