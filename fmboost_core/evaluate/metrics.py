"""Metrics without learned weights. Images are (B, 3, H, W) float32 in [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
FLAT_WINDOW = 17  # px
FLAT_CONTRAST = 3 / 255
OUTLIER = 12 / 255
BLOCK = 32  # px, of colour and contrast


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio over all pixels and channels, (B,) in dB; infinite for equal images."""
    _same_shape(images, reference)
    return -10 * (images - reference).square().mean(dim=(1, 2, 3)).log10()


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004: Gaussian window, sigma 1.5), (B,), by torchmetrics."""
    _same_shape(images, reference)
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise ValueError("SSIM needs torchmetrics: install it with pip install 'fmboost[paper]'") from error
    values = structural_similarity_index_measure(images, reference, data_range=1.0, reduction="none")
    return torch.as_tensor(values).reshape(-1)


def high_frequency_energy(images: Tensor) -> Tensor:
    """Mean square of what a [1 4 6 4 1] / 16 blur removes from the luma, (B,): the detail of one or two pixels.

    Over a set, divide summed energies: a mean of ratios would be ruled by the pictures that have no detail.
    """
    luma = (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    kernel = images.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    padded = F.pad(luma, (2, 2, 2, 2), mode="reflect")
    blurred = F.conv2d(F.conv2d(padded, kernel.view(1, 1, 5, 1)), kernel.view(1, 1, 1, 5))
    return (luma - blurred).square().mean(dim=(1, 2, 3))


def colour_error(images: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute difference of the mean colours of 32 px blocks, (B,) in units of 1/255."""
    _same_shape(images, reference)
    return 255 * F.avg_pool2d(images - reference, BLOCK).abs().mean(dim=(1, 2, 3))


def contrasts(images: Tensor) -> Tensor:
    """Standard deviation of the details of 1, 2, 4 and 8 px in blocks of 32 px: (4, B, 3, H // 32, W // 32).

    Details of a size are what an image loses when squares of twice that size take their mean. 1e-5 is added to
    the variance, since the root of 0 has no gradient.
    """
    height, width = (side // BLOCK * BLOCK for side in images.shape[2:])
    images, found = images[:, :, :height, :width], []
    for size in (1, 2, 4, 8):
        coarser = F.avg_pool2d(images, 2)
        details = images - F.interpolate(coarser, scale_factor=2.0)
        found.append((F.avg_pool2d(details.square(), BLOCK // size) + 1e-5).sqrt())
        images = coarser
    return torch.stack(found)


def contrast_error(images: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute difference of the contrasts of details, (B,) in units of 1/255. A blurred image has too little."""
    _same_shape(images, reference)
    return 255 * (contrasts(images) - contrasts(reference)).abs().mean(dim=(0, 2, 3, 4))


def flat_outliers(images: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Outlying pixels where the reference is flat, and the flat pixels: two masks (B, 1, H, W).

    Flat is where the standard deviation of the reference over 17 x 17 px is below 3/255; an outlier has a channel
    farther than 12/255 from its own 17 x 17 mean. These are the spots and streaks that nobody asked for.
    """
    _same_shape(images, reference)
    grey = reference.mean(dim=1, keepdim=True)
    flat = (_local_mean(grey.square()) - _local_mean(grey).square()).clamp(min=0).sqrt() < FLAT_CONTRAST
    outlying = (images - _local_mean(images)).abs().amax(dim=1, keepdim=True) > OUTLIER
    return outlying & flat, flat


def _local_mean(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, FLAT_WINDOW, stride=1, padding=FLAT_WINDOW // 2, count_include_pad=False)


class GaussianFit:
    """Mean and covariance of feature vectors that arrive in portions, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total = self.products = torch.zeros((), dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        """`vectors` (N, D)."""
        vectors = vectors.double()
        self.count += len(vectors)
        self.total = self.total + vectors.sum(dim=0)
        self.products = self.products + vectors.T @ vectors

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        if self.count < 2:
            raise ValueError(f"a covariance of {self.count} feature vectors: expected at least two")
        return (self.products - self.count * torch.outer(self.mean, self.mean)) / (self.count - 1)


def frechet_distance(a: GaussianFit, b: GaussianFit) -> float:
    """Frechet distance of two Gaussians (Dowson and Landau 1982; FID).

    |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)), the last term as tr (A^(1/2) B A^(1/2))^(1/2) by two symmetric
    eigendecompositions, which tolerate rank-deficient covariances.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    shift = (a.mean - b.mean).square().sum()
    return max(0.0, (shift + a.covariance.trace() + b.covariance.trace() - 2 * cross).item())


def _same_shape(images: Tensor, reference: Tensor) -> None:
    if images.shape != reference.shape or images.ndim != 4:
        raise ValueError(
            f"images of {tuple(images.shape)} against a reference of {tuple(reference.shape)}: expected equal shapes"
        )
