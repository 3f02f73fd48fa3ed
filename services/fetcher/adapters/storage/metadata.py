"""metadata.json of one document's folder: what is in it, and what a batch of ended items makes of it. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.fetcher.models import Item
from services.fetcher.ports import Writing

NAME = "metadata.json"


@dataclass(frozen=True, slots=True)
class Merged:
    """New contents of metadata.json, and the files of the folder that nothing in it names any longer."""

    data: bytes
    outdated: tuple[str, ...]
    replaced_sha256: tuple[str, ...] = ()
    """Digests of the pictures that were replaced by others."""


@dataclass(frozen=True, slots=True)
class Removed:
    """What is left when a job's pictures are gone; `data` is None when nothing is."""

    entries: int
    """How many are gone."""
    data: bytes | None
    files: tuple[str, ...]
    sha256: tuple[str, ...]


def parse(data: bytes) -> dict[str, Any]:
    """The document; an empty one for what is no metadata of ours."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def entry_of(metadata: Mapping[str, Any], item: Item) -> dict[str, Any] | None:
    """What is known of the item's picture, if it was fetched from the same URL and has a file."""
    for entry in metadata.get("pictures", ()):
        if entry.get("position") == item.position and entry.get("source_url") == item.url:
            return entry if entry.get("status") == "completed" and entry.get("file") else None
    return None


def merge(former: Mapping[str, Any], batch: Sequence[Writing]) -> Merged:
    """Write the batch's entries into a folder's metadata."""
    entries = {entry["position"]: entry for entry in former.get("pictures", ())}
    before: set[str] = set()
    replaced = []
    for writing in batch:
        position = writing.item.position
        old = entries.get(position, {})
        if writing.keep:
            entries[position] = {**old, **writing.entry}
            continue
        file = f"original/{writing.name}" if writing.name else None
        processed = [{**result.facts, "file": _result_file(writing, result.name)} for result in writing.results]
        entries[position] = {"position": position, **writing.entry, "file": file, "processed": processed}
        if file is not None:  # a failed refetch leaves what it could not replace
            before |= _files(old)
            if old.get("sha256") and old["sha256"] != writing.entry.get("sha256"):
                replaced.append(old["sha256"])
    after = {file for entry in entries.values() for file in _files(entry)}
    item = batch[0].item
    database, collection, _ = item.folder.split("/", 2)
    head = {
        "database": database,
        "collection": collection,
        "document_id": item.document_id,
        "search_field": item.search_field,
    }
    return Merged(_dump(head, entries), tuple(sorted(before - after)), tuple(replaced))


def remove(former: Mapping[str, Any], job_id: str) -> Removed:
    """Drop the entries that this job wrote last."""
    gone = [entry for entry in former.get("pictures", ()) if entry.get("job_id") == job_id]
    kept = {entry["position"]: entry for entry in former.get("pictures", ()) if entry.get("job_id") != job_id}
    head = {name: value for name, value in former.items() if name != "pictures"}
    return Removed(
        len(gone),
        _dump(head, kept) if kept else None,
        tuple(sorted({file for entry in gone for file in _files(entry)})),
        tuple(entry["sha256"] for entry in gone if entry.get("sha256")),
    )


def _result_file(writing: Writing, name: str | None) -> str | None:
    return f"processed/img_{writing.item.position:03d}-{name}" if name else None


def _files(entry: Mapping[str, Any]) -> set[str]:
    found = {entry.get("file"), *(result.get("file") for result in entry.get("processed") or ())}
    return {file for file in found if file}


def _dump(head: Mapping[str, Any], entries: Mapping[int, Mapping[str, Any]]) -> bytes:
    """One picture a line: readable, and many times faster than an indented dump."""
    lines = ",\n  ".join(json.dumps(entries[position]) for position in sorted(entries))
    return f'{json.dumps(head)[:-1]}, "pictures": [\n  {lines}\n]}}\n'.encode()
