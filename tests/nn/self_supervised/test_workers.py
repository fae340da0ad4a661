"""Losses over workers with unequal shares are those of one, and so are a whole update and what is taken up from a
checkpoint by another number of workers; this file is also each worker's program."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from assay.data.dataset import Column, Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.inputs.image import ImageConfig
from assay.data.inputs.views import ViewConfig
from assay.nn.optim import build_optimizer
from assay.nn.self_supervised.dino import Assignment, sinkhorn_knopp
from assay.nn.self_supervised.head import HeadConfig
from assay.nn.self_supervised.koleo import koleo_loss
from assay.nn.self_supervised.vit import VitConfig
from assay.nn.self_supervised.workers import sum_over_workers
from assay.train import checkpoint
from assay.train.self_distillation import (
    DistillationLossConfig,
    SelfDistillation,
    SelfDistillationConfig,
)
from assay.train.worker import _wrap

CENTERINGS = ("centering", "sinkhorn_knopp")
STRATEGIES = ("ddp", "fsdp")
SHARES = {2: (slice(0, 3), slice(3, 8)), 3: (slice(0, 3), slice(3, 4), slice(4, 8))}
ROWS = torch.randn(8, 4, generator=torch.Generator().manual_seed(5))


def computed(rows: torch.Tensor) -> dict[str, np.ndarray]:
    """What a worker has of its rows; its loss weighs as its share does."""
    rows = rows.clone().requires_grad_()
    centering = Assignment(4, "centering").train()
    first = centering(rows, 0.1)
    second = centering(torch.zeros(0, 4) if len(rows) == 3 else rows[:2], 0.1)
    loss = koleo_loss(rows) * len(rows) / len(ROWS)
    loss.backward()
    tensors = {
        "sinkhorn": sinkhorn_knopp(rows.detach(), 0.3),
        "probs": first,
        "center": centering.center,
        "loss": loss.detach()[None],
        "gradient": rows.grad,
    }
    return {name: tensor.numpy() for name, tensor in tensors.items()} | {"num": len(second)}


def make_task(centering: Any = "centering", backbone: str = "32x1x8") -> SelfDistillation:
    config = SelfDistillationConfig(
        image=ImageConfig(height_px=16, width_px=16),
        views=ViewConfig(global_px=16, local_px=8, num_local=1),
        model=VitConfig(backbone=backbone, drop_path=0.0),
        # 7 prototypes, which neither two workers nor three share out evenly
        head=HeadConfig(
            num_prototypes=7, hidden=8, bottleneck=4, batch_norm=centering == "sinkhorn_knopp"
        ),
        loss=DistillationLossConfig(centering=centering),
    )
    images = Pixels(Store("nowhere"), [])
    column = Column.of(["a"] * 8)
    dataset = Dataset((), np.zeros(8, np.int32), (), column, {}, {}, np.arange(8), images)
    torch.manual_seed(0)
    return SelfDistillation(config, dataset).train()


def make_batches(share: slice) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {
            "global": rng.normal(size=(8, 2, 3, 16, 16)).astype(np.float32)[share],
            "local": rng.normal(size=(8, 1, 3, 8, 8)).astype(np.float32)[share],
            "mask": (rng.random((8, 2, 4)) < 0.3)[share],
        }
        for _ in range(3)
    ]


def updated(share: slice, centering: Any) -> dict[str, np.ndarray]:
    """Gradients and centres of a task after some batches, a worker's part of the mean over workers."""
    task = make_task(centering)
    for batch in make_batches(share):
        (task(batch, 0.5)["loss"] * len(batch["mask"]) / 8).backward()
    tensors = {f"grad {n}": p.grad for n, p in task.named_parameters() if p.grad is not None}
    return {n: t.numpy() for n, t in (tensors | dict(task.named_buffers())).items()}


def wrapped_task(strategy: str) -> tuple[SelfDistillation, torch.nn.Module, torch.optim.Optimizer]:
    """A task of two blocks, wrapped for the workers there are, and its optimiser."""
    task = make_task(backbone="32x2x8")
    wrapped = _wrap(task, strategy, torch.device("cpu"))
    return task, wrapped, build_optimizer(task, task.config.optim, task.param_groups(0.5))


