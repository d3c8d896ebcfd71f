"""How close a lifted picture is to the truth, and how much it looks like one.

Images are (B, 3, H, W) float32 in [0, 1]. Nothing here has learned weights except `open_fid` and `open_lpips`, which
use files the user already has. Everything random draws from a generator of its own with a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
PATCH = 7  # side of a Laplacian patch (Karras et al. 2018, appendix)
NOISE_FLOOR = (1 / 255) ** 2  # energy below one grey level cannot be seen


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
        raise ValueError("SSIM needs torchmetrics: install it with pip install 'fmboost[train]'") from error
    values = structural_similarity_index_measure(images, reference, data_range=1.0, reduction="none")
    return torch.as_tensor(values).reshape(-1)


def mean_colour_error(images: Tensor, reference: Tensor) -> Tensor:
    """|mean colour - mean colour of the reference|, averaged over the channels, (B,) in units of 1/255.

    The two may have different sizes: only their means meet.
    """
    return 255 * (images.mean(dim=(2, 3)) - reference.mean(dim=(2, 3))).abs().mean(dim=1)


def luma(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W), BT.601 weights on the values as they are (gamma-encoded)."""
    return (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def laplacian_pyramid(images: Tensor, levels: int) -> list[Tensor]:
    """`levels` band-pass images, finest first, each half the size of the one before (Burt and Adelson 1983).

    Band l is G_l - up(G_{l+1}), with G_{l+1} every second pixel of G_l blurred by [1 4 6 4 1] / 16 both ways, and
    up() zero insertion blurred by twice that kernel; borders are mirrored. The low-pass rest is left out. Sides must
    divide by 2^levels.
    """
    if any(side % 2**levels or side < 4 * 2**levels for side in images.shape[2:]):
        raise ValueError(
            f"images of {images.shape[3]} x {images.shape[2]} px do not have {levels} pyramid levels: expected sides "
            f"that are multiples of {2**levels} and at least {4 * 2**levels}"
        )
    bands, current = [], images
    for _ in range(levels):
        smaller = _blur(current)[:, :, ::2, ::2]
        spread = torch.zeros_like(current)
        spread[:, :, ::2, ::2] = smaller
        bands.append(current - 4 * _blur(spread))
        current = smaller
    return bands


def high_frequency_energy(images: Tensor) -> Tensor:
    """Mean square of the finest Laplacian band of the luma, (B,): roughly what lies above a quarter of the sampling
    rate, so what a picture enlarged 2x does not have."""
    return laplacian_pyramid(luma(images), 1)[0].square().mean(dim=(1, 2, 3))


def high_frequency_ratio(images: Tensor, reference: Tensor) -> Tensor:
    """`high_frequency_energy` of the images over that of the reference, (B,): below 1 is blurred, above is noisy.

    Over a set, divide the summed energies: a mean of ratios would be ruled by the photos that have no detail.
    """
    _same_shape(images, reference)
    return high_frequency_energy(images) / high_frequency_energy(reference)


class SlicedWasserstein(NamedTuple):
    levels: tuple[float, ...]
    """One distance per pyramid level, finest first."""
    mean: float


def laplacian_patches(images: Tensor, *, levels: int = 3, patches: int = 128, seed: int = 0) -> list[Tensor]:
    """`patches` random 7x7x3 neighbourhoods an image from each Laplacian level: `levels` tensors (B*patches, 3, 7, 7).

    Places depend on `seed` and the image size alone, so images and reference are seen through the same windows and
    equal sets are at distance 0. Give every image of a set its own seed. Default as in Karras et al. 2018, but with
    the finest levels only: a lift does not touch the coarse ones.
    """
    rng = torch.Generator().manual_seed(seed)
    found = []
    for band in laplacian_pyramid(images, levels):
        b, _, height, width = band.shape
        if min(height, width) < PATCH:
            raise ValueError(
                f"a pyramid level of {width} x {height} px has no {PATCH} x {PATCH} patch: use fewer levels"
            )
        y = torch.randint(height - PATCH + 1, (b * patches,), generator=rng).to(band.device)
        x = torch.randint(width - PATCH + 1, (b * patches,), generator=rng).to(band.device)
        image = torch.arange(b, device=band.device).repeat_interleave(patches)
        window = torch.arange(PATCH, device=band.device)
        rows, columns = y[:, None, None] + window[:, None], x[:, None, None] + window
        found.append(band[image[:, None, None], :, rows, columns].permute(0, 3, 1, 2))
    return found


def sliced_wasserstein(
    images: Tensor,
    reference: Tensor,
    *,
    levels: int = 3,
    patches: int = 128,
    projections: int = 512,
    normalise: str = "reference",
    seed: int = 0,
) -> SlicedWasserstein:
    """Sliced Wasserstein distance of Laplacian patches between two sets of images (Karras et al. 2018, appendix).

    `patches` 7x7x3 neighbourhoods an image and level, normalised as `patch_distance` says, projected on
    `projections` random directions; mean L1 distance of the sorted projections.
    """
    a = laplacian_patches(images, levels=levels, patches=patches, seed=seed)
    b = laplacian_patches(reference, levels=levels, patches=patches, seed=seed)
    return patch_distances(a, b, projections=projections, normalise=normalise, seed=seed)


def patch_distances(
    patches: Sequence[Tensor],
    reference: Sequence[Tensor],
    *,
    projections: int = 512,
    normalise: str = "reference",
    seed: int = 0,
) -> SlicedWasserstein:
    """`sliced_wasserstein` of patches (N, 3, 7, 7) gathered before, one tensor a level in each list.

    Each colour channel of a level is shifted and scaled to mean 0 and deviation 1: ``reference`` takes both numbers
    from the reference set, so too little contrast counts as distance; ``each`` takes them from each set, as Karras et
    al. do, and compares shapes only: a picture with half the contrast is then as good as the truth.
    """
    if normalise not in {"reference", "each"}:
        raise ValueError(f"normalise is {normalise!r}: expected 'reference' or 'each'")
    rng = torch.Generator().manual_seed(seed)
    distances = []
    for a, b in zip(patches, reference, strict=True):
        scale_of = b if normalise == "reference" else a
        a, b = _normalised(a, scale_of).flatten(1), _normalised(b, b).flatten(1)
        directions = F.normalize(torch.randn(a.shape[1], projections, generator=rng), dim=0).to(a)
        distances.append(wasserstein_1d(a @ directions, b @ directions).mean().item())
    return SlicedWasserstein(tuple(distances), sum(distances) / len(distances))


def wasserstein_1d(a: Tensor, b: Tensor) -> Tensor:
    """Wasserstein-1 distance between the columns of a and b, both (N, K), as sets of N equal masses: (K,)."""
    if a.shape != b.shape:
        raise ValueError(f"sets of {tuple(a.shape)} and {tuple(b.shape)} samples: expected equal shapes")
    return (a.sort(dim=0).values - b.sort(dim=0).values).abs().mean(dim=0)


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Frechet distance of the Gaussians fitted to features (N, D) and (M, D) (Dowson and Landau 1982; FID).

    |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)), in float64, the last term as tr (A^(1/2) B A^(1/2))^(1/2) by two
    symmetric eigendecompositions, which rank-deficient covariances do not upset.
    """
    if features_a.ndim != 2 or features_b.ndim != 2 or features_a.shape[1] != features_b.shape[1]:
        raise ValueError(
            f"features of {tuple(features_a.shape)} and {tuple(features_b.shape)}: expected (N, D) and (M, D)"
        )
    if min(len(features_a), len(features_b)) < 2:
        raise ValueError("a covariance needs at least two feature vectors in each set")
    a, b = features_a.double(), features_b.double()
    cov_a, cov_b = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1)
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    shift = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return max(0.0, (shift + cov_a.trace() + cov_b.trace() - 2 * cross).item())


def patch_features(images: Tensor, *, size: int = 32, levels: int = 3) -> Tensor:
    """Texture statistics of the non-overlapping `size` px patches, without weights: (patches, 10 * levels) float32.

    On each of the `levels` finest Laplacian bands of luma and of two colour differences (blue - luma, red - luma),
    over the patch:

    - four: log energy of the luma in four orientations (0, 45, 90, 135 degrees), each the even and odd response of a
      7x7 Gabor pair of unit norm, wavelength 3.5 px of the band, sigma 1.75 px;
    - four: sparsity of those, log (mean |r|)^2 / mean r^2 of the pair's modulus r: 0 for even texture, below for edges;
    - two: log energy of the colour differences.

    Energies have the floor (1/255)^2 added, so what cannot be seen does not count. Sides must be multiples of `size`;
    images are cropped at the right and bottom where they are not.
    """
    height, width = (side // size * size for side in images.shape[2:])
    if not height or not width:
        raise ValueError(f"images of {images.shape[3]} x {images.shape[2]} px hold no patch of {size} px")
    images = images[:, :, :height, :width]
    y = luma(images)
    channels = torch.cat([y, images[:, 2:] - y, images[:, :1] - y], dim=1)
    bank = _gabor_bank().to(images)
    features = []
    for level, band in enumerate(laplacian_pyramid(channels, levels)):
        side = size // 2**level
        padded = F.pad(band[:, :1], (PATCH // 2,) * 4, mode="reflect")
        power = F.conv2d(padded, bank).square().unflatten(1, (4, 2)).sum(dim=2)
        energy = F.avg_pool2d(power, side) + NOISE_FLOOR
        modulus = F.avg_pool2d((power + NOISE_FLOOR).sqrt(), side)
        colour = F.avg_pool2d(band[:, 1:].square(), side) + NOISE_FLOOR
        features += [energy.log(), (modulus.square() / energy).log(), colour.log()]
    return torch.cat(features, dim=1).permute(0, 2, 3, 1).flatten(0, 2)


def periodicity(residual: Tensor, period: int, besides: int = 1) -> float:
    """How far a grid of `period` px stands out in the spectrum of the residual (B, C, H, W): about 1 without one.

    The largest of the `harmonic_ratios`, each averaged (geometrically) over the images first; over ten images or more,
    chance alone stays below about 1.5.
    """
    return harmonic_ratios(residual, period, besides).log().mean(dim=0).exp().max().item()


def harmonic_ratios(residual: Tensor, period: int, besides: int = 1) -> Tensor:
    """(B, C, H, W) -> (B, harmonics): power at each harmonic of 1/period over that of its neighbours.

    Power is that of the Hann-windowed residual, cropped to whole periods, summed over channels. A harmonic (i, j),
    i and j < period, one of each conjugate pair, counts the 3x3 frequencies about it; its neighbours are those 3 to 8
    bins away along the horizontal axis (along the vertical one where j is 0), so that the horizontal and vertical
    ridges of natural spectra cancel. Harmonics of the period `besides` are left out: of 1 that is the mean alone.
    """
    height, width = (side // period * period for side in residual.shape[2:])
    if period < 2 or min(height, width) < 20 * period:
        raise ValueError(
            f"a period of {period} px cannot be told in {residual.shape[3]} x {residual.shape[2]} px: expected a "
            "period from 2 and at least 20 of them on a side"
        )
    residual = residual[:, :, :height, :width].float()
    rows, columns = (torch.hann_window(n, device=residual.device) for n in (height, width))
    spectrum = torch.fft.fft2((residual - residual.mean(dim=(2, 3), keepdim=True)) * rows[:, None] * columns)
    power = spectrum.abs().square().sum(dim=1)
    near = torch.arange(-1, 2, device=residual.device)
    far = torch.cat([torch.arange(-8, -2), torch.arange(3, 9)]).to(residual.device)
    ratios = []
    for i in range(period):
        for j in range(period):
            known = i * besides % period == 0 and j * besides % period == 0
            if known or (i, j) > (-i % period, -j % period):
                continue
            y, x = i * height // period, j * width // period
            line = power[:, ((y + near) % height)[:, None], (x + near) % width].mean(dim=(1, 2))
            beside = ((y + far)[:, None], x + near) if j == 0 else ((y + near)[:, None], x + far)
            level = power[:, beside[0] % height, beside[1] % width].mean(dim=(1, 2))
            tiny = torch.finfo(level.dtype).tiny
            ratios.append(line.clamp(min=tiny) / level.clamp(min=tiny))
    return torch.stack(ratios, dim=1)


def open_fid(weights: str | Path) -> Any:
    """torchmetrics' FrechetInceptionDistance on the user's Inception file: ``update(images, real=...)``, ``compute()``.

    `weights` is torch-fidelity's ``weights-inception-2015-12-05-6726825d.pth``. Never downloads: raises ValueError
    where the file or a package is missing.
    """
    if not Path(weights).is_file():
        raise ValueError(
            f"no Inception weights at {weights}: FID is only computed with a file you have, none is loaded"
        )
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        return FrechetInceptionDistance(feature=2048, normalize=True, feature_extractor_weights_path=str(weights))
    except ImportError as error:  # torchmetrics says it this way too where torch-fidelity is missing
        raise ValueError("FID needs torchmetrics and torch-fidelity: install both with pip") from error


def open_lpips(network: str = "alex") -> Any:
    """torchmetrics' LPIPS (Zhang et al. 2018): ``metric(images, reference)`` on images in [0, 1].

    `network` is ``alex``, ``vgg`` or ``squeeze``; its ImageNet weights must lie in torch's hub folder already. Never
    downloads: raises ValueError where the file or a package is missing.
    """
    files = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}
    if network not in files:
        raise ValueError(f"LPIPS network {network!r}: expected one of {', '.join(files)}")
    path = Path(torch.hub.get_dir()) / "checkpoints" / files[network]
    if not path.is_file():
        raise ValueError(
            f"LPIPS needs {files[network]} of torchvision in {path.parent}, which is never downloaded here"
        )
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        return LearnedPerceptualImagePatchSimilarity(net_type=network, normalize=True)  # pyright: ignore
    except ImportError as error:
        raise ValueError("LPIPS needs torchmetrics and torchvision: install both with pip") from error


def _same_shape(images: Tensor, reference: Tensor) -> None:
    if images.shape != reference.shape or images.ndim != 4:
        raise ValueError(
            f"images of {tuple(images.shape)} against a reference of {tuple(reference.shape)}: expected equal shapes"
        )


def _blur(images: Tensor) -> Tensor:
    kernel = images.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    channels = images.shape[1]
    rows = kernel.view(1, 1, 5, 1).expand(channels, 1, 5, 1)
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    return F.conv2d(F.conv2d(padded, rows, groups=channels), rows.transpose(2, 3), groups=channels)


def _normalised(patches: Tensor, like: Tensor) -> Tensor:
    deviation, mean = torch.std_mean(like, dim=(0, 2, 3), keepdim=True)
    return (patches - mean) / deviation.clamp(min=1e-8)


def _gabor_bank(wavelength: float = 3.5, sigma: float = 1.75) -> Tensor:
    """(8, 1, 7, 7): even and odd filter of each orientation; the even ones without mean, all of norm 1."""
    grid = torch.arange(PATCH) - PATCH // 2.0
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    envelope = torch.exp(-(x**2 + y**2) / (2 * sigma**2))
    filters = []
    for angle in (0.0, 0.25, 0.5, 0.75):
        phase = 2 * math.pi / wavelength * (x * math.cos(math.pi * angle) + y * math.sin(math.pi * angle))
        even = envelope * phase.cos()
        filters += [even - envelope * even.sum() / envelope.sum(), envelope * phase.sin()]
    return torch.stack([f / f.norm() for f in filters])[:, None]
