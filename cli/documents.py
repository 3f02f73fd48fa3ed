"""`telar documents`: the fetcher's job store as one file, through the driver, of whichever server speaks its protocol.

The file is a row of BSON documents, each `{"collection": name, "document": …}`. Indexes are not in it: `telar migrate
fetcher` makes them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any, BinaryIO

from bson import decode_file_iter, encode
from bson.codec_options import CodecOptions
from bson.errors import InvalidBSON
from bson.raw_bson import DEFAULT_RAW_BSON_OPTIONS, RawBSONDocument
from pymongo import MongoClient
from pymongo.errors import PyMongoError

_BATCH = 500
_TIMEOUT_MS = 10_000
_Client = MongoClient[RawBSONDocument]


def save(uri: str, database: str, target: BinaryIO) -> int:
    """Write every document of the database to the file; how many there were."""
    count = 0
    with _connected(uri) as client:
        for name in sorted(client[database].list_collection_names()):
            for document in client[database][name].find():
                target.write(encode({"collection": name, "document": document}))
                count += 1
    target.flush()
    return count


def load(uri: str, database: str, source: BinaryIO) -> int:
    """Put a file's documents into the database; how many there were.

    Raises FileExistsError if one of its collections holds anything: what is there is not mixed with what was saved.
    """
    count = 0
    with _connected(uri) as client:
        for name, documents in groupby(_entries(source), key=lambda entry: str(entry["collection"])):
            collection = client[database][name]
            if collection.find_one({}, {"_id": 1}) is not None:
                raise FileExistsError(f"{database}.{name} is not empty; nothing is loaded over it")
            batch: list[RawBSONDocument] = []
            for entry in documents:
                batch.append(entry["document"])
                if len(batch) == _BATCH:
                    count += _insert(collection, batch)
                    batch = []
            count += _insert(collection, batch)
    return count


@contextmanager
def _connected(uri: str) -> Iterator[_Client]:
    """A client of the server; what it refuses, and a file that is none of ours, is an OSError with a line about it."""
    try:
        client: _Client = MongoClient(uri, document_class=RawBSONDocument, serverSelectionTimeoutMS=_TIMEOUT_MS)
        with client:
            yield client
    except PyMongoError as error:
        raise ConnectionError(f"The job store did not do it: {error}") from error
    except InvalidBSON as error:
        raise OSError(f"The file is cut off or no `telar documents save`: {error}") from error


def _entries(source: BinaryIO) -> Iterator[RawBSONDocument]:
    options: CodecOptions[Any] = DEFAULT_RAW_BSON_OPTIONS
    yield from decode_file_iter(source, options)


def _insert(collection: Any, batch: list[RawBSONDocument]) -> int:
    if batch:
        collection.insert_many(batch)
    return len(batch)
