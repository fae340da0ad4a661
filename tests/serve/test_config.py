"""What is deployed: the registry in the form of Ray Serve; no server without a token."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from assay.bundle.promotion import promote, roll_back
from assay.bundle.registry import Registry
from assay.cli.console import main
from assay.errors import BundleError, ConfigError, ServeError
from assay.serve.config import ApplicationConfig, ServeConfig, SharedConfig, check_certificate
from assay.serve.deployment import configuration
from assay.serve.edits import changes


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
    assert (user_config["batch"], user_config["queue"]) == (4, 9)
    assert (layers["route_prefix"], parts["route_prefix"]) == ("/v1/layers", "/v1/parts")
    assert json.loads(json.dumps(wanted)) == wanted
    assert not any(word in json.dumps(wanted).lower() for word in ("bearer", "secret"))


def test_a_promotion_changes_nothing_but_what_replicas_are_told(tmp_path, make_bundle, judged_rows):
    registry = Registry(str(tmp_path / "registry"))
    promote(registry, make_bundle(tmp_path / "a"), judged_rows(0.9), "champion")
    config = ServeConfig(registry=registry.address)
    before = configuration(config)
    (parts,) = before["applications"][1]["deployments"]
    parts["health_check_period_s"] = 3  # by hand, in the file
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


def test_an_address_is_one(tmp_path, capsys, monkeypatch):
    with pytest.raises(ConfigError, match="every address of this machine"):
        ServeConfig(host=" ")
    monkeypatch.setenv("ASSAY_TOKEN", "x1")
    for words, said in (
        (["--host", "999.1.1.1"], "host is 999.1.1.1, which is no address"),
        (["--wait-s", "-1"], "wait-s is -1.0; it must be"),
        (["--wait-s", "nan"], "wait-s is nan; it must be"),
        (["--registry", "s3:/bucket"], "an URI has two slashes"),
    ):
        with pytest.raises(SystemExit):
            main(["serve", "--file", str(tmp_path / "serve.yaml"), *words])
        assert said in capsys.readouterr().err


def test_certificate_and_key_belong_together(tmp_path):
    with pytest.raises(ConfigError, match="give both"):
        ServeConfig(tls_cert=tmp_path / "cert.pem")
    config = ServeConfig(tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem", host="::1")
    assert config.address == "https://[::1]:8000"
    for content in (None, "no certificate"):
        if content:
            (tmp_path / "cert.pem").write_text(content)
        with pytest.raises(ServeError, match="cannot be used"):
            check_certificate(config)


def test_tasks_that_share_replicas_have_one_application_whatever_is_promoted(registry):
    config = ServeConfig(registry=registry.address, shared=SharedConfig(tasks=("la*", "other")))
    before = configuration(config)
    assert names(before) == ["front", "shared-tasks", "parts"]
    front, shared, parts = before["applications"]
    of_front = front["deployments"][0]["user_config"]
    assert (of_front["tasks"], of_front["shared"]) == (["layers", "parts"], ["layers"])
    assert (shared["route_prefix"], parts["route_prefix"]) == ("/v1", "/v1/parts")
    told = shared["deployments"][0]["user_config"]
    champion = registry.holder("layers", "champion").id
    assert told["tasks"] == {"layers": {"champion": champion, "challenger": ""}}
    assert (told["others"], told["most_open"]) == (["parts"], 16)
    assert json.loads(json.dumps(before)) == before
    told["queue"] = shared["deployments"][0]["health_check_period_s"] = 3  # by hand, in the file
    after = configuration(config, before["applications"])
    assert after == before
    every = replace(config, shared=SharedConfig(tasks=("*",), most_open=2))
    together = configuration(every, before["applications"])
    assert names(together) == ["front", "shared-tasks"]
    now = together["applications"][1]["deployments"][0]["user_config"]
    assert (list(now["tasks"]), now["others"], now["most_open"]) == (["layers", "parts"], [], 2)
    assert now["queue"] == 3
    assert list(changes(before["applications"], together["applications"])) == [
        "front: shared.tasks was ['la*', 'other'], is ['*']",
        "front: shared.most_open was 16, is 2",
        "shared-tasks: user_config.most_open was 16, is 2",
        "parts shares replicas now",
    ]
    apart = configuration(ServeConfig(registry=registry.address), together["applications"])
    assert apart == configuration(ServeConfig(registry=registry.address))


def test_a_task_that_moves_keeps_what_answers_where_the_next_does_not_open(
    following, tmp_path, make_bundle, judged_rows
):
    registry, _, refused = following
    config = ServeConfig(registry=registry.address)
    shared = replace(config, shared=SharedConfig(tasks=("*",)))
    apart = configuration(config)
    first = registry.holder("parts", "champion").id
    bundle = make_bundle(tmp_path / "c", bias=1.0)
    record = promote(registry, bundle, judged_rows(0.9), "champion")
    (registry.fetch(record) / "classify.onnx").write_bytes(b"no graph")
    together = configuration(shared, apart["applications"], refused=refused)
    assert refused["parts", "champion"].record == record.id
    told = together["applications"][1]["deployments"][0]["user_config"]
    assert told["tasks"]["parts"]["champion"] == first
    again = configuration(config, together["applications"], refused=refused)
    assert again["applications"][2]["deployments"][0]["user_config"]["champion"] == first


def test_a_name_that_is_to_share_replicas_and_is_of_no_task_is_refused(registry, tmp_path, capsys):
    for name, why in (("README.md", "is no task's name"), ("prats", "there are: layers, parts")):
        words = ["--registry", registry.address, "--file", str(tmp_path / "serve.yaml"), "--open"]
        with pytest.raises(SystemExit) as ended:
            main(["serve", *words, "--shared.tasks", "layers", name])
        assert ended.value.code == 2
        told = capsys.readouterr().err
        assert f"shared.tasks has {name!r}" in told
        assert why in told
        assert not (tmp_path / "serve.yaml").exists()


@pytest.fixture
def following(tmp_path, make_bundle, judged_rows):
    """A registry with a champion, what follows it, and what is not followed."""
    registry = Registry(str(tmp_path / "registry"))
    promote(registry, make_bundle(tmp_path / "a"), judged_rows(0.9), "champion")
    promote(registry, make_bundle(tmp_path / "b", "layers"), judged_rows(0.9), "champion")
    config, refused, deployed = ServeConfig(registry=registry.address), {}, []

    def follow() -> dict:
        deployed[:] = configuration(config, deployed, refused=refused)["applications"]
        return {app["name"]: app["deployments"][0]["user_config"] for app in deployed}

    return registry, follow, refused


def test_a_bundle_that_does_not_open_is_not_followed_whatever_is_wrong_with_it(
    following, tmp_path, make_bundle, judged_rows, monkeypatch, caplog
):
    registry, follow, refused = following
    before = follow()
    promoted = promote(
        registry, make_bundle(tmp_path / "c", bias=1.0), judged_rows(0.9), "champion"
    )
    card = registry.fetch(promoted) / "bundle.json"
    (registry.fetch(promoted) / "classify.onnx").write_bytes(b"no graph")
    assert follow() == before
    assert refused["parts", "champion"].record == promoted.id
    # a card without hashes, with a record that says it is so
    text = card.read_text().replace('"sha256"', '"nothing"')
    card.write_text(text)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    other = f"{int(promoted.id[:18]) + 1:018d}-{'a' * 8}"
    record = replace(promoted, sha256=sha256, version=sha256[:12], id=other)
    card.parent.parent.rename(Path(registry.address) / "parts" / record.version)
    registry.point(record)
    assert follow() == before
    assert "hash" in refused["parts", "champion"].why
    tried = []
    monkeypatch.setattr("assay.serve.deployment.try_bundle", lambda *a: tried.append(a))
    assert follow() == before
    assert tried == []  # not so soon again
    back = roll_back(registry, "parts", "champion")
    assert follow()["parts"]["champion"] == back.id
    assert refused == {}
    assert len([line for line in caplog.messages if "is not followed" in line]) == 2


def test_a_bundle_that_takes_long_to_fail_holds_others_up_a_small_part_of_the_time(
    following, tmp_path, make_bundle, judged_rows, monkeypatch
):
    registry, follow, _ = following
    before, clock, tried = follow(), [1e9], []
    monkeypatch.setattr("assay.serve.deployment.time.time", lambda: clock[0])

    def hang(folder: Path, *_: object) -> None:
        tried.append(clock[0])
        clock[0] += 300
        raise BundleError("It does not open within 300 s.")

    monkeypatch.setattr("assay.serve.deployment.try_bundle", hang)
    promote(registry, make_bundle(tmp_path / "c", bias=1.0), judged_rows(0.9), "champion")
    for _ in range(2000):
        assert follow() == before
        clock[0] += 10
    spent = 300 * len(tried)
    assert len(tried) > 1
    assert spent < 0.1 * (clock[0] - 1e9)


def test_one_bad_entry_of_a_registry_stops_no_other(following, caplog):
    registry, follow, refused = following
    folder = Path(registry.address)
    before = follow()
    shutil.copytree(folder / "parts", folder / "front")
    shutil.copytree(folder / "parts", folder / "Other")
    shutil.copytree(folder / "parts", folder / "copied")  # its records are of another task
    (folder / "parts" / "champion.json").write_text("[" * 100_000)
    assert follow() == before
    assert set(refused) == {("front", ""), ("copied", "champion"), ("parts", "champion")}
    assert follow() == before
    assert len([line for line in caplog.messages if "is not followed" in line]) == 3
