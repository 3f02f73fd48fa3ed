"""Pictures by their digest: the same bytes lie on the disk once, however many documents show them."""

import contextlib
import os
from pathlib import Path


class Contents:
    """Hard links `<root>/ab/<sha256>` to the files of the layout; without them a picture is simply written again.

    A file is never changed in place, so that what is linked stays what its digest says.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def take(self, sha256: str, size_bytes: int, target: Path) -> bool:
        """Link a picture that is here to `target`; False if it is not, or cannot be linked once more."""
        if not sha256:
            return False
        try:
            os.link(self._path(sha256), target)
        except OSError:
            return False
        if target.stat().st_size == size_bytes:
            return True
        target.unlink()  # cut by a crash of the machine: not what its name says
        self._path(sha256).unlink(missing_ok=True)
        return False

    def keep(self, sha256: str, file: Path) -> None:
        """Remember a file that is durable."""
        path = self._path(sha256)
        try:
            os.link(file, path)
        except FileNotFoundError:
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(file, path)
        except OSError:
            return  # it is known already, or the file system knows no links

    def release(self, sha256: str) -> None:
        """Forget a picture that no document shows any more."""
        path = self._path(sha256)
        with contextlib.suppress(OSError):
            if path.stat().st_nlink == 1:
                path.unlink()

    def _path(self, sha256: str) -> Path:
        return self._root / sha256[:2] / sha256