def trained(share: slice, strategy: str, folder: Path | None = None) -> dict[str, np.ndarray]:
    """Losses, and the teacher's embeddings after some updates, of which the last may follow a checkpoint.

    Saved before the last one, where a folder without checkpoint is given; taken up from there, where it has one.
    """
    task, wrapped, optimizer = wrapped_task(strategy)
    num_workers = dist.get_world_size() if dist.is_initialized() else 1
    batches = make_batches(share)
    newest = None if folder is None else checkpoint.latest(folder)
    if newest is not None:
        assert checkpoint.load(newest, wrapped, optimizer) == {"step": 2}
    losses = []
    for step, batch in enumerate(batches):
        if step < 2 and newest is not None:
            continue
        if step == 2 and newest is None and folder is not None:
            checkpoint.save(folder, 2, wrapped, optimizer, {"step": 2})
        optimizer.zero_grad()
        loss = wrapped(batch, 0.5)["loss"] * len(batch["mask"]) * num_workers / 8
        loss.backward()
        optimizer.step()
        task.after_step(0.0)
        losses.append(float(sum_over_workers(loss)) / num_workers)
    task.eval()
    images = np.random.default_rng(1).normal(size=(3, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        embedding = task.predict({"image": images})["embedding"].numpy()
    return {"losses": np.array(losses), "embedding": embedding}


def local_shares() -> dict[str, float]:
    """The largest share of a block's parameters that this worker holds, of student and teacher."""
    task, _, _ = wrapped_task("fsdp")
    shares = {}
    for name in ("student", "teacher"):
        blocks: Any = getattr(task, name).backbone.vit.blocks
        assert all(isinstance(block, FSDPModule) for block in blocks)
        shares[name] = max(len(p.to_local()) / len(p) for p in blocks.parameters())
    return shares


def worker(rank: int, num: int, folder: Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meet-{num}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=num)
    share = SHARES[num][rank]
    try:
        for strategy in STRATEGIES:
            saved = trained(share, strategy, folder / f"saved-{strategy}")
            np.savez(folder / f"{strategy}-{num}-{rank}.npz", **saved)
        if num == 2:
            np.savez(folder / f"{rank}.npz", **computed(ROWS[share]))
            np.savez(folder / f"held-{rank}.npz", **local_shares())
            for centering in CENTERINGS:
                np.savez(folder / f"{centering}-{rank}.npz", **updated(share, centering))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers have computed and saved, and three have taken up."""
    folder = tmp_path_factory.mktemp("workers")
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", __file__]
    for num in (2, 3):
        with ExitStack() as stack:
            processes = [
                subprocess.Popen([*command, str(rank), str(num), str(folder)], env=environment)
                for rank in range(num)
            ]
            for process in processes:
                stack.callback(process.wait)
                stack.callback(process.kill)
            assert [process.wait(timeout=240) for process in processes] == [0] * num
    return folder


@pytest.fixture
def shared(folder: Path) -> list[dict[str, np.ndarray]]:
    return [dict(np.load(folder / f"{rank}.npz")) for rank in (0, 1)]


def test_two_workers_compute_what_one_does(shared: list[dict[str, np.ndarray]]) -> None:
    whole = computed(ROWS)
    for name in ("sinkhorn", "probs", "gradient"):
        joined = np.concatenate([mine[name] for mine in shared])
        np.testing.assert_allclose(joined, whole[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert sum(mine["loss"][0] for mine in shared) == pytest.approx(whole["loss"][0], rel=1e-5)


def test_the_centre_is_of_all_workers_rows_where_one_has_none(
    shared: list[dict[str, np.ndarray]],
) -> None:
    assert [int(mine["num"]) for mine in shared] == [0, 2]
    expected = 0.9 * 0.1 * ROWS.mean(0) + 0.1 * ROWS[3:5].mean(0)
    for mine in shared:
        np.testing.assert_allclose(mine["center"], expected, rtol=1e-5)


@pytest.mark.parametrize("centering", CENTERINGS)
def test_an_update_of_two_workers_is_that_of_one(folder: Path, centering: Any) -> None:
    whole = updated(slice(None), centering)
    parts = [dict(np.load(folder / f"{centering}-{rank}.npz")) for rank in (0, 1)]
    assert any(name.startswith("grad student.backbone.vit") for name in whole)
    for name, tensor in whole.items():
        mine = [part[name] for part in parts]
        joined = sum(mine) if name.startswith("grad") else mine[0]
        # sums in another order differ by the largest of their terms, also where little is left of them
        rounding = 1e-5 * max(1, np.abs(tensor).max())
        np.testing.assert_allclose(joined, tensor, rtol=1e-3, atol=rounding, err_msg=name)


@pytest.fixture(scope="module")
def alone() -> dict[str, np.ndarray]:
    """What one worker has without a break."""
    return trained(slice(None), "ddp")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_workers_have_the_teacher_of_one(
    folder: Path, alone: dict[str, np.ndarray], strategy: str
) -> None:
    """Replicated or sharded, the teacher like the student."""
    images = np.random.default_rng(1).normal(size=(3, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        untrained = wrapped_task("ddp")[0].eval()
        before = untrained.predict({"image": images})["embedding"].numpy()
    assert np.abs(alone["embedding"] - before).max() > 1e-3
    for rank in (0, 1):
        computed = np.load(folder / f"{strategy}-2-{rank}.npz")
        np.testing.assert_allclose(computed["embedding"], alone["embedding"], atol=1e-4)
        np.testing.assert_allclose(computed["losses"], alone["losses"], rtol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("num", [1, 3])
def test_what_two_workers_saved_goes_on_with_others(
    folder: Path, alone: dict[str, np.ndarray], strategy: str, num: int
) -> None:
    """The same loss of the next batch, and the same teacher after it: student, teacher, centres and moments are all there."""
    if num == 1:
        taken = [trained(slice(None), "ddp", folder / f"saved-{strategy}")]
    else:
        taken = [dict(np.load(folder / f"{strategy}-3-{rank}.npz")) for rank in range(3)]
    for computed in taken:
        assert len(computed["losses"]) == 1
        np.testing.assert_allclose(computed["losses"], alone["losses"][2:], rtol=1e-5)
        np.testing.assert_allclose(computed["embedding"], alone["embedding"], atol=1e-4)


def test_teacher_and_student_are_shared_out_block_by_block(folder: Path) -> None:
    for rank in (0, 1):
        held = np.load(folder / f"held-{rank}.npz")
        assert held["student"] == held["teacher"] == 0.5
