"""Pictures by their digest: the same bytes lie on the disk once, however many documents show them."""

import contextlib
import os
from pathlib import Path


class Contents:
    """Hard links `<root>/ab/<sha256>` to the files of the layout; without them a picture is simply written again.

    A file is never changed in place, so that what is linked stays what its digest says.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)

    def take(self, sha256: str, size_bytes: int, target: str) -> bool:
        """Link a picture that is here to `target`; False if it is not, or cannot be linked once more."""
        if not sha256:
            return False
        try:
            os.link(self._path(sha256), target)
        except OSError:
            return False
        if os.stat(target).st_size == size_bytes:
            return True
        os.unlink(target)  # cut by a crash of the machine: not what its name says
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(sha256))
        return False

    def keep(self, sha256: str, file: str) -> None:
        """Remember a file that is durable."""
        path = self._path(sha256)
        try:
            os.link(file, path)
        except FileNotFoundError:
            with contextlib.suppress(OSError):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                os.link(file, path)
        except OSError:
            return  # it is known already, or the file system knows no links

    def release(self, sha256: str) -> None:
        """Forget a picture that no document shows any more."""
        path = self._path(sha256)
        with contextlib.suppress(OSError):
            if os.stat(path).st_nlink == 1:
                os.unlink(path)

    def _path(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{sha256}"
