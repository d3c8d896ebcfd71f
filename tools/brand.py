"""Draw the project's icon (400x400) and banner (21:9), which the ComfyUI registry shows.

    python -m tools.brand

A coarse grid of squares goes over, along a curve, into a fine one: latents before and after a lift.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SHARP = 4  # drawn so many times larger, then reduced
DARK, LIGHT = (23, 20, 38), (250, 248, 255)
Colour = tuple[int, int, int]


def mix(a: Colour, b: Colour, share: float) -> Colour:
    return tuple(round((1 - share) * x + share * y) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def shade(u: float, v: float) -> Colour:
    """The picture behind the squares at (u, v) in [0, 1]: a sun over a hill."""
    sky = mix((255, 138, 92), (98, 62, 190), min(1.0, 1.4 * (1 - v)))
    if (u - 0.5) ** 2 + (v - 0.45) ** 2 < 0.055:
        return (255, 224, 130)
    return (46, 33, 92) if v > 0.72 + 0.35 * (u - 0.35) ** 2 else sky


def squares(
    pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], count: int, at: Callable[[float, float], Colour]
) -> None:
    """`count` x `count` squares in `box`, each of the picture's colour at its centre."""
    left, top, right, bottom = box
    width, height = (right - left) / count, (bottom - top) / count
    for i in range(count):
        for j in range(count):
            x, y, gap = left + i * width, top + j * height, 0.06 * width
            corners = [x + gap, y + gap, x + width - gap, y + height - gap]
            pen.rounded_rectangle(corners, radius=0.16 * width, fill=at((i + 0.5) / count, (j + 0.5) / count))


def pair(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int]) -> None:
    """The coarse grid below left, the fine one above right, and a curve with an arrow's head between them."""
    left, top, right, bottom = box
    side = right - left
    small, large = round(0.3 * side), round(0.6 * side)
    squares(pen, (left, bottom - small, left + small, bottom), 4, shade)
    squares(pen, (right - large, top, right, top + large), 16, shade)
    start, end = (left + 0.15 * side, bottom - 0.34 * side), (right - 0.64 * side, top + 0.22 * side)
    points = []
    for k in range(61):
        t = k / 60
        x = (1 - t) ** 2 * start[0] + 2 * t * (1 - t) * start[0] + t**2 * end[0]
        y = (1 - t) ** 2 * start[1] + 2 * t * (1 - t) * end[1] + t**2 * end[1]
        points.append((x, y))
    pen.line(points[:-4], fill=LIGHT, width=round(0.028 * side), joint="curve")
    size = 0.05 * side
    pen.polygon([end, (end[0] - 1.5 * size, end[1] - size), (end[0] - 1.5 * size, end[1] + size)], fill=LIGHT)


def icon() -> Image.Image:
    side = 400 * SHARP
    picture = Image.new("RGB", (side, side), DARK)
    margin = round(0.1 * side)
    pair(ImageDraw.Draw(picture), (margin, margin, side - margin, side - margin))
    return picture.resize((400, 400), Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    width, height = 1680 * 2, 720 * 2
    picture = Image.new("RGB", (width, height), DARK)
    pen = ImageDraw.Draw(picture)
    margin = round(0.12 * height)
    pair(pen, (margin, margin, height - margin, height - margin))
    x = height + margin // 2
    for y, size, text in (
        (0.34, 300, "FMBoost"),
        (0.6, 92, "Upscale latents 2x and 4x"),
        (0.7, 92, "in four steps, final"),
    ):
        font = ImageFont.load_default(size)
        pen.text((x, y * height), text, fill=LIGHT, font=font, anchor="lm")
    return picture.resize((1680, 720), Image.Resampling.LANCZOS)


def main() -> None:
    icon().quantize(128).save(IMAGES / "icon.png", optimize=True)
    banner().quantize(128).save(IMAGES / "banner.png", optimize=True)


if __name__ == "__main__":
    main()
