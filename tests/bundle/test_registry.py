"""The registry: what may become champion, what is remembered, and the way back."""

import hashlib
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from assay.bundle.bundle import Bundle
from assay.bundle.card import read_card
from assay.bundle.promotion import promote, roll_back
from assay.bundle.registry import Registry
from assay.bundle.seal import update
from assay.cli.console import main
from assay.errors import BundleError, ConfigError, PredictionsError, RegistryError
from assay.typed import to_json


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, make_bundle) -> list[Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return [make_bundle(folder / str(i), bias=i) for i in range(3)]


@pytest.fixture
def registry(tmp_path) -> Registry:
    return Registry(str(tmp_path / "registry"))


def champion(registry: Registry) -> str:
    record = registry.holder("parts", "champion")
    return record.run if record else ""


def test_a_promotion_copies_the_bundle_and_says_where_it_comes_from(registry, bundles, judged_rows):
    record = promote(registry, bundles[0], judged_rows(0.9), "champion")
    assert registry.holder("parts", "champion") == record == registry.history("parts")[0]
    card = json.loads((bundles[0] / "bundle.json").read_text())
    assert (record.run, record.data, record.code) == ("parts-0", "d" * 12, {"assay": "0.1.0"})
    assert record.metrics == card["metrics"]
    assert (record.previous, record.reason, record.objections) == ("", "", [])
    opened = Bundle(registry.fetch(record))
    assert to_json(opened.card) == card
    assert registry.fetch(record) != bundles[0]
    assert registry.test_rows(record).num_rows == 60
    assert registry.tasks() == ["parts"]


def test_the_champion_gives_way_unless_the_next_is_significantly_worse(
    registry, bundles, judged_rows
):
    promote(registry, bundles[0], judged_rows(0.9), "champion")
    with pytest.raises(RegistryError, match="significantly worse than the champion") as refused:
        promote(registry, bundles[1], judged_rows(0.5), "champion")
    assert "--force REASON" in str(refused.value)
    assert champion(registry) == "parts-0"
    assert len(registry.history("parts")) == 1
    # a little worse can not be told from equal
    later = promote(registry, bundles[1], judged_rows(0.88), "champion")
    assert champion(registry) == "parts-1"
    assert later.comparisons[0]["verdict"] == "not significantly different"
    forced = promote(registry, bundles[2], judged_rows(0.4), "champion", "the old camera is gone")
    assert forced.reason == "the old camera is gone"
    assert "significantly worse" in forced.objections[0]
    assert champion(registry) == "parts-2"


def test_a_challenger_may_be_worse_and_the_reason_is_not_recorded_where_none_was_needed(
    registry, bundles, judged_rows
):
    promote(registry, bundles[0], judged_rows(0.9), "champion")
    record = promote(registry, bundles[1], judged_rows(0.3), "challenger", "why not")
    assert (record.alias, record.reason, record.objections) == ("challenger", "", [])
    assert "worse" in record.comparisons[0]["verdict"]
    assert champion(registry) == "parts-0"


def test_without_a_judged_test_set_it_is_refused(
    registry, bundles, judged_rows, tmp_path, make_bundle
):
    with pytest.raises(RegistryError, match="no judged test set"):
        promote(registry, bundles[0], judged_rows(0.9, test="extra"), "champion")
    unjudged = make_bundle(tmp_path / "unjudged")
    update(unjudged, metrics={})
    with pytest.raises(RegistryError, match="no judged test set"):
        promote(registry, unjudged, judged_rows(0.9), "challenger")
    assert registry.tasks() == []
    assert promote(registry, unjudged, judged_rows(0.9), "champion", "first try").reason


def test_test_rows_that_cannot_be_judged_are_not_kept(registry, bundles, judged_rows):
    rows = judged_rows(0.9)
    for broken in (pa.concat_tables([rows, rows]), rows.replace_schema_metadata(None)):
        with pytest.raises(PredictionsError):
            promote(registry, bundles[0], broken, "champion", "whatever stands against it")
    assert registry.tasks() == []


def test_other_test_rows_are_no_comparison(registry, bundles, judged_rows):
    promote(registry, bundles[0], judged_rows(0.9), "champion")
    with pytest.raises(RegistryError, match="cannot be compared with the champion"):
        promote(registry, bundles[1], judged_rows(0.9, num=80), "champion")


def test_a_failing_golden_sample_is_refused_whatever_the_reason(
    registry, judged_rows, tmp_path, make_bundle
):
    folder = make_bundle(tmp_path / "off")
    golden = read_card(folder).golden
    moved = {name: value + 0.1 for name, value in golden.probs.items()}
    update(folder, golden=replace(golden, probs=moved))
    with pytest.raises(BundleError, match="golden"):
        promote(registry, folder, judged_rows(0.9), "champion", "I want it")
    assert registry.tasks() == []


@pytest.mark.parametrize("fields", [{"task": "../up"}, {"task": ""}, {"task": "Parts"}])
def test_a_card_cannot_lead_out_of_the_registry(
    registry, judged_rows, tmp_path, make_bundle, fields
):
    folder = make_bundle(tmp_path / "bad")
    update(folder, **fields)
    with pytest.raises(RegistryError, match="task"):
        promote(registry, folder, judged_rows(0.9), "champion", "force")
    assert not Path(registry.address).exists()


def test_rolling_back_goes_back_step_by_step_and_the_history_keeps_all(
    registry, bundles, judged_rows
):
    rows = judged_rows(0.9)
    for i in (0, 1, 1, 0, 2):  # twice the same is no step
        promote(registry, bundles[i], rows, "champion")
    for expected in ("parts-0", "parts-1", "parts-0"):
        assert roll_back(registry, "parts", "champion").run == expected
        assert champion(registry) == expected
    with pytest.raises(RegistryError, match="no earlier champion"):
        roll_back(registry, "parts", "champion")
    kinds = [record.kind for record in registry.history("parts")]
    assert kinds == ["promoted"] * 5 + ["rolled back"] * 3
    promote(registry, bundles[2], rows, "champion")
    assert roll_back(registry, "parts", "champion").run == "parts-0"


def test_a_step_back_to_a_damaged_bundle_is_refused(registry, bundles, judged_rows):
    first = promote(registry, bundles[0], judged_rows(0.9), "champion")
    promote(registry, bundles[1], judged_rows(0.9), "champion")
    (registry.fetch(first) / "classify.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="changed"):
        roll_back(registry, "parts", "champion")
    card = registry.fetch(first) / "bundle.json"
    card.write_text(card.read_text().replace("0.9", "0.8"))
    with pytest.raises(RegistryError, match="missing or was changed"):
        roll_back(registry, "parts", "champion")
    assert champion(registry) == "parts-1"


def test_of_promotions_at_once_one_is_in_force_and_all_are_in_the_history(
    registry, bundles, judged_rows
):
    rows = judged_rows(0.9)
    threads = [
        threading.Thread(target=promote, args=(registry, bundle, rows, "challenger"))
        for bundle in bundles * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = registry.history("parts")
    assert len(history) == 6
    assert {record.run for record in history} == {"parts-0", "parts-1", "parts-2"}
    assert registry.holder("parts", "challenger") in history
    names = [path.name for path in Path(registry.address).rglob("*.json*")]
    assert [name for name in names if not name.endswith(".json")] == []


def test_an_address_is_copied_to_this_machine_once(tmp_path, bundles, judged_rows):
    remote = Registry((tmp_path / "far").as_uri(), tmp_path / "cache")
    # a file system that is not this machine's, as far as the registry can tell
    remote.files = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    remote.root = "far"
    record = promote(remote, bundles[0], judged_rows(0.9), "champion")
    folder = remote.fetch(record)
    assert folder == tmp_path / "cache" / record.sha256 == remote.fetch(record)
    assert Bundle(folder).card.run == "parts-0"
    shutil.rmtree(tmp_path / "far" / "parts" / record.version)
    with pytest.raises(RegistryError, match="missing"):
        remote.fetch(record)


def test_damage_and_bad_addresses_are_named(registry, bundles, judged_rows):
    promote(registry, bundles[0], judged_rows(0.9), "champion")
    alias = Path(registry.address) / "parts" / "champion.json"
    values = json.loads(alias.read_text())
    alias.write_text(json.dumps(values | {"schema": 99}))
    with pytest.raises(RegistryError, match="newer Assay"):
        registry.holder("parts", "champion")
    for text in ("{", "[]", json.dumps({"schema": 1})):
        alias.write_text(text)
        with pytest.raises(RegistryError, match="damaged"):
            registry.holder("parts", "champion")
    with pytest.raises(ConfigError, match="no address"):
        Registry("nowhere://bucket")


def test_the_commands(tmp_path, monkeypatch, capsys, bundles, judged_rows):
    monkeypatch.chdir(tmp_path)
    registry = Registry("registry")
    promote(registry, bundles[0], judged_rows(0.9), "champion")
    promote(registry, bundles[1], judged_rows(0.9), "champion")
    promote(registry, bundles[2], judged_rows(0.4), "champion", "the old camera is gone")
    main(["registry"])
    text = capsys.readouterr().out
    version = registry.holder("parts", "champion").version
    assert f"champion: {version} since" in text
    assert "run parts-2, data dddddddddddd" in text
    assert "accuracy 0.900 [0.800, 0.950], n = 60" in text
    assert text.count("promoted") == 3
    assert "forced: the old camera is gone" in text
    main(["rollback", "parts"])
    assert "is champion again (run parts-1)" in capsys.readouterr().out
    alias = Path("registry/parts/champion.json")
    values = json.loads(alias.read_text())
    alias.write_text(json.dumps(values | {"run": "\x1b]0;owned\x07"}))
    Path("registry/photos").mkdir()
    main(["registry"])
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "photos" not in text
    alias.write_text("{")
    with pytest.raises(SystemExit):
        main(["rollback", "parts"])
    assert "take it away, and promote again if it was an alias" in capsys.readouterr().err
    alias.unlink()  # as told
    promote(registry, bundles[0], judged_rows(0.9), "champion")
    for wrong in (["registry", "--task", "other"], ["rollback", "other"], ["promote", "none"]):
        with pytest.raises(SystemExit) as ended:
            main(wrong)
        assert ended.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def far(tmp_path, bundles, judged_rows) -> Registry:
    """A registry on what is not this machine's file system, with a champion, and its cache."""
    remote = Registry((tmp_path / "far").as_uri(), tmp_path / "home" / "cache")
    remote.files = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    remote.root = "far"
    promote(remote, bundles[0], judged_rows(0.9), "champion")
    return remote


def forge(far: Registry, tmp_path: Path, change: dict, **fields: str) -> None:
    """Change the card of the champion, and its record so that it says so."""
    alias = tmp_path / "far" / "parts" / "champion.json"
    record = json.loads(alias.read_text())
    home = tmp_path / "far" / "parts" / record["version"]
    card = json.loads((home / "bundle" / "bundle.json").read_text())
    card["sha256"] |= change
    text = json.dumps(card)
    (home / "bundle" / "bundle.json").write_text(text)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    home.rename(home.with_name(sha256[:12]))
    alias.write_text(json.dumps(record | {"sha256": sha256, "version": sha256[:12]} | fields))


@pytest.mark.parametrize(
    "name", ["../../escaped.txt", "/escaped.txt", "a/../../../x", "..", "a\\b"]
)
def test_a_registry_writes_nothing_outside_its_cache(far, tmp_path, name):
    (tmp_path / "far" / "parts" / "escaped.txt").write_text("x")
    forge(far, tmp_path, {name: hashlib.sha256(b"x").hexdigest()})
    with pytest.raises(BundleError, match="plain names"):
        far.fetch(far.holder("parts", "champion"))
    assert not list((tmp_path / "home").rglob("*"))


def test_what_comes_from_a_registry_is_what_was_promoted(far, tmp_path, monkeypatch):
    record = far.holder("parts", "champion")
    graph = tmp_path / "far" / "parts" / record.version / "bundle" / "classify.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole + b"x")
    with pytest.raises(RegistryError, match=r"classify\.onnx .* was changed"):
        far.fetch(record)
    graph.unlink()
    with pytest.raises(RegistryError, match="cannot be used"):
        far.fetch(record)
    graph.write_bytes(whole)
    monkeypatch.setattr("assay.bundle.registry.FREE_BYTES", 1 << 60)
    with pytest.raises(RegistryError, match="have no room"):
        far.fetch(record)
    assert not list(far.cache.iterdir())
    monkeypatch.undo()
    assert Bundle(far.fetch(record)).card.run == "parts-0"


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "../up"},
        {"task": "layers"},
        {"alias": "king"},
        {"version": "../../x"},
        {"sha256": "../" * 20},
        {"sha256": 5},
        {"id": "../x"},
        {"previous": "../../layers/history/x"},
        {"time": "now"},
        {"metrics": []},
    ],
)
def test_a_record_that_leads_elsewhere_is_damaged(registry, bundles, judged_rows, fields):
    record = promote(registry, bundles[0], judged_rows(0.9), "champion")
    folder = Path(registry.address) / "parts"
    for path in (folder / "champion.json", folder / "history" / f"{record.id}.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    for read in (registry.holder, lambda task, _: registry.record(task, record.id)):
        with pytest.raises(RegistryError, match="damaged"):
            read("parts", "champion")
    for name in ("../../x", "", "champion"):
        with pytest.raises(RegistryError, match="damaged"):
            registry.record("parts", name)


def test_absurd_sizes_and_depths_are_refused(registry, bundles, judged_rows, monkeypatch):
    record = promote(registry, bundles[0], judged_rows(0.9), "champion")
    path = Path(registry.address) / "parts" / "champion.json"
    path.write_text("[" * 100_000)
    with pytest.raises(RegistryError, match="damaged"):
        registry.holder("parts", "champion")
    monkeypatch.setattr("assay.bundle.registry.MOST_RECORD_BYTES", 1 << 10)
    with pytest.raises(RegistryError, match="larger than"):
        registry.holder("parts", "champion")
    monkeypatch.setattr("assay.bundle.registry.MOST_BYTES", 1 << 10)
    with pytest.raises(RegistryError, match="larger than"):
        registry.fetch(record)
    (path.parent / record.version / "judged.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(RegistryError, match="lost the test rows"):
        registry.test_rows(record)
