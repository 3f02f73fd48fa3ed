"""Blobs in a bucket of S3 or of anything that speaks its protocol (MinIO, Ceph, Garage, …), through obstore."""

from services.images.adapters.s3_blobs.store import S3BlobStore

__all__ = ["S3BlobStore"]
