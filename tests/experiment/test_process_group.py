"""The interface by which gloo is to talk is the one by which Ray knows the host."""

import os

import pytest
import ray

from assay.experiment.process_group import GLOO, ReachableConfig, choose_interface, interface_of


def test_an_address_has_the_interface_that_bears_it() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.77") is None  # of documentation, and of no host


@pytest.mark.parametrize("named", [None, "eth7"])
def test_the_interface_is_chosen_by_rays_address_unless_it_is_named(
    monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:
    monkeypatch.setenv(GLOO, named or "")
    if named is None:
        monkeypatch.delenv(GLOO)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    choose_interface()
    assert os.environ[GLOO] == (named or "lo")


def test_an_address_that_no_interface_has_leaves_gloo_to_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(GLOO, raising=False)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "203.0.113.77")
    choose_interface()
    assert GLOO not in os.environ


def test_interfaces_are_chosen_before_workers_join(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = ReachableConfig(backend="gloo").backend_cls
    calls: list[str] = []

    class Workers:
        def execute(self, function: object) -> None:
            calls.append(getattr(function, "__name__", ""))

    plain = backend.__mro__[1]
    monkeypatch.setattr(plain, "on_start", lambda *_: calls.append("join"))
    backend().on_start(Workers(), ReachableConfig())
    assert calls == ["choose_interface", "join"]
