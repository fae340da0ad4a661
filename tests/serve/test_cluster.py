"""Through Ray Serve: answers, promotions under load, replicas that die, a queue that is full."""

import json
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import yaml

from assay.bundle.bundle import Bundle
from assay.bundle.promotion import promote, roll_back
from assay.bundle.registry import Registry
from assay.data.images.decode import write_png
from assay.serve import cluster
from assay.serve.client import Client
from assay.serve.config import ApplicationConfig, ServeConfig, configuration, read_token


@pytest.fixture(scope="module")
def place(tmp_path_factory, make_bundle, judged_rows) -> Registry:
    folder = tmp_path_factory.mktemp("cluster")
    found = Registry(str(folder / "registry"))
    for i, bias in enumerate((0.0, 2.0)):
        promote(found, make_bundle(folder / str(i), bias=bias), judged_rows(0.9), "champion")
    return found


@pytest.fixture(scope="module")
def served(place, tmp_path_factory) -> Iterator[ServeConfig]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = ServeConfig(
        registry=place.address, port=port, token_file=tmp_path_factory.mktemp("token") / "token",
        app=ApplicationConfig(cpus=0.1, batch=2, queue=8, min_replicas=2),
    )  # fmt: skip
    with cluster.cluster(config):
        cluster.deploy(configuration(config))
        cluster.wait()
        yield config


@pytest.fixture
def client(served) -> Client:
    return Client(f"http://127.0.0.1:{served.port}", read_token(served) or "")


def versions(place: Registry) -> dict[str, Bundle]:
    return {r.version: Bundle(place.fetch(r)) for r in place.history("parts")}


class Load:
    """Clients that ask without pause until the block ends; every answer is kept."""

    def __init__(self, client: Client, pictures: list[Path], clients: int = 4) -> None:
        self.client, self.pictures = client, pictures
        self.answers: list[tuple[int, Any]] = []
        self.failures: list[Exception] = []
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(clients)]

    def _ask(self, turn: int) -> None:
        while not self.ended.is_set():
            turn += 1
            picture = turn % len(self.pictures)
            try:
                self.answers.append((picture, self.client.judge("parts", self.pictures[picture])))
            except Exception as error:
                self.failures.append(error)

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join()


def are_by_the_bundle_they_name(
    answers: list[Any], bundles: dict[str, Bundle], pictures: Any
) -> Counter:
    """Counts of versions, after each answer was repeated by the version that it names."""
    expected = {v: [b.predict(p).probs for p in pictures] for v, b in bundles.items()}
    for picture, reply in answers:
        own = expected[reply.model.version][picture]
        assert reply.answer.probs == pytest.approx(own, abs=1e-6)
    return Counter(reply.model.version for _, reply in answers)


