"""Which blob store the settings ask for."""

from urllib.parse import unquote, urlsplit

from services.images.adapters.folder_blobs import FolderBlobStore
from services.images.adapters.links import NginxLinks
from services.images.adapters.s3_blobs import S3Account, S3BlobStore
from services.images.ports import BlobStore
from services.images.settings import ImagesSettings


def blob_store(settings: ImagesSettings) -> BlobStore:
    """The store of TELAR_IMAGES_BLOB_URL; `prepare` opens it."""
    url = urlsplit(settings.blob_url or "")
    if url.scheme == "s3":
        account = S3Account(
            bucket=url.netloc,
            prefix=unquote(url.path).strip("/"),
            region=settings.s3_region,
            endpoint=settings.s3_endpoint,
            link_endpoint=settings.link_url,
            access_key_id=settings.s3_access_key_id,
            secret_access_key=settings.s3_secret_access_key,
            allow_http=settings.s3_allow_http,
        )
        return S3BlobStore(account, max_file_bytes=settings.max_file_size, gives_links=settings.s3_links)
    links = None
    if settings.link_url is not None and settings.link_secret is not None:
        links = NginxLinks(settings.link_url, settings.link_secret.get_secret_value())
    return FolderBlobStore(settings.blob_folder, links=links)
