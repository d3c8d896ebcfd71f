"""Pictures in folders, and in the .tar shards of the webdataset format."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class ShardPhoto:
    """A picture inside a shard, an uncompressed tar file."""

    shard: Path
    name: str  # inside the shard
    offset: int  # bytes
    size: int

    @property
    def stem(self) -> str:
        return f"{self.shard.stem}.{PurePosixPath(self.name).with_suffix('').as_posix().replace('/', '_')}"

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"

    def open(self) -> BinaryIO:
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.size))


Photo = Path | ShardPhoto


def read_bytes(photo: Photo) -> bytes:
    """The file's contents."""
    return photo.open().read() if isinstance(photo, ShardPhoto) else photo.read_bytes()


def find_photos(folder: str | Path) -> list[Photo]:
    """Every image file under `folder`, sorted, then every image in the shards (.tar) under it; or those of one shard.

    Only the headers of a shard are read, not its pictures. Raises ValueError where there is none, or a shard is
    damaged or compressed.
    """
    folder = Path(folder)
    files = sorted(folder.rglob("*")) if folder.is_dir() else [folder] if folder.is_file() else []
    photos: list[Photo] = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES and folder.is_dir()]
    for shard in (p for p in files if p.suffix.lower() == ".tar"):
        photos += _shard_photos(shard)
    if not photos:
        raise ValueError(
            f"no photos in {folder}: expected a folder with {', '.join(sorted(IMAGE_SUFFIXES))} files, or with .tar "
            "shards of them"
        )
    return photos


def _shard_photos(shard: Path) -> list[ShardPhoto]:
    try:
        with tarfile.open(shard, "r:") as tar:
            members = [ShardPhoto(shard, m.name, m.offset_data, m.size) for m in tar if m.isfile()]
    except tarfile.TarError as error:
        raise ValueError(f"{shard} is no shard ({error}): expected a whole, uncompressed tar file") from error
    return [m for m in members if PurePosixPath(m.name).suffix.lower() in IMAGE_SUFFIXES]
