"""The selector's step, sparse against dense: from scores to k mixed patches, and back to the scores.

    python tests/benchmarks/selector.py

The dense reference is written from the definition: every cell of a 52x52 grid on a padded image of
2550x2550 is multiplied by its weight and added, and the gradient of the selection is taken from
one-hot tensors. Both start from an image at hand: dense from a normalised float tensor, sparse
from an entry of the store, whose patches it cuts, normalises and mixes.
"""

import ctypes
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from bench import peak_mb, photo, seconds, table, write
from torch import Tensor

from assay.data.entry import Entry
from assay.data.patches import EPS, Canvas, PatchConfig, cell_corners
from assay.nn.topk import draw_noise, hard_topk, mix, perturbed_topk

SIZES = PatchConfig(image_px=2550, overview_px=850, patch_px=448, clahe_clip=0.0)
GRID, K, NUM_NOISE = 52, 8, 500
FIELDS = {"peaked, sigma 0.01": 0.01, "peaked, sigma 0.05": 0.05, "flat (every cell active)": 0.0}


class _Dense(torch.autograd.Function):
    """Indicators (k, d) of the perturbed top-k, with the gradient as materialised tensors give it."""

    @staticmethod
    def forward(ctx, scores: Tensor, noise: Tensor, sigma: float) -> Tensor:
        picked = (scores + sigma * noise).topk(K).indices.sort(-1).values
        onehots = torch.nn.functional.one_hot(picked, len(scores)).float()  # (n, k, d)
        ctx.save_for_backward(onehots, noise)
        ctx.sigma = sigma
        return onehots.mean(0)

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:
        onehots, noise = ctx.saved_tensors
        spread = torch.einsum("nkd,ne->kde", onehots, noise) / (len(noise) * ctx.sigma)
        return torch.einsum("kde,kd->e", spread, upstream), None, None


def dense(image: Tensor, scores: Tensor, sigma: float) -> Callable[[], Tensor]:
    """The step on a normalised image (3 h w) that is held in memory."""
    stride = SIZES.image_px // GRID
    margin = (SIZES.patch_px - stride) // 2
    end = stride * GRID + SIZES.patch_px - 1 - SIZES.image_px - margin
    padded = torch.nn.functional.pad(image, (margin, end, margin, end))

    def step() -> Tensor:
        leaf = scores.clone().requires_grad_()
        weights = _Dense.apply(leaf, draw_noise([1], NUM_NOISE, GRID**2)[0], sigma)
        mixed = torch.zeros(K, 3, SIZES.patch_px, SIZES.patch_px)
        for cell in range(GRID**2):
            y, x = cell // GRID * stride, cell % GRID * stride
            crop = padded[:, y : y + SIZES.patch_px, x : x + SIZES.patch_px]
            mixed = torch.addcmul(mixed, weights[:, cell, None, None, None], crop)
        (mixed * _upstream()).sum().backward()
        return torch.cat([mixed.detach().flatten(), leaf.grad])

    return step


def sparse(entry: Entry, scores: Tensor, sigma: float) -> Callable[[], Tensor]:
    """The step on an entry of the store."""
    canvas = Canvas(entry, SIZES)
    mean, std = (torch.from_numpy(v).float().view(1, 3, 1, 1) for v in (entry.mean, entry.std))

    def step() -> Tensor:
        leaf = scores[None].clone().requires_grad_()
        cells, weights = perturbed_topk(leaf, K, sigma, [1], NUM_NOISE, "plain")

        def cut(part: slice) -> Tensor:
            corners = cell_corners(cells[0, part].numpy(), GRID, SIZES)
            pixels = torch.from_numpy(canvas.patches(corners)).permute(0, 3, 1, 2)
            return ((pixels.float() / 255 - mean) / (std + EPS))[None]

        mixed = mix(weights, cut, (3, SIZES.patch_px, SIZES.patch_px))[0]
        (mixed * _upstream()).sum().backward()
        return torch.cat([mixed.detach().flatten(), leaf.grad[0]])

    return step


def _upstream() -> Tensor:
    side = SIZES.patch_px
    return torch.randn(K, 3, side, side, generator=torch.Generator().manual_seed(3)) / side


def problem(sigma: float) -> tuple[Entry, Tensor, Tensor, float]:
    """An image both ways, scores, and sigma; flat scores where sigma is 0."""
    entry = Entry.of(photo(SIZES.image_px))
    image = torch.from_numpy(np.asarray(entry.levels[0])).permute(2, 0, 1).float() / 255
    mean, std = (torch.from_numpy(v).float().view(3, 1, 1) for v in (entry.mean, entry.std))
    image = (image - mean) / (std + EPS)
    centre = torch.linspace(-1, 1, GRID)
    bumps = sum(
        math.exp(-i / 8) * torch.exp(-((centre - x) ** 2 + (centre[:, None] - y) ** 2) / 0.002)
        for i, (x, y) in enumerate(np.random.default_rng(0).uniform(-0.8, 0.8, (12, 2)))
    )
    scores = (bumps / bumps.max()).flatten() if sigma else torch.zeros(GRID**2)
    return entry, image, scores, sigma or 1.0


def measured(kind: str, sigma: float) -> Iterator[None]:
    """One step, after everything is prepared, for its peak memory.

    Freed blocks are given back at once (glibc's M_MMAP_THRESHOLD), so that memory is what the form
    needs and not what a heap keeps between thousands of small blocks. That costs time, so the timed
    steps do without.
    """
    ctypes.CDLL(None).mallopt(-3, 1 << 20)
    entry, image, scores, sigma = problem(sigma)
    step = dense(image, scores, sigma) if kind == "dense" else sparse(entry, scores, sigma)
    yield
    step()


def main() -> None:
    """Measure the fields one after the other."""
    rows = []
    for name, given in FIELDS.items():
        entry, image, scores, sigma = problem(given)
        steps = {"dense": dense(image, scores, sigma), "sparse": sparse(entry, scores, sigma)}
        gap = (steps["dense"]() - steps["sparse"]()).abs().max().item()
        noise = draw_noise([1], NUM_NOISE, GRID**2)[0]
        active = len(hard_topk(scores + sigma * noise, K).unique())
        taken = seconds(steps, 1)
        memory = {kind: peak_mb(measured, kind, given) for kind in steps}
        rows.append([
            name, str(active), f"{taken['dense']:.2f} s", f"{1000 * taken['sparse']:.0f} ms",
            f"{taken['dense'] / taken['sparse']:.0f}x", f"{memory['dense']:.0f} MB",
            f"{memory['sparse']:.0f} MB", f"{memory['dense'] / memory['sparse']:.0f}x", f"{gap:.0e}",
        ])  # fmt: skip
    header = ["scores", f"active of {GRID**2}", "dense", "sparse", "faster", "dense peak",
              "sparse peak", "smaller", "largest difference"]  # fmt: skip
    write(
        __file__,
        f"One image of {SIZES.image_px}x{SIZES.image_px}, k = {K} patches of {SIZES.patch_px}, {NUM_NOISE} samples of noise, float32: mixed patches and gradient of the scores, dense and sparse. "
        "Goal with peaked scores: 50 times faster, 10 times smaller.",
        table(header, rows),
        "With flat scores every cell has to be cut and mixed, and cut once more for the gradient: time is no better than dense, memory stays bounded.",
    )


if __name__ == "__main__":
    main()
