"""The fetcher's own failures, and what MongoDB's mean to callers."""

import contextlib
from collections.abc import Iterator

from pymongo.errors import (
    AutoReconnect,
    ConfigurationError,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    WaitQueueTimeoutError,
)

from libs.common.errors import Conflict, Invalid, NotFound, Unavailable


class JobNotFound(NotFound):
    slug = "fetch-job-not-found"
    title = "No such fetch job"


class FileNotFetched(NotFound):
    slug = "fetched-file-not-found"
    title = "This job fetched no such file"


class DocumentNotFound(NotFound):
    slug = "source-document-not-found"
    title = "No such document"


class SourceNotFound(NotFound):
    slug = "source-not-found"
    title = "No such database or collection"


class DocumentIdRefused(Invalid):
    slug = "document-id-refused"
    title = "This cannot be the id of a document here"


class WrongJobState(Conflict):
    slug = "fetch-job-state"
    title = "The job is in a state that does not allow this"


class NothingToRetry(Conflict):
    slug = "nothing-to-retry"
    title = "No failed picture of this job matches"


class FilterRefused(Invalid):
    slug = "filter-refused"
    title = "The filter uses something that is not allowed"


class NameRefused(Invalid):
    slug = "source-name-refused"
    title = "This name cannot be used"


class ProcessingRefused(Invalid):
    slug = "processing-refused"
    title = "The pictures cannot be processed like this"


class WriteBackRefused(Invalid):
    slug = "write-back-refused"
    title = "Nothing can be written back like this"


class JobStoreUnavailable(Unavailable):
    slug = "job-store-unavailable"
    title = "The fetcher's database does not answer"


class PictureStoreUnavailable(Unavailable):
    slug = "picture-store-unavailable"
    title = "The picture store does not answer"


class SourceUnavailable(Unavailable):
    slug = "source-unavailable"
    title = "The source database does not answer"


class SourceRefused(Invalid):
    slug = "source-refused"
    title = "The source database refused the query"


@contextlib.contextmanager
def job_store_errors() -> Iterator[None]:
    """Turn an absent job store into the error that clients may see; duplicate keys and surprises pass unchanged."""
    try:
        yield
    except (AutoReconnect, WaitQueueTimeoutError, ConfigurationError) as error:
        raise JobStoreUnavailable("Nothing was changed; try again in a moment", retry_after_s=2) from error


@contextlib.contextmanager
def source_errors() -> Iterator[None]:
    """Turn what a source database says into errors that name no host and no credentials."""
    try:
        yield
    except ExecutionTimeout as error:
        raise SourceRefused("The query took too long; filter by an indexed field or fetch fewer documents") from error
    except OperationFailure as error:
        raise SourceRefused(f"MongoDB refused the query (code {error.code})") from error
    except PyMongoError as error:
        raise SourceUnavailable("Try again in a moment", retry_after_s=5) from error
