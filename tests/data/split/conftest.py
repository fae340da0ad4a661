"""Manifests made by hand, what every split must be."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest

from assay.data.manifest import SPLITS, Manifest
from assay.data.split import draw_split
from assay.data.split_config import SplitConfig
from assay.errors import SplitError

MACHINES = ("m1", "m2", "m3")
DESIGNS = ("Clip", "King", "Oring", "Plug", "Switch", "Target")


@pytest.fixture(scope="session")
def manifest_of():
    """Makes a manifest of dicts; what a row leaves out is its own group, its own file, of no set."""

    def make(rows):
        defaults = [
            {"id": f"{i}", "group": f"{i}", "content": f"{i}", "split": None, "domain.design": "x"}
            | row
            for i, row in enumerate(rows)
        ]
        names = ("id", "label", "group", "split", "domain.design", "content")
        columns = {name: [row[name] for row in defaults] for name in names}
        columns["image"] = [f"/anywhere/{row['id']}" for row in defaults]
        return Manifest(pa.table(columns | {"split": pa.array(columns["split"], pa.string())}))

    return make


@pytest.fixture(scope="session")
def parts():
    """Lists parts as the seed has them: machine x design x part, several views each."""

    def rows(num=3, num_views=2, machines=MACHINES, designs=DESIGNS):
        return [
            {
                "label": machine,
                "domain.design": design,
                "group": f"{machine}/{design}/{part}",
                "id": f"{machine}/{design}/{part}_{view}",
                "content": f"{machine}/{design}/{part}_{view}",
            }
            for machine in machines
            for design in designs
            for part in range(num)
            for view in range(num_views)
        ]

    return rows


@pytest.fixture(scope="session")
def given_parts(parts):
    """Lists parts as the seed's folders give them: the set of a part is up to `level(part)`."""
    return lambda level: [row | {"split": level(int(row["group"][-1]))} for row in parts(num=4)]


@pytest.fixture(scope="session")
def by_design():
    """Makes the config of a rule that holds out two designs."""
    return lambda rule, **values: SplitConfig(
        rule=rule, unseen_domain="design", num_unseen=2, **values
    )


@pytest.fixture(scope="session")
def designs_of():
    """The designs of the rows of a set."""
    return lambda rows, split, name: {rows[i]["domain.design"] for i in split.rows(name)}


@pytest.fixture(scope="session")
def sets_by():
    """The sets that each value of a column is in, dropped rows apart."""

    def collect(manifest, split, column):
        names_of = defaultdict(set)
        for key, name in zip(manifest.column(column), split.sets, strict=True):
            if name != "dropped":
                names_of[key].add(name)
        return names_of

    return collect


@pytest.fixture(scope="session")
def assert_valid(sets_by):
    """Checks what a split must be, whatever it was drawn from."""

    def check(manifest, split, config):
        assert len(split.sets) == len(manifest)
        assert set(split.sets) <= {*SPLITS, "dropped"}
        for column in ("group", "content"):
            crossing = {k: v for k, v in sets_by(manifest, split, column).items() if len(v) > 1}
            assert not crossing
        rows = np.concatenate([split.rows(name) for name in (*SPLITS, "dropped")])
        assert sorted(rows.tolist()) == list(range(len(manifest)))
        labels = np.array(manifest.column("label"))
        for name in {*split.sets} - {"dropped", "test_unseen"}:
            assert set(labels[split.rows(name)]) == set(manifest.classes)
        if config.unseen_domain:
            assert_rule(manifest, split, config.rule)

    def assert_rule(manifest, split, rule):
        together = {
            "training-domain": [{"test_unseen"}, {"train", "val", "test", "test_seen"}],
            "leave-one-domain-out": [{"test_unseen"}, {"val"}, {"train", "test", "test_seen"}],
            "oracle": [{"test_unseen", "val"}, {"train", "test", "test_seen"}],
        }[rule]
        for names in sets_by(manifest, split, "domain.design").values():
            assert any(names <= side for side in together)
        if rule == "leave-one-domain-out":
            assert len({manifest.column("domain.design")[i] for i in split.rows("val")}) == 1
        if rule == "oracle":
            for name in ("test_unseen", "val"):
                assert len(split.rows(name))

    return check


@pytest.fixture(scope="session")
def refusal(sentence_of):
    """The one sentence by which a draw is refused."""
    return lambda manifest, config: sentence_of(SplitError, draw_split, manifest, config)
