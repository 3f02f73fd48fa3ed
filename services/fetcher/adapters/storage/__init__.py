"""The documented layout, in a folder or in a bucket, behind `ports.PictureStore`."""

from services.fetcher.adapters.storage.bucket import BucketStore
from services.fetcher.adapters.storage.folder import FolderStore

__all__ = ["BucketStore", "FolderStore"]
