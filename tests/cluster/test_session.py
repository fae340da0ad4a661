"""Ray that is late, or that cannot be reached, is tried again, and then said in a sentence."""

import os

import pytest
import ray

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
