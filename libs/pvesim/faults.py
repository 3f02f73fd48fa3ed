"""Faults on demand: what the lab breaks on purpose, how often, and the `/sim` calls that set and clear them."""

import ipaddress
import re
import secrets
from collections import Counter
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from libs.pvesim.errors import flock_timeout
from libs.pvesim.store import Store

Kind = Literal[
    "node_down",
    "gateway_timeout",
    "lock_timeout",
    "html",
    "error",
    "no_quorum",
    "slow_call",
    "slow_task",
    "task_warnings",
    "task_failure",
    "empty_inventory",
    "token_without_privileges",
]


class Fault(BaseModel):
    """One fault. Unset fields match everything; `count` is how many times it strikes, None is always.

    `path` is a regular expression searched in the call's path below `/api2/json`; `step` counts a task's pieces of work
    from 1; `seconds` (lab seconds) and `factor` slow things down; `applied` says whether a call cut off by 596 still
    takes effect.
    """

    model_config = ConfigDict(extra="forbid")

    id: str = Field(default_factory=lambda: secrets.token_hex(4))
    kind: Kind
    count: int | None = Field(default=None, ge=1)
    node: str | None = None
    method: str | None = None
    path: str | None = None
    task_type: str | None = None
    task_id: str | None = None
    token: str | None = None
    step: int = Field(default=1, ge=1)
    seconds: float = Field(default=0.0, ge=0)
    factor: float = Field(default=10.0, gt=0)
    applied: bool = True
    status: int = Field(default=500, ge=400, le=599)
    message: str | None = None

    def matches(self, **facts: str) -> bool:
        for name, value in facts.items():
            wanted = getattr(self, name)
            if wanted is None:
                continue
            if not (re.search(wanted, value) if name == "path" else wanted == value):
                return False
        return True


class Faults:
    """The faults in force. Asking for one that strikes uses up one of its counts."""

    def __init__(self, store: Store, loaded: dict[str, dict[str, Any]]) -> None:
        self._store = store
        self._faults = {key: Fault(**document) for key, document in loaded.items()}

    def add(self, fault: Fault) -> None:
        self._faults[fault.id] = fault
        self._store.put("fault", fault.id, fault.model_dump())

    def remove(self, fault_id: str) -> Fault | None:
        fault = self._faults.pop(fault_id, None)
        if fault is not None:
            self._store.delete("fault", fault_id)
        return fault

    def list(self) -> "list[Fault]":
        return [*self._faults.values()]

    def _strike(self, kind: Kind, **facts: str) -> Fault | None:
        fault = next((f for f in self._faults.values() if f.kind == kind and f.matches(**facts)), None)
        return None if fault is None else self._use(fault)

    def _use(self, fault: Fault) -> Fault:
        if fault.count == 1:
            self.remove(fault.id)
        elif fault.count is not None:
            fault.count -= 1
            self._store.put("fault", fault.id, fault.model_dump())
        return fault

    def call(self, kind: Kind, *, method: str, path: str) -> Fault | None:
        """The fault of this kind that strikes a call. Faults that name a task type never do."""
        for fault in self._faults.values():
            if fault.kind == kind and fault.task_type is None and fault.matches(method=method, path=path):
                return self._use(fault)
        return None

    def task_step(self, task_type: str, node: str, task_id: str, step: int) -> str | None:
        """The error text that strikes this step of a task, if any."""
        for fault in self._faults.values():
            aimed = fault.kind == "task_failure" or (fault.kind == "lock_timeout" and fault.task_type is not None)
            if aimed and fault.step == step and fault.matches(task_type=task_type, node=node, task_id=task_id):
                self._use(fault)
                if fault.kind == "task_failure":
                    return fault.message or "injected failure"
                return flock_timeout(fault.message or f"/var/lock/qemu-server/lock-{task_id}.conf").text
        return None

    def task_warning(self, task_type: str, node: str) -> str | None:
        fault = self._strike("task_warnings", task_type=task_type, node=node)
        return None if fault is None else fault.message or "injected warning"

    def slowdown(self, task_type: str, node: str) -> float:
        factor = 1.0
        for fault in self._faults.values():
            if fault.kind == "slow_task" and fault.matches(task_type=task_type, node=node):
                factor *= fault.factor
        return factor

    def no_quorum(self) -> bool:
        return any(fault.kind == "no_quorum" for fault in self._faults.values())

    def strips(self, authid: str) -> bool:
        return any(f.kind == "token_without_privileges" and f.token in {None, authid} for f in self._faults.values())


class LabControl(Protocol):
    """What the `/sim` calls move in the lab."""

    faults: Faults
    calls: Counter[str]

    async def inject(self, fault: Fault) -> None: ...

    async def withdraw(self, fault_id: str) -> bool: ...


class FaultDesk:
    """The `/sim` routes. They answer only the machine the lab runs on."""

    def __init__(self, lab: "LabControl") -> None:
        self._lab = lab

    def routes(self) -> "list[Route]":
        return [
            Route("/sim/faults", self._list, methods=["GET"]),
            Route("/sim/faults", self._add, methods=["POST"]),
            Route("/sim/faults", self._clear, methods=["DELETE"]),
            Route("/sim/faults/{fault_id}", self._remove, methods=["DELETE"]),
            Route("/sim/calls", self._calls, methods=["GET"]),
            Route("/sim/calls", self._reset_calls, methods=["DELETE"]),
        ]

    async def _list(self, request: Request) -> Response:
        if (refusal := _refusal(request)) is not None:
            return refusal
        return JSONResponse([fault.model_dump(exclude_none=True) for fault in self._lab.faults.list()])

    async def _add(self, request: Request) -> Response:
        if (refusal := _refusal(request)) is not None:
            return refusal
        try:
            fault = Fault.model_validate_json(await request.body())
        except ValidationError as wrong:
            return JSONResponse({"errors": wrong.errors(include_url=False, include_context=False)}, status_code=422)
        await self._lab.inject(fault)
        return JSONResponse(fault.model_dump(exclude_none=True), status_code=201)

    async def _clear(self, request: Request) -> Response:
        if (refusal := _refusal(request)) is not None:
            return refusal
        for fault in self._lab.faults.list():
            await self._lab.withdraw(fault.id)
        return Response(status_code=204)

    async def _remove(self, request: Request) -> Response:
        if (refusal := _refusal(request)) is not None:
            return refusal
        known = await self._lab.withdraw(request.path_params["fault_id"])
        return Response(status_code=204 if known else 404)

    async def _calls(self, request: Request) -> Response:
        if (refusal := _refusal(request)) is not None:
            return refusal
        return JSONResponse(dict(self._lab.calls.most_common()))

    async def _reset_calls(self, request: Request) -> Response:
        if (refusal := _refusal(request)) is not None:
            return refusal
        self._lab.calls.clear()
        return Response(status_code=204)


def _refusal(request: Request) -> Response | None:
    try:
        local = request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        local = False
    return None if local else Response("only from this machine", status_code=403)
