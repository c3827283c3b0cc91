"""Resized pictures are kept in the user's cache, for this run and others, while there is room."""

import importlib.metadata
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Lock

from PIL import Image
from torch import Tensor

from delta_transfer.data.image_cache.packs import ENDING, UNFINISHED, Pack, PackWriter, Place
from delta_transfer.data.image_cache.reader import KeptPictures
from delta_transfer.data.images.resize import Resize
from delta_transfer.utils.files import cache_root, fingerprint

logger = logging.getLogger(__name__)

GIB = 1024**3
MOST = 20 * GIB
"""What the pictures may take where no limit is given: so much, or a fifth of the disk's rest."""

_FORMAT = 1  # to be raised where the same picture would be kept otherwise
_LARGEST = GIB  # bytes after which another pack is begun: a system may not map more than it has
_RESIZED_BY = ("pillow", "torchvision")
_LEFT_ALONE = 24 * 60 * 60.0  # seconds after which an unfinished pack is taken for left over


class Keeper(ExitStack):
    """Keeps pictures while they are looked at; a context manager. Threads may share it.

    What cannot be read or written is no error: the pictures are then decoded each time.

    Args:
        wanted: how the pictures of each split are to be resized, by its name.
        limit: bytes that all pictures in the cache may take; None for `MOST` or less. The packs
            that were not used for the longest time are removed to make room.
    """

    def __init__(self, wanted: Mapping[str, Sequence[Resize]], *, limit: int | None = None) -> None:
        super().__init__()
        folder = cache_root() / "pictures"
        self._wanted = wanted
        self._room = _Room(folder, limit)
        resizes = {resize for some in wanted.values() for resize in some}
        self._shelves = {resize: _Shelf(folder, resize, self._room) for resize in resizes}
        for shelf in self._shelves.values():
            self.callback(shelf.close)

    def keep(self, split: str, path: str, digest: str, image: Image.Image) -> None:
        """Keeps a picture as it is needed, unless that was done before.

        Args:
            split: where the picture is from, by name.
            path: of the picture in the split.
            digest: of its pixels.
            image: the picture in RGB.
        """
        for resize in self._wanted.get(split, ()):
            self._shelves[resize].keep(path, digest, image)

    def finish(self) -> KeptPictures:
        """What is kept of the pictures seen so far."""
        return KeptPictures({resize: shelf.finish() for resize, shelf in self._shelves.items()})


class _Room:
    """How much space there is for packs; the oldest make place for new ones."""

    def __init__(self, folder: Path, limit: int | None) -> None:
        self.lock = Lock()
        self.open = True
        self.in_use: set[Path] = set()
        self._taken = 0
        self._packs: list[tuple[float, int, Path]] = []
        try:
            self._look(folder)
            self._limit = self._default(folder) if limit is None else limit
        except OSError as error:
            self._limit = 0
            self.close(str(error))

    def make(self, size: int) -> bool:
        """Whether so many bytes more may be written; packs that nobody uses are removed for it."""
        while self.open and self._taken + size > self._limit:
            oldest = next((pack for pack in self._packs if pack[2] not in self.in_use), None)
            if oldest is None:
                self.close(f"they would take more than {self._limit / GIB:.3g} GiB")
                break
            self._packs.remove(oldest)
            with suppress(OSError):  # it stays, as where it is open on Windows
                oldest[2].unlink(missing_ok=True)
                self._taken -= oldest[1]
        if self.open:
            self._taken += size
        return self.open

    def close(self, reason: str) -> None:
        """No more is written; it is said once."""
        if self.open:
            self.open = False
            logger.info("pictures that are not kept in the cache are decoded each time: %s", reason)

    def _look(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(f"*/.*{UNFINISHED}"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _LEFT_ALONE:
                    path.unlink()
        for path in folder.glob(f"*/*{ENDING}"):
            with suppress(FileNotFoundError):  # removed by another run meanwhile
                status = path.stat()
                self._packs.append((status.st_mtime, status.st_size, path))
        self._packs.sort()
        self._taken = sum(size for _, size, _ in self._packs)

    def _default(self, folder: Path) -> int:
        return min(MOST, (shutil.disk_usage(folder).free + self._taken) // 5)


class _Shelf:
    """The pictures that were resized in one way."""

    def __init__(self, folder: Path, resize: Resize, room: _Room) -> None:
        versions = [f"{name} {importlib.metadata.version(name)}" for name in _RESIZED_BY]
        told = "\n".join([f"format {_FORMAT}", *versions, repr(resize)])
        self._folder = folder / fingerprint([told.encode()])[:16]
        self._resize = resize
        self._room = room
        self._writer: PackWriter | None = None
        self._known: dict[str, tuple[Pack, Place]] = {}
        self._whole: set[str] = set()
        self._digests: dict[str, str] = {}
        for path in sorted(self._folder.glob(f"*{ENDING}")):
            self._open(path)

    def keep(self, path: str, digest: str, image: Image.Image) -> None:
        self._digests[path] = digest
        if digest in self._whole or self._is_kept(digest) or not self._room.open:
            return
        pixels = self._resize(image)
        with self._room.lock:
            if digest in self._whole or not self._room.make(pixels.nbytes):
                return
            try:
                self._write(digest, pixels)
            except OSError as error:
                self._give_up(error)

    def finish(self) -> dict[str, tuple[Pack, Place]]:
        """Where the picture of each path is, as far as it is kept."""
        try:
            self._finish_pack()
        except OSError as error:
            self._give_up(error)
        return {
            path: self._known[digest]
            for path, digest in self._digests.items()
            if digest in self._known and digest in self._whole
        }

    def close(self) -> None:
        """Leaves nothing behind that is not finished."""
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    def _write(self, digest: str, pixels: Tensor) -> None:
        if self._writer is None:
            self._writer = PackWriter(self._folder)
        self._writer.add(digest, pixels)
        self._whole.add(digest)
        if self._writer.size >= _LARGEST:
            self._finish_pack()

    def _finish_pack(self) -> None:
        if self._writer is None:
            return
        pack = self._writer.finish()
        self._writer = None
        self._room.in_use.add(pack.path)
        self._known.update({digest: (pack, place) for digest, place in pack.places.items()})

    def _give_up(self, error: OSError) -> None:
        self._room.close(str(error))
        self.close()

    def _open(self, path: Path) -> None:
        try:
            pack = Pack(path)
        except ValueError as error:
            logger.debug("%s: its pictures are kept anew", error)
            _remove(path)
        except OSError as error:  # removed by another run meanwhile
            logger.debug("%s is not used: %s", path, error)
        else:
            self._known.update({digest: (pack, place) for digest, place in pack.places.items()})

    def _is_kept(self, digest: str) -> bool:
        """Whether a pack has it whole; a damaged pack goes."""
        if digest not in self._known:
            return False
        pack, place = self._known[digest]
        try:
            whole = pack.is_whole(place)
        except OSError as error:  # as above
            logger.debug("%s is not used: %s", pack.path, error)
            whole = False
        else:
            if not whole:
                logger.debug("%s is damaged: its pictures are kept anew", pack.path)
                _remove(pack.path)
        with self._room.lock:
            if not whole:
                self._known.pop(digest, None)
                return False
            if pack.path not in self._room.in_use:
                self._room.in_use.add(pack.path)
                with suppress(OSError):  # another user's
                    os.utime(pack.path)
            self._whole.add(digest)
        return True


def _remove(path: Path) -> None:
    with suppress(OSError):  # gone already, another user's, or open, which Windows minds
        path.unlink()
