"""Routes of the files of a stack's code: list, read, write, upload, remove."""

import asyncio
import mimetypes
from collections.abc import AsyncIterator
from typing import Annotated, BinaryIO
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse

from libs.common.auth import CurrentUser
from libs.common.etag import IfMatch
from libs.common.openapi import problems
from services.containers.adapters.forms import bounded_body, file_in_form
from services.containers.api.answers import NOT_FOUND
from services.containers.domain.tree import Entry, EntryKind
from services.containers.ports import Tree
from services.containers.schemas import FileListing, FileOut
from services.containers.service import Files
from services.containers.settings import ContainersSettings

_PATH = "/stacks/{stack_id}/files/{path:path}"
_PIECE_BYTES = 262_144
_INERT = {
    "content-security-policy": "sandbox; default-src 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
"""Pages of a stack must not run scripts with the session of whoever looks at them here."""
IfNoneMatch = Annotated[str | None, Header(alias="If-None-Match", max_length=500)]
_CHANGED = {
    "_404": NOT_FOUND,
    "_409": "The stack has no files, is being worked on, or the folder is not empty",
    "_412": "The file has changed",
    "_413": "The stack's code would be too large",
    "_422": "The path is not allowed",
}


def add_routes(routes: APIRouter, files: Files, settings: ContainersSettings) -> None:
    _add_reading(routes, files)
    _add_writing(routes, files, settings)

    @routes.delete(
        "/stacks/{stack_id}/files/{path:path}", status_code=204, tags=["files"], responses=problems(**_CHANGED)
    )
    async def remove_stack_file(
        user: CurrentUser, stack_id: UUID, path: str, *, recursive: bool = False, if_match: IfMatch = None
    ) -> None:
        """Remove a file, an empty folder, or with `recursive` a folder and all that is in it."""
        tree = await files.tree(user, stack_id, to_change=True)
        await asyncio.to_thread(tree.remove, path, if_match, recursive=recursive)


def _add_reading(routes: APIRouter, files: Files) -> None:
    told = problems(_404=NOT_FOUND, _409="The stack has no files (yet)", _422="The path is not allowed")

    @routes.get("/stacks/{stack_id}/files", tags=["files"], responses=told)
    async def list_stack_files(user: CurrentUser, stack_id: UUID) -> FileListing:
        """What lies at the root of the stack's code."""
        return await _listing(await files.tree(user, stack_id), "")

    @routes.get(
        _PATH,
        tags=["files"],
        response_model=FileListing,
        responses={
            200: {"description": "A folder's entries, or a file", "content": {"application/octet-stream": {}}},
            304: {"description": "The file is the one that the caller has"},
            **told,
        },
    )
    async def get_stack_file(
        user: CurrentUser, stack_id: UUID, path: str, if_none_match: IfNoneMatch = None
    ) -> Response | FileListing:
        """Read a file, or list a folder."""
        tree = await files.tree(user, stack_id)
        if (await asyncio.to_thread(tree.entry, path)).kind is EntryKind.FOLDER:
            return await _listing(tree, path)
        file, entry = await asyncio.to_thread(tree.opened, path)
        if entry.etag in {tag.strip() for tag in (if_none_match or "").split(",")}:
            file.close()
            return Response(status_code=304, headers={"etag": entry.etag})
        disposition = f"attachment; filename*=UTF-8''{quote(entry.name)}"
        headers = {"etag": entry.etag, "content-length": str(entry.size_bytes), "content-disposition": disposition}
        media_type = mimetypes.guess_type(entry.name)[0] or "application/octet-stream"
        body = _pieces(file, entry.size_bytes)
        return StreamingResponse(
            body, media_type=media_type, headers={**headers, **_INERT, "cache-control": "no-cache"}
        )


def _add_writing(routes: APIRouter, files: Files, settings: ContainersSettings) -> None:
    body = {"requestBody": {"required": True, "content": {"application/octet-stream": {}}}}

    @routes.put(
        _PATH,
        tags=["files"],
        openapi_extra=body,
        responses={201: {"model": FileOut}, **problems(**_CHANGED)},
    )
    async def write_stack_file(
        user: CurrentUser,
        stack_id: UUID,
        path: str,
        request: Request,
        response: Response,
        if_match: IfMatch = None,
        if_none_match: IfNoneMatch = None,
    ) -> FileOut:
        """Write a file whole from the body, with the folders on its way; with `If-None-Match: *` only a new one."""
        tree = await files.tree(user, stack_id, to_change=True)
        pieces = bounded_body(request, settings.max_zip_bytes, settings.upload_idle_s)
        entry = await tree.write(path, pieces, if_match, is_new=(if_none_match or "").strip() == "*")
        response.headers["etag"] = entry.etag
        response.status_code = 201
        return _shown(entry)

    upload = {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}, "required": ["file"]}

    @routes.post(
        _PATH,
        status_code=201,
        tags=["files"],
        openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": upload}}}},
        responses=problems(_400="The form cannot be read", **_CHANGED),
    )
    async def upload_stack_file(user: CurrentUser, stack_id: UUID, path: str, request: Request) -> FileOut:
        """Upload a file into a folder under its own name (form field `file`)."""
        tree = await files.tree(user, stack_id, to_change=True)
        async with file_in_form(request, max_bytes=settings.max_zip_bytes, idle_s=settings.upload_idle_s) as (
            name,
            file,
        ):
            folder = path.strip("/")
            target = f"{folder}/{name}" if folder else name
            entry = await tree.write(target, _pieces(file, settings.max_zip_bytes), None, is_new=False)
        return _shown(entry)


async def _listing(tree: Tree, path: str) -> FileListing:
    entries = await asyncio.to_thread(tree.listed, path)
    return FileListing(path=path.strip("/"), entries=[_shown(entry) for entry in entries])


def _shown(entry: Entry) -> FileOut:
    return FileOut(
        name=entry.name,
        kind=entry.kind,
        size_bytes=entry.size_bytes,
        modified_at=entry.modified_at,
        etag=entry.etag or None,
    )


async def _pieces(file: BinaryIO, size_bytes: int) -> AsyncIterator[bytes]:
    """A file's content as long as it was told to be, whatever is added to it meanwhile."""
    try:
        left = size_bytes
        while left > 0 and (piece := await asyncio.to_thread(file.read, min(left, _PIECE_BYTES))):
            left -= len(piece)
            yield piece
    finally:
        file.close()
