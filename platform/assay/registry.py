"""The registry: which bundle answers for a task, on a folder or on object storage.

    <place>/<task>/
        <version>/bundle/             a copy of a bundle, never changed; bundle.json written last
        <version>/judged.parquet      its test rows, to compare the next one on
        history/<time>-<id>.json      one record per promotion or rollback, never changed
        champion.json                 the record in force; challenger.json; written last

A version is the first 12 hex digits of the SHA-256 of bundle.json, which holds the SHA-256 of every
other file. Of two promotions at once the last wins, and both are in the history.
"""

import hashlib
import io
import json
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from assay.bundle import Bundle
from assay.compare import SIGNIFICANT, Comparison, compare
from assay.data.place import reach, whole
from assay.errors import PredictionsError, RegistryError

Alias = Literal["champion", "challenger"]
ALIASES: tuple[Alias, ...] = ("champion", "challenger")
SCHEMA = 1
_TASK = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One promotion, or one step back."""

    id: str
    """Its name in the history: time and chance."""
    task: str
    alias: str
    version: str
    sha256: str
    """Of bundle.json."""
    kind: str
    """promoted or rolled back."""
    time: float
    """Seconds since 1970."""
    previous: str
    """The record that a rollback returns to, or ""."""
    reason: str
    """Why it was forced, or ""."""
    objections: list[str]
    """What stood against it, and was overruled by the reason."""
    run: str
    data: str
    """Fingerprint of the manifest."""
    code: dict[str, Any]
    """Versions it was made with."""
    metrics: dict[str, Any]
    """Of each test set, every number with its interval."""
    comparisons: list[dict[str, Any]]
    """Against the champion of that moment, on the same test rows."""


class Registry:
    """Bundles by task and alias.

    Args:
        place: a folder, or the URI of one (s3://, gs://, abfs://, file://); credentials come from
            the environment as for pyarrow.fs.
        cache: where bundles from an URI are copied to.

    Raises:
        ConfigError: the place is no address that can be used.
    """

    def __init__(self, place: str, cache: Path = Path("~/.cache/assay-bundles")) -> None:
        self.place, self.cache = place, cache.expanduser()
        self.files, self.root = reach(place)

    def tasks(self) -> list[str]:
        """Tasks that have any record."""
        return sorted(name for name in self._list("") if _TASK.fullmatch(name))

    def holder(self, task: str, alias: str) -> Record | None:
        """The record in force, None where the alias was never given."""
        content = self._read(f"{task}/{alias}.json")
        return None if content is None else self._record(f"{task}/{alias}.json", content)

    def history(self, task: str) -> list[Record]:
        """Every record of a task, the oldest first."""
        names = sorted(n for n in self._list(f"{task}/history") if n.endswith(".json"))
        return [self.record(task, name.removesuffix(".json")) for name in names]

    def record(self, task: str, name: str) -> Record:
        """A record of the history."""
        path = f"{task}/history/{name}.json"
        return self._record(path, self._read(path) or b"")

    def judged(self, record: Record) -> pa.Table:
        """The test rows that a version was judged on."""
        content = self._read(f"{record.task}/{record.version}/judged.parquet")
        if content is None:
            raise RegistryError(
                f"The registry {self.place} has lost the test rows of {record.task} {record.version}; restore them, or force the promotion by --force REASON."
            )
        return pq.ParquetFile(io.BytesIO(content)).read()

    def add(self, folder: Path, judged: pa.Table) -> tuple[str, str]:
        """Copy a bundle and its test rows, unless they are there; returns version and SHA-256."""
        card = (folder / "bundle.json").read_bytes()
        content = json.loads(card)
        task, sha256 = content["task"], hashlib.sha256(card).hexdigest()
        home = f"{task}/{sha256[:12]}"
        if self._read(f"{home}/bundle/bundle.json") == card:
            return sha256[:12], sha256
        rows = io.BytesIO()
        pq.write_table(judged, rows)
        self._write(f"{home}/judged.parquet", rows.getvalue())
        for name in content["sha256"]:
            self._write(f"{home}/bundle/{name}", (folder / name).read_bytes())
        self._write(f"{home}/bundle/bundle.json", card)
        return sha256[:12], sha256

    def point(self, record: Record) -> None:
        """Write a record into the history, then put it in force."""
        content = json.dumps({"schema": SCHEMA} | asdict(record), indent=1).encode()
        self._write(f"{record.task}/history/{record.id}.json", content)
        self._write(f"{record.task}/{record.alias}.json", content)

    def fetch(self, record: Record) -> Path:
        """A folder on this machine with the bundle of a record.

        Raises:
            RegistryError: it is gone, or is another than the record says.
        """
        home = f"{record.task}/{record.version}/bundle"
        card = self._read(f"{home}/bundle.json")
        if card is None or hashlib.sha256(card).hexdigest() != record.sha256:
            raise RegistryError(
                f"The bundle {record.task} {record.version} in {self.place} is missing or was changed; promote the run again."
            )
        if isinstance(self.files, pafs.LocalFileSystem):
            return Path(self.root) / home
        folder = self.cache / record.sha256
        if not (folder / "bundle.json").exists():
            # a copy of its own name, so that two processes may fetch at once
            hidden = self.cache / f".{uuid4().hex}"
            hidden.mkdir(parents=True)
            for name in ("bundle.json", *json.loads(card)["sha256"]):
                (hidden / name).write_bytes(self._read(f"{home}/{name}") or b"")
            try:
                hidden.rename(folder)
            except OSError:  # the other one was first
                for path in hidden.iterdir():
                    path.unlink()
                hidden.rmdir()
        return folder

    def _record(self, name: str, content: bytes) -> Record:
        try:
            values = json.loads(content)
            if values.pop("schema") > SCHEMA:
                raise RegistryError(
                    f"{name} of the registry {self.place} was written by a newer Assay; update Assay."
                )
            return Record(**values)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RegistryError(
                f"{name} of the registry {self.place} is damaged; restore it, or promote again."
            ) from None

    def _read(self, name: str) -> bytes | None:
        try:
            with self.files.open_input_file(f"{self.root}/{name}") as file:
                content: bytes = file.read()
                return content
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refused(error) from None

    def _write(self, name: str, content: bytes) -> None:
        try:
            with (
                whole(self.files, f"{self.root}/{name}") as target,
                self.files.open_output_stream(target) as file,
            ):
                file.write(content)
        except OSError as error:
            raise self._refused(error) from None

    def _list(self, name: str) -> list[str]:
        chosen = pafs.FileSelector(f"{self.root}/{name}".rstrip("/"), allow_not_found=True)
        try:
            return [info.base_name for info in self.files.get_file_info(chosen)]
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> RegistryError:
        why = error.strerror or str(error).splitlines()[0]
        return RegistryError(
            f"The registry {self.place} cannot be used ({why}); check the address and your rights, or pass another --registry."
        )


def promote(
    registry: Registry, folder: Path, judged: pa.Table, alias: Alias, reason: str = ""
) -> Record:
    """Put a bundle behind an alias, if nothing stands against it or a reason overrules that.

    Args:
        registry: where to.
        folder: the bundle.
        judged: predictions of its run.
        alias: champion, or challenger, which may be worse than the champion.
        reason: why to promote in spite of objections; recorded.

    Raises:
        BundleError: it does not verify; no reason overrules that, since no server would open it.
        RegistryError: something stands against it, and there is no reason.
    """
    card = Bundle(folder).card
    task = str(card.get("task"))
    unsafe = [name for name in card["sha256"] if Path(name).name != name or name.startswith(".")]
    if not _TASK.fullmatch(task) or unsafe:
        raise RegistryError(
            f"{folder} is of the task {task!r} with files {', '.join(unsafe) or 'of plain names'}; a task's name is a-z, 0-9 and _, and files lie in the bundle itself."
        )
    holder = registry.holder(task, alias)
    judged = judged.filter(pc.starts_with(judged["split"], "test"))
    tests = {name: own for name, own in card["metrics"].items() if name.startswith("test")}
    champion = registry.holder(task, "champion")
    comparisons, objections = _against(registry, champion, judged)
    if alias != "champion":
        objections = []
    if not tests or not judged.num_rows:
        objections.append("it has no judged test set")
    if objections and not reason.strip():
        raise RegistryError(
            f"{card['run']} is not promoted: {'; '.join(objections)}. Mend that, or overrule it by --force REASON, which is recorded."
        )
    version, sha256 = registry.add(folder, judged)
    previous = "" if holder is None else holder.previous if holder.sha256 == sha256 else holder.id
    now = time.time()
    record = Record(
        id=_name(now), task=task, alias=alias, version=version, sha256=sha256, kind="promoted",
        time=now, previous=previous, reason=reason if objections else "",
        objections=objections, run=card["run"], data=card["data"], code=card["code"],
        metrics=tests, comparisons=[one.to_dict() for one in comparisons],
    )  # fmt: skip
    registry.point(record)
    return record


def _against(
    registry: Registry, champion: Record | None, judged: pa.Table
) -> tuple[list[Comparison], list[str]]:
    """The candidate against the champion on the same test rows, and what speaks against it."""
    if champion is None or not judged.num_rows:
        return [], []
    try:
        found = compare({"candidate": judged, "champion": registry.judged(champion)})
    except PredictionsError as error:
        return [], [f"it cannot be compared with the champion {champion.version} ({error})"]
    worse = [one for one in found if one.p_holm < SIGNIFICANT and one.difference.value < 0]
    return found, [
        f"on {one.set} it is significantly worse than the champion {champion.version} ({one.metric} {one.difference.value:+.3f}, p = {one.p_holm:.2g})"
        for one in worse
    ]


def roll_back(registry: Registry, task: str, alias: Alias) -> Record:
    """Put in force what the record in force replaced; again, what was before that.

    Raises:
        RegistryError: there is no record to go back from or to.
        BundleError: the earlier bundle does not verify any more.
    """
    present = registry.holder(task, alias)
    if present is None or not present.previous:
        known = ", ".join(registry.tasks()) or "none"
        raise RegistryError(
            f"{task} has no earlier {alias} in {registry.place} to go back to; tasks with records: {known}."
        )
    earlier = registry.record(task, present.previous)
    Bundle(registry.fetch(earlier))
    now = time.time()
    record = replace(earlier, id=_name(now), kind="rolled back", time=now)
    registry.point(record)
    return record


def _name(now: float) -> str:
    return f"{int(now * 1e6):018d}-{uuid4().hex[:8]}"
