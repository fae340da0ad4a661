"""Losses over two workers with unequal shares are those of one, and so is a whole update; this file is also each worker's program."""

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
from assay.train.self_distillation import (
    DistillationLossConfig,
    SelfDistillation,
    SelfDistillationConfig,
)
from assay.train.worker import _wrap

CENTERINGS = ("centering", "sinkhorn_knopp")
STRATEGIES = ("ddp", "fsdp")
SHARES = (slice(0, 3), slice(3, 8))
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


def make_task(centering: Any = "centering") -> SelfDistillation:
    config = SelfDistillationConfig(
        image=ImageConfig(height_px=16, width_px=16),
        views=ViewConfig(global_px=16, local_px=8, num_local=1),
        model=VitConfig(backbone="32x1x8", drop_path=0.0),
        head=HeadConfig(
            num_prototypes=6, hidden=8, bottleneck=4, batch_norm=centering == "sinkhorn_knopp"
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


def trained(share: slice, strategy: str) -> np.ndarray:
    """Embeddings by the teacher after some updates, the module being wrapped for two workers."""
    task = make_task()
    wrapped = _wrap(task, strategy, torch.device("cpu"))
    optimizer = build_optimizer(task, task.config.optim, task.param_groups(0.5))
    num_workers = dist.get_world_size() if dist.is_initialized() else 1
    for batch in make_batches(share):
        optimizer.zero_grad()
        (wrapped(batch, 0.5)["loss"] * len(batch["mask"]) * num_workers / 8).backward()
        optimizer.step()
        task.after_step(0.0)
    task.eval()
    images = np.random.default_rng(1).normal(size=(3, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        return task.predict({"image": images})["embedding"].numpy()


def worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        np.savez(folder / f"{rank}.npz", **computed(ROWS[SHARES[rank]]))
        for centering in CENTERINGS:
            np.savez(folder / f"{centering}-{rank}.npz", **updated(SHARES[rank], centering))
        for strategy in STRATEGIES:
            np.save(folder / f"{strategy}-{rank}.npy", trained(SHARES[rank], strategy))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    worker(int(sys.argv[1]), Path(sys.argv[2]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers have computed."""
    folder = tmp_path_factory.mktemp("workers")
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", __file__]
    with ExitStack() as stack:
        processes = [
            subprocess.Popen([*command, str(rank), str(folder)], env=environment) for rank in (0, 1)
        ]
        for process in processes:
            stack.callback(process.wait)
            stack.callback(process.kill)
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
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
        np.testing.assert_allclose(joined, tensor, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_workers_have_the_teacher_of_one(folder: Path, strategy: str) -> None:
    """Replicated or sharded, the teacher like the student."""
    expected = trained(slice(None), "ddp")
    untrained = make_task().eval()
    images = np.random.default_rng(1).normal(size=(3, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        before = untrained.predict({"image": images})["embedding"].numpy()
    assert np.abs(expected - before).max() > 1e-3
    for rank in (0, 1):
        found = np.load(folder / f"{strategy}-{rank}.npy")
        np.testing.assert_allclose(found, expected, atol=1e-4)
