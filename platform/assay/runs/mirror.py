"""Runs on object storage: folders here that mirror them, pushed and pulled at the moments that matter.

    <URI>/<run>/...            what the run's folder holds (see `folder`), but for what is this machine's alone
    <URI>/<run>/index.json     every file's size and digest, written last: a run without it is not there
    <URI>/<run>/claims/        who is writing, see `claim`
    <URI>/sweeps/<sweep>/...   the same of a sweep
    ~/.cache/assay-runs/<URI, quoted>/<run>/...    the mirror

A mirror's path says its URI, so that any process on any node that is given a run's folder can push
it. Who pulls takes the storage's state where another machine has written there since; where none
has, what is here stays, and is pushed the next time.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from assay.errors import RunError
from assay.files import sha256_of
from assay.runs.claim import Claim, TakenOverError
from assay.runs.index import (
    INDEX,
    MOST_INDEX_BYTES,
    Entry,
    MirrorState,
    Synced,
    digest,
    files_of,
    read_index,
    read_state,
    synced,
    write_index,
    write_state,
)
from assay.runs.objects import Objects
from assay.storage import join, refuse_without_room

TRIES, AT_ONCE = 3, 8

Needs = Callable[[str], bool]
"""Whether a file of a run, by its name, is needed here."""


def needs_all(name: str) -> bool:
    """Take everything, as what trains does."""
    return True


def needs_judged(name: str) -> bool:
    """Take what a run came to: all but what training alone needs."""
    return not name.startswith(("checkpoints/", "best/"))


def needs_numbers(name: str) -> bool:
    """Take what numbers are read from."""
    return needs_judged(name) and not name.startswith(("bundle/", "samples/", "report.html"))


def needs_record(name: str) -> bool:
    """Take run.json alone, to know which runs there are."""
    return name == "run.json"


@dataclass(frozen=True)
class Mirror:
    """The folder here of a run or a sweep on object storage."""

    folder: Path
    address: str
    """URI of the storage."""
    name: str
    """Of the run or sweep below it."""

    @property
    def objects(self) -> Objects:
        """Its objects."""
        return Objects(self.address, self.name)

    def pull(self, needs: Needs = needs_all, is_exact: bool = False) -> None:
        """Copy here what is missing or was changed there.

        Args:
            needs: which files are needed.
            is_exact: whether what was never pushed goes, so that all nodes have the same.

        Raises:
            RunError: the storage cannot be used, what it holds is damaged, or there is no room for it.
        """
        state = read_state(self.folder)
        state.index = "" if is_exact else state.index
        for _ in range(TRIES):
            content = self.objects.read(INDEX, MOST_INDEX_BYTES)
            if content is None:
                return
            files = read_index(content, join(self.address, f"{self.name}/{INDEX}"))
            is_same = self._take(files, state, needs, state.index != digest(content))
            # a push that was broken off leaves newer files than its index lists, as a killed
            # process does on a disk: they are taken as they are
            if is_same or self.objects.read(INDEX, MOST_INDEX_BYTES) == content:
                here = {name: file for name, file in state.files.items() if self._has(name)}
                write_state(self.folder, MirrorState(digest(content), here))
                return
            state.index = ""
        raise RunError(f"{self.name} in {self.address} is being written just now; try again.")

    def _take(
        self, files: Mapping[str, Entry], state: MirrorState, needs: Needs, is_moved: bool
    ) -> bool:
        """Make the folder hold the files of an index; return whether each was as the index says."""
        for name, path in list(files_of(self.folder)) if is_moved else ():
            is_stale = name not in files or (
                not needs(name) and self._digest(name, state) != files[name].sha256
            )
            if is_stale:
                self._remove(path)
                state.files.pop(name, None)
        wanted = []
        for name in files:
            path = self.folder / name
            if not needs(name) or (not is_moved and path.exists()):
                continue
            if not path.is_file() or self._digest(name, state) != files[name].sha256:
                wanted.append(name)
        refuse_without_room(self.name, self.folder, sum(files[name].size for name in wanted))
        # the record last: until then a new run is not there
        records = [name for name in wanted if name == "run.json"]
        for names in ([name for name in wanted if name not in records], records):
            state.files |= _each(
                lambda name: self.objects.fetch(name, self.folder / name, files[name].mtime_ns),
                names,
            )
        return all(state.files[name].sha256 == files[name].sha256 for name in wanted)

    @property
    def is_pending(self) -> bool:
        """Tell whether something was changed here and not pushed."""
        state = read_state(self.folder)
        known = {name: file for name, file in state.files.items() if self._has(name)}
        here = dict(files_of(self.folder))
        return here.keys() != known.keys() or any(
            file != synced(here[name], file.sha256) for name, file in known.items()
        )

    def _has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def _digest(self, name: str, state: MirrorState) -> str:
        """Return the digest of a file here, and note it."""
        path, known = self.folder / name, state.files.get(name)
        if known is None or known != synced(path, known.sha256):
            known = state.files[name] = synced(path, sha256_of(path))
        return known.sha256

    def _remove(self, path: Path) -> None:
        path.unlink()
        for folder in path.parents:
            if folder == self.folder or any(folder.iterdir()):
                return
            folder.rmdir()

    def push(self, others: Mapping[str, Synced] | None = None) -> None:
        """Copy to the storage what was changed here, the index last.

        Args:
            others: files of the same run that other nodes have uploaded.

        Raises:
            RunError: the storage cannot be used.
            TakenOverError: another machine has written there since.
        """
        content = self.objects.read(INDEX, MOST_INDEX_BYTES)
        state = read_state(self.folder)
        Claim.check(self.folder, self.objects)
        if content is not None and digest(content) != state.index:
            raise TakenOverError(
                f"{self.name} in {self.address} was written by another machine meanwhile, so nothing of it is pushed from here; "
                "give the same command again, which goes on from what is there."
            )
        before = read_index(content, self.name) if content else {}
        here = self.upload(known=before) | dict(others or {})
        gone = _gone(before, here, state)
        listed = {name: entry for name, entry in before.items() if name not in gone}
        listed |= {
            name: Entry(file.size, file.sha256, file.mtime_ns) for name, file in here.items()
        }
        after = write_index(listed)
        if after != content:
            self.objects.write(INDEX, after)
        write_state(self.folder, MirrorState(digest(after), here))
        for name in gone:
            self.objects.delete(name)

    def upload(self, known: Container[str], below: str = "") -> dict[str, Synced]:
        """Copy to the storage what was changed here, but do not list it yet; return all files here.

        Args:
            known: names that the storage lists already.
            below: beginning of the names of files that count.
        """
        state = read_state(self.folder)
        here = {name: path for name, path in files_of(self.folder) if name.startswith(below)}
        files = {
            name: state.files[name]
            for name, path in here.items()
            if name in known
            and name in state.files
            and state.files[name] == synced(path, state.files[name].sha256)
        }
        changed = [name for name in here if name not in files]
        records = [name for name in changed if name == "run.json"]
        for names in ([name for name in changed if name not in records], records):
            files |= _each(lambda name: self.objects.send(here[name], name), names)
        return files


def _gone(before: Mapping[str, Entry], here: Mapping[str, Synced], state: MirrorState) -> list[str]:
    """List files that were deleted here; a checkpoint's parts of other nodes go with those of this one."""
    deleted = {name for name in before if name in state.files and name not in here}
    kept = {name.rpartition("/")[0] for name in here}
    folders = {name.rpartition("/")[0] for name in deleted if name.startswith("checkpoints/")}
    return [n for n in before if n in deleted or n.rpartition("/")[0] in folders - kept]


def _each(copy: Callable[[str], Synced], names: Sequence[str]) -> dict[str, Synced]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(names, pool.map(copy, names), strict=True))
