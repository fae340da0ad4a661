"""What is deployed: the registry in the form of Ray Serve; no server without a token."""

import json
from pathlib import Path

import pytest

from assay.bundle.promotion import promote
from assay.bundle.registry import Registry
from assay.cli.console import main
from assay.errors import ConfigError, ServeError
from assay.serve.config import ApplicationConfig, ServeConfig, read_token
from assay.serve.deployment import configuration


def names(wanted: dict) -> list[str]:
    return [app["name"] for app in wanted["applications"]]


def test_each_task_has_an_application_of_its_own(registry):
    config = ServeConfig(registry=registry.address, app=ApplicationConfig(batch=4, queue=9))
    wanted = configuration(config)
    assert names(wanted) == ["front", "layers", "parts"]
    front, layers, parts = wanted["applications"]
    assert front["route_prefix"] == "/"
    assert front["deployments"][0]["user_config"]["tasks"] == ["layers", "parts"]
    records = {alias: registry.holder("parts", alias).id for alias in ("champion", "challenger")}
    user_config = parts["deployments"][0]["user_config"]
    assert records.items() <= user_config.items()
    assert layers["deployments"][0]["user_config"]["challenger"] == ""
    assert (user_config["batch"], parts["deployments"][0]["max_queued_requests"]) == (4, 9)
    assert parts["route_prefix"] is None
    assert json.loads(json.dumps(wanted)) == wanted
    assert not any(word in json.dumps(wanted).lower() for word in ("bearer", "secret"))


def test_a_promotion_changes_nothing_but_what_replicas_are_told(tmp_path, make_bundle, judged_rows):
    registry = Registry(str(tmp_path / "registry"))
    promote(registry, make_bundle(tmp_path / "a"), judged_rows(0.9), "champion")
    config = ServeConfig(registry=registry.address)
    before = configuration(config)
    (parts,) = before["applications"][1]["deployments"]
    parts["max_queued_requests"] = 3  # by hand, in the file
    record = promote(registry, make_bundle(tmp_path / "b", bias=1.0), judged_rows(0.9), "champion")
    after = configuration(config, before["applications"])
    (promoted,) = after["applications"][1]["deployments"]
    assert promoted["user_config"]["champion"] == record.id
    promoted["user_config"] = parts["user_config"]
    assert after == before
    promote(registry, make_bundle(tmp_path / "c", "layers"), judged_rows(0.9), "champion")
    assert names(configuration(config, before["applications"])) == ["front", "layers", "parts"]


def test_an_empty_registry_is_refused_and_an_open_door_to_the_network_too(tmp_path, capsys):
    with pytest.raises(ServeError, match="assay promote"):
        configuration(ServeConfig(registry=str(tmp_path)))
    for host in ("0.0.0.0", "192.0.2.1", "::"):
        with pytest.raises(ConfigError, match="let in"):
            ServeConfig(host=host, open=True)
    assert ServeConfig(host="127.0.0.1", open=True).open
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--registry", str(tmp_path), "--file", str(tmp_path / "serve.yaml")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    for wrong in ({"min_replicas": 0}, {"min_replicas": 3}, {"batch": 0}, {"queue": 0}):
        with pytest.raises(ConfigError, match="app"):
            ApplicationConfig(**wrong)


def test_the_token_comes_from_the_environment_or_a_file_of_its_owner(tmp_path, monkeypatch):
    monkeypatch.delenv("ASSAY_TOKEN", raising=False)
    path = tmp_path / "deep" / "token"
    config = ServeConfig(token_file=path)
    with pytest.raises(ServeError, match="no token"):
        read_token(config)
    written = read_token(config, create=True)
    assert written == read_token(config) == path.read_text()
    assert len(written) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("ASSAY_TOKEN", "other")
    assert read_token(config) == "other"
    monkeypatch.delenv("ASSAY_TOKEN")
    path.chmod(0o644)
    with pytest.raises(ServeError, match="chmod 600"):
        read_token(config)
    path.chmod(0o600)
    for blank in ("\n", "", "  \n"):
        path.write_text(blank)
        with pytest.raises(ServeError, match="empty"):
            read_token(config)
        monkeypatch.setenv("ASSAY_TOKEN", blank)
        with pytest.raises(ServeError, match="ASSAY_TOKEN is empty"):
            read_token(config)
        monkeypatch.delenv("ASSAY_TOKEN")
    for odd in ("two words", " before", "t\u00e4", "a\tb", "a\nb"):
        path.write_text(odd + "\n")
        with pytest.raises(ServeError, match="one word"):
            read_token(config)
    assert read_token(ServeConfig(open=True, token_file=Path("/none"))) is None
