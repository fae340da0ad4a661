"""An update by two processes equals one by one: losses of halves, their gradients averaged over gloo.

NCCL refuses two ranks on one device, gloo takes them, so that on one device two processes can synchronise
batch norm; torch does that on devices alone, and on a CPU the network has none (GroupNorm) and is sharded (FSDP2) as well.
This file is also the program of each process: `python two_processes.py RANK FOLDER DEVICE`.
"""

import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

NUM, IMAGES = 2, 8
WAYS = {"cuda": ("SyncBatchNorm",), "cpu": ("DDP", "FSDP2")}
GAP = 1e-3
"""Largest difference of a gradient, as a share of the largest number in it."""


def network(way: str) -> nn.Module:
    """A small residual network, the same in every process."""
    import timm

    from assay.nn.norms import normalise_layers

    torch.manual_seed(0)
    norms = {"SyncBatchNorm": "sync", "whole": "batch"}
    return normalise_layers(timm.create_model("resnet18", num_classes=4), norms.get(way, "group"))  # type: ignore[arg-type]


def shard(net: nn.Module, device: torch.device) -> nn.Module:
    """Share a network out over the processes, block by block."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from assay.nn.blocks import blocks_of

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in blocks_of(net):
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)  # which changes its class
    return net


def gradients(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The gradients of a loss that each image has a share in, by the bare parameters' names."""
    from assay.train.predict import whole_float32

    with whole_float32():
        net(images).square().mean().backward()
    grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {
        name.removeprefix("module."): (g.full_tensor() if hasattr(g, "full_tensor") else g).cpu()
        for name, g in grads.items()
    }


def gap(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of a gradient, as a share of the largest number in it."""
    assert ours.keys() == expected.keys(), "gradients are of other parameters"
    return max(
        float((ours[name] - each).abs().max() / each.abs().max().clamp(min=1e-6))
        for name, each in expected.items()
    )


def shown(device: torch.device) -> Tensor:
    """The same images in every process."""
    return torch.randn(IMAGES, 3, 64, 64, generator=torch.Generator().manual_seed(1)).to(device)


def compare(device: torch.device, folder: Path) -> str:
    """Compare each way with one process, and say how far gradients are apart.

    Raises:
        AssertionError: by more than rounding.
        RuntimeError: a process failed, with the last lines of what it said.
    """
    run(device, folder)
    gaps = {}
    for way in WAYS[device.type]:
        whole = network("whole" if way == "SyncBatchNorm" else way).to(device)
        ours = torch.load(folder / f"{way}.pt", weights_only=True)
        gaps[way] = gap(ours, gradients(whole, shown(device)))
    assert max(gaps.values()) < GAP, f"gradients differ: {gaps}"
    unsaid = "" if device.type == "cuda" else "; batch norm is synchronised on devices alone"
    return "gradients, " + ", ".join(f"{way} {gap:.1e}" for way, gap in gaps.items()) + unsaid


def run(device: torch.device, folder: Path) -> None:
    """Run both processes to their end."""
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder), device.type],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(NUM)
    ]
    for process in started:
        told, _ = process.communicate(timeout=180)
        if process.returncode:
            raise RuntimeError(" ".join(told.split()[-40:]))


def work(rank: int, folder: Path, device: torch.device) -> None:
    """Learn from one half of the images in each way, and let the first process write the gradients."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/two", rank=rank, world_size=NUM)
    for way in WAYS[device.type]:
        net = network(way).to(device)
        net = shard(net, device) if way == "FSDP2" else nn.parallel.DistributedDataParallel(net)
        grads = gradients(net, shown(device).chunk(NUM)[rank])
        if rank == 0:
            torch.save(grads, folder / f"{way}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "platform"))
    work(int(sys.argv[1]), Path(sys.argv[2]), torch.device(sys.argv[3]))
