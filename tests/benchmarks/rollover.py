"""Requests under promotions and faults, for serve.py: what of them is answered, and by what."""

import http.client
import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import ray
from asking import serve_processes

from assay.bundle.promotion import promote
from assay.bundle.registry import Registry
from assay.runs import listing
from assay.serve.config import ServeConfig


class Requests:
    """Clients that ask as plain curl does: a connection for each request, and no second try."""

    def __init__(self, port: int, image: bytes, num: int, clients: int = 8) -> None:
        self.port, self.image, self.num = port, image, num
        self.asked: list[tuple[float, str, str]] = []
        """When it ended, its status or what failed, and the version that answered."""
        self.todo, self.lock = iter(range(num)), threading.Lock()
        self.threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def _ask(self) -> None:
        while True:
            with self.lock:
                if next(self.todo, None) is None:
                    return
            status, version = self._one()
            with self.lock:
                self.asked.append((time.monotonic(), status, version))

    def _one(self) -> tuple[str, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", "/v1/fingerprint", self.image, {"content-type": "image/png"})
            reply = connection.getresponse()
            content = json.loads(reply.read())
            return str(reply.status), content.get("model", {}).get("version", "")
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__, ""
        finally:
            connection.close()

    def wait(self, share: float) -> None:
        """Wait until so many of them are asked."""
        while len(self.asked) < share * self.num:
            time.sleep(0.05)

    def first_of(self, version: str, since: float) -> float:
        """Wait for the first answer by a version; return the seconds until then, nan if all were asked before."""
        while any(thread.is_alive() for thread in self.threads):
            with self.lock:
                ends = [end for end, _, by in self.asked if by == version and end > since]
            if ends:
                return ends[0] - since
            time.sleep(0.02)
        return float("nan")


def actors(part: str) -> list[str]:
    """Names of Ray Serve's living actors in which this stands."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return sorted(one["name"] for one in named if part in one["name"])


def rollover(config: ServeConfig, runs: list[Path], image: bytes, num: int) -> str:
    """Ask under two promotions and two killed replicas, then a killed controller, then a killed HAProxy."""
    registry = Registry(config.registry)
    asking = Requests(config.port, image, num)
    faults: dict[str, float] = {}
    lives = []
    for turn, run in enumerate(runs, 1):
        asking.wait(turn / 6)
        faults[f"replica {turn} killed"] = time.monotonic()
        ray.kill(ray.get_actor(actors("::fingerprint#replica")[0], namespace="serve"))
        found = listing.judged(str(run), run.parent)
        began = time.monotonic()
        record = promote(registry, run / "bundle", found.predictions(), "champion", "benchmark")
        lives.append(asking.first_of(record.version, began))
    asking.wait(0.6)
    faults["controller killed"] = time.monotonic()
    ray.kill(ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve"), no_restart=False)
    asking.wait(0.8)
    faults["HAProxy killed"] = time.monotonic()
    for pid, name in serve_processes().items():
        if name == "haproxy":
            os.kill(pid, signal.SIGKILL)
    for thread in asking.threads:
        thread.join()
    counted = Counter(status for _, status, _ in asking.asked)
    failed = [
        f"{status} {end - max(at for at in faults.values() if at <= end):.1f} s after {name}"
        for end, status, _ in asking.asked
        if status != "200" and end > min(faults.values())
        for name in [max((at, name) for name, at in faults.items() if at <= end)[1]]
    ]
    versions = {version for _, _, version in asking.asked if version}
    return (
        f"{num} requests of 8 clients, each once and on a connection of its own, under two promotions, two killed replicas, a killed controller and a killed HAProxy: "
        f"{', '.join(f'{status}: {n}' for status, n in counted.items())}; {len(versions)} versions answered. Failed: {'; '.join(failed[:12]) or 'none'}. "
        f"From the promotion to the first answer by the new bundle: {', '.join(f'{s:.1f} s' for s in lives)}; the registry is looked into every 2 s."
    )
