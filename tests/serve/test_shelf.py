"""Tasks that share a process: what is asked is open, what is the longest unused is put away, and nobody notices."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from assay.bundle.promotion import promote
from assay.bundle.registry import Registry
from assay.data.images.pyramid import ImagePyramid
from assay.metrics.drift import LEAST
from assay.serve import inspector as inspectors
from assay.serve.inspector import Inspector, OpenBundle, inspect
from assay.serve.limits import RefusedError
from assay.serve.shelf import AGAIN_S, Shelf

TASKS = ("layers", "lids", "parts")


@pytest.fixture
def winners(tmp_path, make_bundle, judged_rows) -> Registry:
    registry = Registry(str(tmp_path / "registry"))
    for task in TASKS:
        promote(registry, make_bundle(tmp_path / task, task), judged_rows(0.9), "champion")
    return registry


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Tasks of the bundles that are opened, in their order."""
    names: list[str] = []

    def open_bundle(folder: Path, *args: Any) -> Any:
        names.append(folder.parts[-3])
        return bundle(folder, *args)

    bundle = inspectors.Bundle
    monkeypatch.setattr(inspectors, "Bundle", open_bundle)
    return names


def told(registry: Registry, most_open: int = 3, **ids: str) -> dict[str, Any]:
    champions = {task: registry.holder(task, "champion").id for task in TASKS} | ids
    tasks = {task: {"champion": name, "challenger": ""} for task, name in champions.items()}
    return {"tasks": tasks, "most_open": most_open, "variant": "fp32", "keep": False}


async def answer(inspector: Inspector, picture: Path) -> dict[str, Any]:
    async def look(opened: OpenBundle, content: bytes) -> Any:
        return (await asyncio.to_thread(inspect, [(opened, ImagePyramid.read(content))]))[0]

    image = picture.read_bytes()
    return await inspector.answer([image], "champion", "none", False, look)


def held(shelf: Shelf) -> set[str]:
    return {task for task, slot in shelf.slots.items() if slot.inspector.opened}


def test_a_task_is_opened_once_by_whoever_asks_first_and_described_without(winners, opened):
    async def run() -> None:
        shelf = Shelf(winners, 1, "cpu")
        await shelf.configure(told(winners))
        before = await shelf.describe()
        assert (opened, held(shelf)) == ([], set())
        taken = await asyncio.gather(*[shelf.take(task) for task in ("parts", "layers") * 4])
        assert sorted(opened) == ["layers", "parts"]
        assert len(set(map(id, taken))) == 2
        assert await shelf.describe() == before
        version = winners.holder("lids", "champion").version
        assert before["lids"]["champion"]["version"] == version

    asyncio.run(run())


def test_the_longest_unused_is_put_away_and_comes_back_as_it_was(winners, opened, pictures):
    async def run() -> None:
        shelf = Shelf(winners, 1, "cpu")
        await shelf.configure(told(winners, most_open=2))
        for _ in range(LEAST):
            parts = await answer(await shelf.take("parts"), pictures[0])
        drift = (await shelf.take("parts")).opened["champion"].drift
        assert drift.value is not None
        for task, left in (("layers", "parts"), ("parts", "layers"), ("lids", "parts")):
            await shelf.take(task)
            assert held(shelf) == {task, left}
        under_way = asyncio.create_task(answer(await shelf.take("parts"), pictures[0]))
        await asyncio.sleep(0)  # it has its bundle
        await shelf.take("layers")
        await shelf.take("lids")
        assert held(shelf) == {"layers", "lids"}
        assert (await under_way)["answer"] == parts["answer"]
        again = await answer(await shelf.take("parts"), pictures[0])
        assert again == parts
        assert shelf.slots["parts"].inspector.opened["champion"].drift is drift
        assert opened == ["parts", "layers", "lids", "layers", "lids", "parts"]

    asyncio.run(run())


