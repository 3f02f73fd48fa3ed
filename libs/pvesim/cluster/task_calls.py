"""The calls on tasks: status, log, interruption, a node's list and the cluster's list."""

import re
from typing import Any

from libs.pvesim.endpoints import Answer, Call, Routes
from libs.pvesim.errors import parameter_error
from libs.pvesim.params import VMID_OPTIONAL, Param, boolean, integer, one_of, split_list, text
from libs.pvesim.tasks import Task

routes = Routes()
_UPID = re.compile(r"UPID:[A-Za-z0-9-]+:[0-9A-Fa-f]{8}:[0-9A-Fa-f]{8,9}:[0-9A-Fa-f]{8}:[^:/\s]+:[^:/\s]*:[^:/\s]+:")
_PATH = "/nodes/{node}/tasks"
_UPID_PARAM = {"upid": text(required=True)}
_LIST_PARAMS = {
    "errors": boolean(),
    "limit": integer(0, default=50),
    "since": integer(),
    "source": one_of("archive", "active", "all", default="archive"),
    "start": integer(0, default=0),
    "statusfilter": Param(many=True),
    "typefilter": text(),
    "until": integer(),
    "userfilter": text(),
    "vmid": VMID_OPTIONAL,
}


def _task(call: Call, *privileges: str) -> Task:
    """The task of the path's node; its owner may, others need the privileges on the node."""
    upid = call.get("upid")
    if not _UPID.fullmatch(upid):
        raise parameter_error("upid", "unable to parse worker upid")
    task = call.lab.tasks.find(call.node, upid)
    if task is None:
        raise parameter_error("upid", "no such task")
    if not _owns(call, task):
        call.require(f"/nodes/{call.node}", *privileges)
    return task


def _owns(call: Call, task: Task) -> bool:
    """A token owns its own tasks, a user also those of the own tokens."""
    caller = call.identity.authid
    return task.authid == caller or (not call.identity.is_token and task.authid.split("!")[0] == caller)


def _fields(task: Task) -> dict[str, Any]:
    user, _, token = task.authid.partition("!")
    shown: dict[str, Any] = {
        "upid": task.upid,
        "node": task.node,
        "pid": task.pid,
        "pstart": task.pstart,
        "starttime": task.starttime,
        "type": task.type,
        "id": task.id,
        "user": user,
    }
    return shown | ({"tokenid": token} if token else {})


@routes.get(f"{_PATH}/{{upid}}", _UPID_PARAM, on_node=False)
async def index(call: Call) -> list[dict[str, str]]:  # noqa: ARG001  (an index is the same for every task)
    return [{"name": "log"}, {"name": "status"}]


@routes.get(f"{_PATH}/{{upid}}/status", _UPID_PARAM)
async def status(call: Call) -> dict[str, Any]:
    task = _task(call, "Sys.Audit")
    if task.exitstatus is None:
        return _fields(task) | {"status": "running"}
    return _fields(task) | {"status": "stopped", "exitstatus": task.exitstatus}


@routes.get(
    f"{_PATH}/{{upid}}/log",
    {**_UPID_PARAM, "start": integer(0, default=0), "limit": integer(0, default=50), "download": boolean()},
)
async def log(call: Call) -> Answer:
    lines = _task(call, "Sys.Audit").lines or ["no content"]
    start, limit = call.get("start"), call.get("limit")
    end = len(lines) if limit == 0 else start + limit
    shown = [{"n": number, "t": line} for number, line in enumerate(lines[start:end], start=start + 1)]
    return Answer(shown, {"total": len(lines)})


@routes.delete(f"{_PATH}/{{upid}}", _UPID_PARAM)
async def interrupt(call: Call) -> None:
    await call.lab.tasks.interrupt(_task(call, "Sys.Modify").upid)


@routes.get(_PATH, _LIST_PARAMS)
async def list_tasks(call: Call) -> Answer:
    auditor = call.allows(f"/nodes/{call.node}", "Sys.Audit")
    matching = [
        task for task in call.lab.tasks.of_node(call.node) if (auditor or _owns(call, task)) and _matches(call, task)
    ]
    start, limit = call.get("start"), call.get("limit")
    page = matching[start : start + limit] if limit else matching[start:]
    return Answer([_listed(task) for task in page], {"total": len(matching)})


def _listed(task: Task) -> dict[str, Any]:
    if task.exitstatus is None:
        return _fields(task) | {"status": "RUNNING"}
    return _fields(task) | {"status": task.exitstatus, "endtime": task.endtime}


def _matches(call: Call, task: Task) -> bool:
    running = task.exitstatus is None
    since, until = call.get("since"), call.get("until")
    statuses = split_list(call.get("statusfilter", ""))
    return all((
        {"archive": not running, "active": running, "all": True}[call.get("source")],
        call.get("typefilter") in {None, task.type},
        call.get("userfilter", "") in task.authid,
        call.get("vmid") is None or task.id == str(call.get("vmid")),
        not call.flag("errors") or task.failed,
        since is None or task.starttime >= since,
        until is None or task.starttime <= until,
        not statuses or _kind(task) in statuses,
    ))  # fmt: skip


def _kind(task: Task) -> str:
    if task.exitstatus in {None, "unexpected status"}:
        return "unknown"
    if task.failed:
        return "error"
    return "ok" if task.exitstatus == "OK" else "warning"


@routes.get("/cluster/tasks")
async def cluster_tasks(call: Call) -> list[dict[str, Any]]:
    """All running and the recent finished tasks.

    A token without Sys.Audit does not even see its own: the original compares the bare user with the token's full name.
    """
    auditor = call.allows("/", "Sys.Audit")
    found = []
    for node in call.lab.nodes:
        for task in call.lab.tasks.broadcast(node.name):
            if not auditor and task.authid.split("!")[0] != call.identity.authid:
                continue
            entry = _fields(task)
            del entry["pstart"]
            entry["saved"] = "1" if task.exitstatus is not None else "0"
            if task.exitstatus is not None:
                entry |= {"status": task.exitstatus, "endtime": task.endtime}
            found.append(entry)
    return found
