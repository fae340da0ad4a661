"""Losses over two workers with unequal shares are those of one; this file is also each worker's program."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from assay.nn.self_supervised.dino import Assignment, sinkhorn_knopp
from assay.nn.self_supervised.koleo import koleo_loss

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


def worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        np.savez(folder / f"{rank}.npz", **computed(ROWS[SHARES[rank]]))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    worker(int(sys.argv[1]), Path(sys.argv[2]))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
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
