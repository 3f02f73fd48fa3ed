"""Which blob store the settings ask for."""

from dataclasses import replace

from services.images.adapters.folder_blobs import FolderBlobStore
from services.images.adapters.links import NginxLinks
from services.images.adapters.s3_blobs import S3BlobStore
from services.images.ports import BlobStore
from services.images.settings import ImagesSettings


def blob_store(settings: ImagesSettings) -> BlobStore:
    """The store of TELAR_IMAGES_BLOB_URL; `prepare` opens it."""
    if (settings.blob_url or "").startswith("s3:"):
        account = replace(settings.s3_account(settings.blob_url or ""), link_endpoint=settings.link_url)
        return S3BlobStore(account, max_file_bytes=settings.max_file_size, gives_links=settings.s3_links)
    links = None
    if settings.link_url is not None and settings.link_secret is not None:
        links = NginxLinks(settings.link_url, settings.link_secret.get_secret_value())
    return FolderBlobStore(settings.blob_folder, links=links)
