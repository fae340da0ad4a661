"""`assay serve` on a cluster whose nodes have another Assay: what is served is the package that runs the command."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from assay.bundle.promotion import promote
from assay.bundle.registry import Registry

NODES = runpy.run_path(str(Path(__file__).parents[1] / "chaos" / "nodes.py"))
IMAGE = cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))[1].tobytes()


def ask(port: int, **headers: str) -> str | int:
    """Return the version that answered, or a refusal's status."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/parts", data=IMAGE, headers=headers
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)["model"]["version"]
    except urllib.error.HTTPError as error:
        return error.code


def kill_replicas(session: int) -> int:
    num = 0
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            name = (entry / "cmdline").read_bytes()
            if os.getsid(int(entry.name)) == session and name.startswith(
                b"ray::ServeReplica:parts"
            ):
                os.kill(int(entry.name), signal.SIGKILL)
                num += 1
    return num


def test_the_package_reaches_the_cluster_and_outlives_the_command(
    tmp_path, make_bundle, judged_rows
) -> None:
    other = tmp_path / "other" / "assay"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text('__version__ = "0.0.1"')
    registry = Registry(str(tmp_path / "registry"))
    version = promote(registry, make_bundle(tmp_path / "b"), judged_rows(0.9), "champion").version
    port = NODES["free_ports"](9)[8]
    words = f"serve --registry {registry.address} --port {port} --open --app.cpus 0.1".split()
    with NODES["cluster"]() as nodes:
        ours = nodes.environment | {"HOME": str(tmp_path)}
        nodes.environment["PYTHONPATH"] = str(other.parent)
        nodes.start("head", 2)
        command = [str(Path(sys.executable).with_name("assay")), *words]
        done = subprocess.run(
            command, env=ours, cwd=tmp_path, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stderr
        assert ask(port) == version
        assert ask(port, long="a" * 40_000) == 431  # our bounds on what proxies take
        assert kill_replicas(nodes.running["head"].pid) == 1
        end = time.monotonic() + 120
        while True:  # another one has the package too, though the command has ended
            with suppress(OSError):
                if ask(port) == version:
                    break
            assert time.monotonic() < end
            time.sleep(1)
    assert "runtime_env" not in (tmp_path / "cluster" / "serve.yaml").read_text()
