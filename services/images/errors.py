"""What can go wrong with images, each failure with its stable slug."""

from collections.abc import Mapping, Sequence

from libs.common.errors import (
    Conflict,
    FieldError,
    Forbidden,
    Invalid,
    Kind,
    Malformed,
    NotFound,
    PreconditionFailed,
    StorageFull,
    TelarError,
    TooLarge,
    Unavailable,
    UnsupportedMedia,
    UpstreamFailed,
)


class ImageNotFound(NotFound):
    slug = "image-not-found"
    title = "No such image"

    def __init__(self) -> None:
        super().__init__("There is no such image, or it is not shared with you")


class ImageRejected(Invalid):
    """The file was looked at and is not safe, not whole, or not what it is called; nothing of it was kept."""

    slug = "image-rejected"
    title = "The image was rejected"

    def __init__(self, reason: str) -> None:
        super().__init__(reason, errors=[FieldError("/body/file", reason)])


class DigestMismatch(Invalid):
    """The bytes that arrived are not those whose digest was announced; upload the file again."""

    slug = "digest-mismatch"
    title = "The file's digest is not the announced one"


class ImageProtected(Conflict):
    slug = "image-protected"
    title = "The image is protected against deletion"


class ImageInUse(Conflict):
    """Templates or machines were made of the image; delete them first. `used_by` names those that you may see."""

    slug = "image-in-use"
    title = "The image is in use"

    def __init__(self, detail: str, used_by: Sequence[Mapping[str, str]]) -> None:
        super().__init__(detail, extensions={"used_by": list(used_by)})


class BlobRotten(Conflict):
    """The image's file no longer has the digest that it had when it was verified, or is gone.

    Upload the same file again: that brings it back for every image that shares it. Then activate the image.
    """

    slug = "blob-rotten"
    title = "The image's file is damaged"


class MemberUnknown(Invalid):
    """An image can be shared with users that there are: by id, name or external id."""

    slug = "member-unknown"
    title = "Some members are not known"


class ImageState(Conflict):
    slug = "image-state"
    title = "The image's status does not allow this"


class FileTooLarge(TooLarge):
    slug = "image-too-large"
    title = "The image file is too large"


class NotMultipart(UnsupportedMedia):
    slug = "not-multipart"
    title = "An upload must be multipart/form-data"


class MalformedUpload(Malformed):
    slug = "malformed-upload"
    title = "The upload cannot be read"


class UploadInterrupted(Malformed):
    slug = "upload-interrupted"
    title = "The upload ended before the whole file had arrived"


class UploadExpired(Unavailable):
    """The upload's lease ran out while it was under way, so that its space was given back; upload the file again."""

    slug = "upload-expired"
    title = "The upload was given up"


class UploadBusy(TelarError):
    """Another connection is writing to this upload; try again when it has ended."""

    kind = Kind.LOCKED
    slug = "upload-busy"
    title = "The upload is being written to"


class StagedBytesLost(Unavailable):
    """The store holds less of an upload than was recorded; it cannot go on."""

    slug = "staged-bytes-lost"
    title = "A part of the upload was lost"


class UploadNotFound(NotFound):
    slug = "upload-not-found"
    title = "No such upload"

    def __init__(self) -> None:
        super().__init__("There is no such upload, or it is not yours")


class UploadGone(TelarError):
    """The upload was ended before its file was whole, or its file was refused; begin a new one."""

    kind = Kind.GONE
    slug = "upload-gone"
    title = "The upload has ended"


class UploadTakenOver(Conflict):
    """A newer request writes to this upload; ask for its Upload-Offset before you send more."""

    slug = "upload-taken-over"
    title = "The upload was taken over by a newer request"


class OffsetMismatch(Conflict):
    """The bytes do not continue those that are there; go on from the offset that is told."""

    slug = "upload-offset-mismatch"
    title = "The upload goes on at another offset"

    def __init__(self, offset_bytes: int) -> None:
        super().__init__(f"The upload goes on at Upload-Offset {offset_bytes}")
        self.offset_bytes = offset_bytes


class PartTooLong(TooLarge):
    """The request brings more bytes than Upload-Length said; what lies beyond is not taken."""

    slug = "upload-part-too-long"
    title = "More bytes than the upload's length"


class ChecksumMismatch(TelarError):
    """The request's bytes do not have the digest that Upload-Checksum says; none of them counts, send them again."""

    kind = Kind.CHECKSUM_MISMATCH
    slug = "checksum-mismatch"
    title = "The bytes were changed on their way"


class MalformedTusRequest(Malformed):
    slug = "malformed-tus-request"
    title = "A tus header field is missing or cannot be read"


class TusVersionUnsupported(PreconditionFailed):
    """Telar speaks tus 1.0.0: send `Tus-Resumable: 1.0.0` with each request but OPTIONS."""

    slug = "tus-version-unsupported"
    title = "The tus version is missing or not supported"


class NotTusBytes(UnsupportedMedia):
    slug = "not-tus-bytes"
    title = "The bytes of an upload must be application/offset+octet-stream"


class BlobStoreFull(StorageFull):
    slug = "blob-store-full"
    title = "No space is left for images"


class BlobStoreUnavailable(Unavailable):
    slug = "blob-store-unavailable"
    title = "The image files cannot be reached"


class LinkInvalid(Forbidden):
    """A link to an image's file is good for a short time only, and only as it was given; ask for a new one."""

    slug = "link-invalid"
    title = "The link is not valid, or no longer"

    def __init__(self) -> None:
        super().__init__("Get a new link from the image's download with ?redirect=true")


class SourceRefused(UpstreamFailed):
    """The server that an image is imported from does not give the file; look whether the URL is right."""

    slug = "source-refused"
    title = "The source does not give the file"


class SourceInterrupted(Unavailable):
    """The server that an image is imported from could not be reached or stopped in the middle; it is tried again."""

    slug = "source-interrupted"
    title = "The source was interrupted"


class SourceChanged(Unavailable):
    """The file at the source is not the one of which a part is here already; the download begins anew."""

    slug = "source-changed"
    title = "The file at the source has changed"


class CompressedFileDamaged(Invalid):
    slug = "compressed-file-damaged"
    title = "The compressed file cannot be unpacked"


class NotConvertible(Conflict):
    slug = "not-convertible"
    title = "The image cannot be converted"


class ConverterMissing(Unavailable):
    """Conversion needs tools that this server does not have; an operator installs them."""

    slug = "converter-missing"
    title = "This server cannot convert images"


class ConversionFailed(UpstreamFailed):
    slug = "conversion-failed"
    title = "The image could not be converted"


class ConversionOutgrew(TooLarge):
    """The converted image became larger than was expected and reserved for it."""

    slug = "conversion-outgrew"
    title = "The converted image is too large"


class RangeNotSatisfiable(TelarError):
    kind = Kind.RANGE_NOT_SATISFIABLE
    slug = "range-not-satisfiable"
    title = "The file has no such range"