def test_a_promotion_takes_the_place_of_what_is_open_and_waits_for_what_is_not(
    winners, opened, pictures, tmp_path, make_bundle, judged_rows
):
    async def run() -> None:
        shelf = Shelf(winners, 1, "cpu")
        await shelf.configure(told(winners))
        await shelf.take("parts")
        for task in ("parts", "lids"):
            bundle = make_bundle(tmp_path / f"new-{task}", task, bias=2.0)
            promote(winners, bundle, judged_rows(0.9), "champion")
        before, now = shelf.slots["parts"].inspector.opened, told(winners)
        bringing = asyncio.create_task(shelf.configure(now))
        while not bringing.done():  # who asks meanwhile has what is there
            assert (await answer(await shelf.take("parts"), pictures[0]))["views"]
        assert before["champion"] is not shelf.slots["parts"].inspector.opened["champion"]
        assert opened == ["parts", "parts"]
        for task in ("parts", "lids"):
            version = winners.holder(task, "champion").version
            assert (await answer(await shelf.take(task), pictures[0]))["model"] == {
                **{"task": task, "alias": "champion", "version": version, "variant": "fp32"}
            }
        del now["tasks"]["lids"]
        await shelf.configure(now)
        assert set(shelf.slots) == {"parts", "layers"}

    asyncio.run(run())


def test_a_bundle_that_does_not_open_is_said_and_touches_no_other(winners, opened, pictures):
    clock = [0.0]

    async def run() -> None:
        shelf = Shelf(winners, 1, "cpu", lambda: clock[0])
        await shelf.configure(told(winners))
        graph = winners.fetch(winners.holder("lids", "champion")) / "classify.onnx"
        content = graph.read_bytes()
        graph.write_bytes(b"no graph")
        for _ in range(3):
            with pytest.raises(RefusedError, match="does not open") as refused:
                await shelf.take("lids")
            assert (refused.value.status, refused.value.retry_after_s) == (503, AGAIN_S)
            assert (await answer(await shelf.take("parts"), pictures[0]))["answer"]
        assert opened == ["lids", "parts"]  # not so soon again
        graph.write_bytes(content)
        clock[0] += AGAIN_S
        assert (await answer(await shelf.take("lids"), pictures[0]))["answer"]

    asyncio.run(run())


def test_what_answered_before_answers_on_where_the_next_one_does_not_open(
    winners, pictures, tmp_path, make_bundle, judged_rows
):
    async def run(is_open: bool) -> None:
        shelf = Shelf(winners, 1, "cpu")
        await shelf.configure(told(winners, most_open=1))
        await shelf.take("parts")
        if not is_open:
            await shelf.take("lids")
        first = shelf.slots["parts"].config["champion"]
        await shelf.configure(told(winners, most_open=1, parts=record.id))
        inspector = await shelf.take("parts")
        assert inspector.opened["champion"].record.id == first
        assert inspector.describe()["champion"]["refused"] == {"champion": record.id}
        assert (await answer(inspector, pictures[0]))["answer"]

    bundle = make_bundle(tmp_path / "next", bias=2.0)
    record = promote(winners, bundle, judged_rows(0.9), "challenger")
    (winners.fetch(record) / "classify.onnx").write_bytes(b"no graph")
    for is_open in (True, False):
        asyncio.run(run(is_open))


@pytest.fixture
def may_open(monkeypatch) -> threading.Event:
    """Until it is set, bundles that are opened are under way."""
    event, bundle = threading.Event(), inspectors.Bundle

    def wait(*args: Any) -> Any:
        assert event.wait(30)
        return bundle(*args)

    monkeypatch.setattr(inspectors, "Bundle", wait)
    return event


def test_a_promotion_reaches_a_task_that_is_being_opened(
    winners, may_open, tmp_path, make_bundle, judged_rows
):
    async def run() -> None:
        shelf = Shelf(winners, 1, "cpu")
        await shelf.configure(told(winners))
        taking = asyncio.create_task(shelf.take("parts"))
        await asyncio.sleep(0.05)
        record = promote(
            winners, make_bundle(tmp_path / "new", bias=2.0), judged_rows(0.9), "champion"
        )
        bringing = asyncio.create_task(shelf.configure(told(winners)))
        await asyncio.sleep(0.05)
        may_open.set()
        await bringing
        assert (await taking).opened["champion"].record == record

    asyncio.run(run())


def test_who_does_not_wait_for_a_bundle_leaves_it_to_the_next_who_asks(winners, opened, may_open):
    async def run() -> None:
        shelf = Shelf(winners, 1, "cpu")
        await shelf.configure(told(winners))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(shelf.take("parts"), 0.05)
        waiting = asyncio.create_task(shelf.take("parts"))
        await asyncio.sleep(0.05)
        may_open.set()
        assert (await waiting).opened
        assert opened == ["parts"]

    asyncio.run(run())
