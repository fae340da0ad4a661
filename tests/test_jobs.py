"""`ray job submit`, as the README writes it, against a cluster begun by `ray start --head`."""

import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
free_ports = runpy.run_path(str(ROOT / "cluster" / "local_autoscaling.py"))["free_ports"]
QUICK = shlex.split(
    "--preset smoke --train.epochs 1 --model.mode random --parts.size-px 256 "
    "--parts.parts-per-seen 3 --patches.image-px 256 --patches.overview-px 64 --patches.patch-px 24"
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is committed, whose version differs from the installed package's."""
    copy = tmp_path_factory.mktemp("job") / "checkout"
    for name in ("tasks", "platform", "cluster"):
        shutil.copytree(
            ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    package = copy / "platform" / "assay" / "__init__.py"
    package.write_text(package.read_text().replace('"0.', '"9.'))
    return copy


@pytest.fixture(scope="module")
def environment(checkout: Path) -> dict[str, str]:
    """What the shell of someone on the cluster's machine holds."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"
    home = checkout.parent / "home"
    home.mkdir()
    return own | {
        "PATH": path,
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "HOME": str(home),
    }


@pytest.fixture(scope="module")
def address(checkout: Path, environment: dict[str, str]) -> Iterator[str]:
    """The dashboard's address of a head started in the checkout, ended by its own process ids."""
    port, dashboard, client = free_ports(3)
    folder = Path("/tmp") / f"assay-ray-{os.getpid()}"  # sockets need short names
    command = (
        f"ray start --head --block --num-cpus=2 --port={port} --dashboard-port={dashboard} "
        f"--ray-client-server-port={client} --dashboard-agent-listen-port=0 --temp-dir={folder}"
    )
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    head = subprocess.Popen(
        command.split(), cwd=checkout, env=environment, start_new_session=True, **silent
    )
    url = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_until_up(url)
        yield url
    finally:
        _end(head, str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_up(url: str) -> None:
    for _ in range(120):
        try:
            with urllib.request.urlopen(f"{url}/api/jobs/", timeout=2):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(1)
    raise AssertionError("the cluster did not come up")


def _end(head: "subprocess.Popen[bytes]", mark: str) -> None:
    """End the head and what it started: its session, and processes that name its folder."""
    head.terminate()
    try:
        head.wait(20)
    except subprocess.TimeoutExpired:
        head.kill()
        head.wait()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                named = mark.encode() in (entry / "cmdline").read_bytes()
                same = os.getsid(int(entry.name)) == head.pid
                if named or same:
                    os.kill(int(entry.name), signal.SIGKILL)
            except (OSError, ProcessLookupError):
                continue


def _submit(address: str, environment: dict[str, str], cwd: Path, *options: str) -> None:
    command = ["ray", "job", "submit", *options, "--", "python", "tasks/fingerprint.py", *QUICK]
    for _ in range(10):
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment | {"RAY_ADDRESS": address},
            capture_output=True,
            text=True,
            timeout=400,
        )
        if "No available agent" not in done.stdout + done.stderr:
            break
        time.sleep(3)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "test_unseen" in done.stdout


def _versions(runs: Path) -> set[str]:
    records = [json.loads(p.read_text()) for p in runs.glob("fingerprint-*/run.json")]
    assert all(r["state"] == "finished" for r in records)
    return {launch["assay"] for r in records for launch in r["launches"]}


def test_a_job_runs_as_written_where_the_cluster_was_begun(
    address: str, environment: dict[str, str], checkout: Path
) -> None:
    _submit(address, environment, checkout)
    assert len(_versions(checkout / "runs")) == 1
    for path in (checkout / "runs").glob("fingerprint-*/metrics.jsonl"):
        assert json.loads(path.read_text().splitlines()[0])["threads"] == 2  # all CPUs of the node


def test_an_uploaded_job_brings_its_own_package_and_keeps_its_runs(
    address: str, environment: dict[str, str], checkout: Path
) -> None:
    shutil.rmtree(checkout / "runs", ignore_errors=True)
    _submit(
        address,
        environment,
        checkout,
        "--working-dir",
        ".",
        "--runtime-env",
        "cluster/runtime_env.yaml",
    )
    assert not (checkout / "runs").exists()
    (version,) = _versions(Path(environment["HOME"]) / "assay" / "runs")
    assert version.startswith("9.")


QUICK_JOB = """
import sys
import assay
import ray

ray.init(log_to_driver=False)
version = ray.remote(lambda: __import__("assay").__version__)
print("driver", assay.__version__, "worker", ray.get(version.remote()), sys.argv[1:])
raise SystemExit(3)
"""


def test_submit_sends_the_package_follows_the_output_and_ends_as_the_job_did(
    address: str, environment: dict[str, str], checkout: Path, tmp_path: Path
) -> None:
    (tmp_path / "quick.py").write_text(QUICK_JOB)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "large.png").write_bytes(bytes(2_000_000))
    own = environment | {"RAY_ADDRESS": address, "PYTHONPATH": str(checkout / "platform")}
    program = "from assay.cli.console import main; main()"
    command = [sys.executable, "-c", program, "submit", "quick.py", "--size", "a b"]
    done = subprocess.run(
        command, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 3, done.stdout + done.stderr
    package = (checkout / "platform" / "assay" / "__init__.py").read_text()
    (version,) = re.findall(r'"(9\.[0-9.]+)"', package)
    assert f"driver {version} worker {version} ['--size', 'a b']" in done.stdout
    sent = re.search(r"([0-9.]+) MB sent: python quick.py --size 'a b'", done.stderr)
    assert sent
    assert float(sent[1]) < 3
