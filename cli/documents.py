"""`telar documents`: the fetcher's job store as one file, through the driver, of whichever server speaks its protocol.

The file is a row of BSON documents, each `{"collection": name, "document": …}`. Indexes are not in it: `telar migrate
fetcher` makes them.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import Any, BinaryIO

from bson import decode_file_iter, encode
from bson.codec_options import CodecOptions
from bson.raw_bson import DEFAULT_RAW_BSON_OPTIONS, RawBSONDocument
from pymongo import MongoClient

_BATCH = 500


def save(uri: str, database: str, target: BinaryIO) -> int:
    """Write every document of the database to the file; how many there were."""
    count = 0
    with MongoClient(uri, document_class=RawBSONDocument) as client:
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
    with MongoClient(uri, document_class=RawBSONDocument) as client:
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


def _entries(source: BinaryIO) -> Iterator[RawBSONDocument]:
    options: CodecOptions[Any] = DEFAULT_RAW_BSON_OPTIONS
    yield from decode_file_iter(source, options)


def _insert(collection: Any, batch: list[RawBSONDocument]) -> int:
    if batch:
        collection.insert_many(batch)
    return len(batch)
