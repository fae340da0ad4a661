"""The command that sends a task or a sweep to a cluster and follows it: `assay submit TASK ...`.

What is sent is small: this package, and code and settings below the present folder. Images, runs,
stores and registries stay; the cluster reads them where all its nodes do.
"""

import argparse
import asyncio
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import assay
from assay.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

SENT = {".py", ".yaml", ".yml", ".toml", ".json", ".txt", ".md"}
"""Endings of what is sent: code, settings, spaces of sweeps."""

KEPT = {"runs", "stores", "registry", "wandb", "build", "dist", "node_modules", "__pycache__"}
"""Folders that stay, beside hidden ones."""

MOST_BYTES = 100 * 1024**2
"""What Ray's job server takes in one request."""

AGENT_S = 60.0
"""Seconds to wait for a cluster that has just begun to take jobs."""

LOST_S = 300.0
"""Seconds without an answer until a job is no longer followed."""

POLL_S = 2.0


def submit(words: Sequence[str]) -> None:
    """Run the command; exits with the code of what was run.

    Raises:
        ConfigError: the task is not below this folder, or too much would be sent.
        ResourceError: no cluster answers, or it takes no job.
    """
    parser = argparse.ArgumentParser(prog="assay submit", description=submit.__doc__)
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_ADDRESS", "http://127.0.0.1:8265"),
        help="of the cluster's dashboard; else RAY_ADDRESS",
    )
    parser.add_argument("--no-wait", action="store_true", help="send it, and do not follow it")
    parser.add_argument("task", type=Path, help="the task's or sweep's file")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="its own options")
    chosen = parser.parse_args(words)
    _use_token()
    from ray.job_submission import JobStatus  # takes a second

    with tempfile.TemporaryDirectory() as folder:
        size = stage(Path.cwd(), chosen.task, Path(folder))
        client = _reach(chosen.address)
        entrypoint = shlex.join(["python", chosen.task.as_posix(), *chosen.options])
        job = _send(client, entrypoint, folder)
    print(f"{job} at {chosen.address}, {size / 1e6:.1f} MB sent: {entrypoint}", file=sys.stderr)
    if chosen.no_wait:
        print(f"follow it by: ray job logs --follow {job}", file=sys.stderr)
        return
    try:
        status = asyncio.run(_follow(client, job))
    except KeyboardInterrupt:
        print(f"{job} goes on; ray job stop {job} ends it.", file=sys.stderr)
        raise
    info = client.get_job_info(job)
    if status != JobStatus.SUCCEEDED:
        print(f"{job} {status.value.lower()}: {info.message}", file=sys.stderr)
        raise SystemExit(info.driver_exit_code or 1)


def stage(root: Path, task: Path, folder: Path) -> int:
    """Copy what is sent into a folder; returns its bytes.

    Raises:
        ConfigError: the task is no file below `root`, or there is more than Ray takes.
    """
    path = (root / task).resolve()
    if not path.is_file() or not path.is_relative_to(root.resolve()):
        raise ConfigError(
            f"{task} is no file below {root}, and only what is below is sent; go to its folder, and name it from there."
        )
    if task.is_absolute():
        raise ConfigError(f"{task} is absolute; name it as seen from {root}.")
    sizes: Counter[str] = Counter()
    for file in files_of(root):
        sizes[file.relative_to(root).parts[0]] += file.stat().st_size
        if sizes.total() > MOST_BYTES:
            most, num = sizes.most_common(1)[0]
            raise ConfigError(
                f"More than {MOST_BYTES / 1e6:.0f} MB of code and settings ({', '.join(sorted(SENT))}) are below {root}, {num / 1e6:.0f} MB of them in {most}, and Ray takes no more; "
                "move data out of this folder, or begin its folder's name with a dot."
            )
        target = folder / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    if not (folder / task).is_file():
        raise ConfigError(
            f"{task} would not be sent, since links, hidden folders, those called {', '.join(sorted(KEPT))}, and files that end otherwise than in {', '.join(sorted(SENT))} stay; "
            "name a file of another place."
        )
    package = Path(assay.__file__).parent
    target = folder / "platform" / "assay"
    shutil.rmtree(target, ignore_errors=True)  # what runs here is sent, whatever lies below
    shutil.copytree(package, target, ignore=shutil.ignore_patterns("__pycache__"))
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def files_of(root: Path) -> Iterator[Path]:
    """Walk over code and settings below a folder, in order of names."""
    for entry in sorted(root.iterdir()):
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        if entry.is_dir() and entry.name not in KEPT and not (entry / "pyvenv.cfg").exists():
            yield from files_of(entry)
        elif entry.is_file() and entry.suffix in SENT:
            yield entry


def _use_token() -> None:
    """Let Ray's client send the token where there is one; Ray reads this as it is imported."""
    has_file = (Path.home() / ".ray" / "auth_token").exists()
    if has_file or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _reach(address: str) -> "JobSubmissionClient":
    """Connect to a cluster's job server.

    Raises:
        ResourceError: none answers there, or it wants another token.
    """
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (RuntimeError, ConnectionError, ValueError) as error:
        raise ResourceError(
            f"No job server answers at {address} ({_line(error)}); open the way to the cluster's dashboard (`ray dashboard cluster/aws.yaml`), and see that ~/.ray/auth_token is the cluster's."
        ) from None


def _send(client: "JobSubmissionClient", entrypoint: str, folder: str) -> str:
    """Send a job; again while the cluster has only just begun.

    Raises:
        ResourceError: it is not taken.
    """
    environment = {"working_dir": folder, "env_vars": {"PYTHONPATH": "platform"}}
    end = time.monotonic() + AGENT_S
    while True:
        try:
            job: str = client.submit_job(entrypoint=entrypoint, runtime_env=environment)
            return job
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > end:
                raise ResourceError(
                    f"The cluster takes no job ({_line(error)}); see its head's logs, or give the command again."
                ) from None
            print("The cluster has no agent for jobs yet; trying again.", file=sys.stderr)
            time.sleep(POLL_S)


async def _follow(client: "JobSubmissionClient", job: str) -> Any:
    """Print a job's output until its end, whatever breaks the connection meanwhile; returns its state.

    Raises:
        ResourceError: nothing answers any more.
    """
    from aiohttp import ClientError

    printed, heard = 0, time.monotonic()
    while True:
        came = 0
        try:
            # begins with the first character each time
            async for text in client.tail_job_logs(job):
                new = text[max(0, printed - came) :]
                came += len(text)
                printed = max(printed, came)
                print(new, end="", flush=True)
            status = client.get_job_status(job)
        except (RuntimeError, OSError, ClientError) as error:
            if time.monotonic() > heard + LOST_S:
                raise ResourceError(
                    f"The cluster has not answered for {LOST_S:.0f} s ({_line(error)}); {job} may go on, see ray job status {job}."
                ) from None
            print(f"The connection broke ({_line(error)}); trying again.", file=sys.stderr)
        else:
            heard = time.monotonic()
            if status.is_terminal():
                return status
        await asyncio.sleep(POLL_S)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