def test_answers_are_the_bundles_and_the_port_asks_for_the_token(client, place, pictures, served):
    opened = Bundle(place.fetch(place.holder("parts", "champion")))
    views = [opened.predict(path) for path in pictures]
    for path, expected in zip(pictures, views, strict=True):
        reply = client.judge("parts", path)
        assert reply.answer.probs == pytest.approx(expected.probs, abs=1e-6)
    together = client.judge("parts", *pictures)
    assert together.answer.probs == pytest.approx(opened.together(views).probs, abs=1e-6)
    models = client.models()
    assert models["parts"]["champion"]["version"] == place.holder("parts", "champion").version
    for token in ("", "wrong"):
        request = urllib.request.Request(
            f"{client.address}/v1/models", headers={"authorization": f"Bearer {token}"}
        )
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request, timeout=10)
    assert os.stat(served.token_file).st_mode & 0o777 == 0o600
    assert (Path.home() / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_a_promotion_under_load_fails_no_request(client, place, pictures):
    bundles = versions(place)
    new, old = place.holder("parts", "champion").version, None
    with Load(client, pictures) as load:
        time.sleep(0.5)
        old = roll_back(place, "parts", "champion").version
        began = time.monotonic()
        while client.models()["parts"]["champion"]["version"] != old:
            assert time.monotonic() - began < 30
            time.sleep(0.2)
        time.sleep(1.0)
    assert load.failures == []
    counted = are_by_the_bundle_they_name(load.answers, bundles, pictures)
    assert set(counted) == {new, old}
    last = [reply.model.version for _, reply in load.answers[-4:]]
    assert last == [old] * 4


def test_a_replica_that_is_killed_under_load_loses_no_request(client, place, pictures):
    bundles = versions(place)
    with Load(client, pictures) as load:
        time.sleep(0.3)
        named = ray.util.list_named_actors(all_namespaces=True)
        replicas = [one["name"] for one in named if "::parts#replica" in one["name"]]
        assert len(replicas) == 2, named
        ray.kill(ray.get_actor(replicas[0], namespace="serve"))
        time.sleep(2.0)
    assert load.failures == []
    assert len(load.answers) > 20
    are_by_the_bundle_they_name(load.answers, bundles, pictures)


def test_a_full_queue_says_when_to_come_again(client, tmp_path):
    large = tmp_path / "large.png"
    noise = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), dtype=np.uint8)
    write_png(large, noise)
    impatient = Client(client.address, client.token, retries=0)
    found: list[str] = []

    def ask() -> None:
        request = urllib.request.Request(
            f"{impatient.address}/v1/parts", large.read_bytes(),
            {"authorization": f"Bearer {impatient.token}", "content-type": "image/png"}, method="POST",
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                found.append(str(reply.status))
        except urllib.error.HTTPError as error:
            found.append(f"{error.code} {error.headers['retry-after']}")

    threads = [threading.Thread(target=ask) for _ in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = Counter(found)
    assert set(counted) == {"200", "429 1"}, counted
    assert counted["200"] >= 8


def scraped() -> str:
    text = ""
    for node in ray.nodes():
        place = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(place, timeout=10) as reply:
            text += reply.read().decode()
    return text


def test_prometheus_is_told(client, pictures):
    for path in pictures * 25:
        client.judge("parts", path)
    wanted = {
        'ray_assay_requests_total{(?=.*status="200").*task="parts"': 40.0, "ray_assay_request_seconds_bucket": 1.0,
        "ray_assay_batch_images_count": 1.0, 'ray_assay_answers_total.*label="m1"': 1.0, 'ray_assay_drift{(?=.*of="val")': 0.5, 'ray_assay_drift{(?=.*of="requests")': 0.01,
    }  # fmt: skip
    end = time.monotonic() + 30
    while wanted and time.monotonic() < end:
        text = scraped()
        for name, least in list(wanted.items()):
            found = re.findall(rf"^{name}.*\}} ([0-9.e+-]+)$", text, re.MULTILINE)
            if found and max(map(float, found)) >= least:
                del wanted[name]
        time.sleep(0.5)
    assert not wanted


BOARDS = Path(__file__).parents[2] / "dashboards"


def test_board_and_alerts_ask_for_what_prometheus_is_told(client, tmp_path):
    board = json.loads((BOARDS / "serving.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    (group,) = yaml.safe_load((BOARDS / "alerts.yaml").read_text())["groups"]
    asked += [rule["expr"] for rule in group["rules"]]
    wanted = {
        (name, label)
        for expr in asked
        for name, chosen in re.findall(r"(ray_\w+)(?:\{([^}]*)\})?", expr)
        for label in ["WorkerId", *re.findall(r"(\w+)=", chosen)]
    }
    assert len(wanted) > 12
    torn, even = np.zeros((2, 64, 64, 3), np.uint8)
    # as likely to be m1, by the bias of one bundle, as m2
    torn[:, :32, 0] = torn[:20, :20, 1] = 200
    even[:, :32, :2] = 200  # the same, of the bundle without a bias
    write_png(tmp_path / "torn.png", torn)
    write_png(tmp_path / "even.png", even)
    rejected = [
        client.judge("parts", tmp_path / name).answer.rejected
        for name in ("torn.png", "even.png") * 50  # each replica has answers enough for drift
    ]
    assert sum(rejected) == 50
    told: dict[str, str] = {}
    end = time.monotonic() + 30
    while time.monotonic() < end:
        told |= dict(re.findall(r"^(ray_\w+)\{(.*)\} ", scraped(), re.MULTILINE))
        missing = {
            (n, label) for n, label in wanted if n not in told or f'{label}="' not in told[n]
        }
        if not missing:
            break
        time.sleep(0.5)
    assert not missing
