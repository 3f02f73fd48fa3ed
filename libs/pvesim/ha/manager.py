"""The HA manager: it acts on wishes, failures and orders in rounds, some seconds after they arise."""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from libs.pvesim.ha.placement import Company, Wish, choose, partners, wish_of
from libs.pvesim.store import Store

if TYPE_CHECKING:
    from libs.pvesim.lab import Lab
    from libs.pvesim.qemu.model import Vm

_DEFAULTS = {"max_restart": 1, "max_relocate": 1, "failback": 1}
_SETTLED = frozenset({"started", "stopped", "error", "ignored", "disabled"})
_logger = structlog.get_logger()


@dataclass(slots=True)
class Service:
    """What the manager knows of a resource: failed starts here, moves since, and an order to carry out."""

    state: str = "queued"
    failed_starts: int = 0
    moves: int = 0
    order: str | None = None
    target: str | None = None

    def document(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class HaManager:
    """Resources, rules and groups by name. There is no loop while nothing is to do."""

    def __init__(self, store: Store, loaded: Callable[[str], dict[str, dict[str, Any]]]) -> None:
        self._store = store
        self.resources = loaded("ha")
        self.rules = loaded("ha_rule")
        self.groups = loaded("ha_group")
        self.services = {sid: Service(**document) for sid, document in loaded("ha_service").items()}
        self.disarmed: str | None = loaded("ha_mode").get("disarmed", {}).get("mode")
        self._rounds: asyncio.Task[None] | None = None
        self._again = False
        self._lab: Lab | None = None

    def attach(self, lab: "Lab") -> None:
        """Begin managing; what a restart left open is taken up again."""
        self._lab = lab
        if self.resources:
            self.wake()

    def resource(self, vmid: int) -> dict[str, Any] | None:
        return self.resources.get(f"vm:{vmid}")

    def manages(self, vmid: int) -> bool:
        resource = self.resource(vmid)
        return resource is not None and resource["state"] != "ignored" and self.disarmed != "ignore"

    def disarm(self, mode: str | None) -> None:
        """Let go of all resources: `freeze` or `ignore` them; None takes them up again."""
        self.disarmed = mode
        if mode is None:
            self._store.delete("ha_mode", "disarmed")
        else:
            self._store.put("ha_mode", "disarmed", {"mode": mode})
        self.wake()

    def state_of(self, vmid: int) -> str | None:
        """The manager's state, or the requested one before the manager has seen the resource."""
        resource, service = self.resource(vmid), self.services.get(f"vm:{vmid}")
        if resource is None:
            return None
        return str(resource["state"]) if service is None or service.state == "queued" else service.state

    def put(self, sid: str, **fields: Any) -> None:
        self.resources[sid] = _DEFAULTS | self.resources.get(sid, {}) | fields
        self._store.put("ha", sid, self.resources[sid])
        self.wake()

    def request(self, vmid: int, state: str, *, timeout_s: int | None = None) -> None:
        """Ask for a state; the machine follows with the manager's next round."""
        sid = f"vm:{vmid}"
        self.put(sid, state=state, timeout=timeout_s)
        self.enter(sid, "request_stop" if state == "stopped" else "request_start")

    def order(self, vmid: int, kind: str, target: str) -> dict[str, Any]:
        """Queue a `migrate` or `relocate`; tells who comes along and who stands in the way (then nothing is queued)."""
        sid = f"vm:{vmid}"
        blocking = [other for other in sorted(partners(sid, self.rules, "negative")) if self._node_of(other) == target]
        answer: dict[str, Any] = {"sid": sid, "requested-node": target}
        if blocking:
            causes = [{"sid": other, "cause": "resource-affinity"} for other in blocking]
            return answer | {"blocking-resources": causes}
        along = [other for other in sorted(partners(sid, self.rules, "positive")) if other in self.resources]
        for each in (sid, *along):
            service = self.services.setdefault(each, Service())
            service.order, service.target = kind, target
            self.enter(each, kind)
        self.wake()
        return answer | ({"comigrated-resources": along} if along else {})

    def enter(self, sid: str, state: str) -> None:
        service = self.services.setdefault(sid, Service())
        service.state = state
        self._store.put("ha_service", sid, service.document())

    def remove(self, sid: str, *, purge: bool = True) -> None:
        self.resources.pop(sid, None)
        self.services.pop(sid, None)
        self._store.delete("ha", sid)
        self._store.delete("ha_service", sid)
        if purge:
            for name, rule in list(self.rules.items()):
                rest = [other for other in rule["resources"].split(",") if other != sid]
                if len(rest) != len(rule["resources"].split(",")):
                    self.put_rule(name, rule | {"resources": ",".join(rest)}) if rest else self.remove_rule(name)

    def put_rule(self, name: str, rule: dict[str, Any]) -> None:
        self.rules[name] = rule
        self._store.put("ha_rule", name, rule)
        self.wake()

    def remove_rule(self, name: str) -> None:
        self.rules.pop(name, None)
        self._store.delete("ha_rule", name)

    def put_group(self, name: str, group: dict[str, Any]) -> None:
        self.groups[name] = group
        self._store.put("ha_group", name, group)
        self.wake()

    def remove_group(self, name: str) -> None:
        self.groups.pop(name, None)
        self._store.delete("ha_group", name)

    def digest(self, entry: dict[str, Any]) -> str:
        return hashlib.sha1(json.dumps(entry, sort_keys=True).encode(), usedforsecurity=False).hexdigest()

    def _vm(self, sid: str) -> "Vm | None":
        return self._lab.vms.by_id.get(int(sid.split(":")[1])) if self._lab is not None else None

    def _node_of(self, sid: str) -> str | None:
        vm = self._vm(sid)
        return None if vm is None else vm.node

    def wish(self, sid: str) -> Wish:
        return wish_of(sid, self.resources.get(sid, {}), self.rules, self.groups)

    def choose(self, sid: str, *, without: str | None = None) -> str | None:
        """The node that a resource belongs on now, leaving one out; None if there is none."""
        if self._lab is None:
            return None
        alive = [node.name for node in self._lab.nodes if node.up and node.name != without]
        places = {other: self._node_of(other) for other in self.resources if other != sid}
        company = Company(
            frozenset(filter(None, (places.get(other) for other in partners(sid, self.rules, "positive")))),
            frozenset(filter(None, (places.get(other) for other in partners(sid, self.rules, "negative")))),
        )
        load = Counter(node for node in places.values() if node is not None)
        return choose(self._node_of(sid), alive, self.wish(sid), company, load)

    def wake(self) -> None:
        """Have a round soon, unless one is due already."""
        self._again = True
        if self._lab is not None and (self._rounds is None or self._rounds.done()):
            self._rounds = asyncio.create_task(self._run(self._lab))

    async def _run(self, lab: "Lab") -> None:
        # Imported late: power actions ask the manager whether a machine is its own.
        from libs.pvesim.ha.steps import advance  # noqa: PLC0415

        while self.disarmed is None and (self._again or any(self._restless(sid) for sid in self.resources)):
            self._again = False
            await lab.clock.sleep(lab.settings.ha_round_s)
            ended = await asyncio.gather(*(advance(lab, sid) for sid in list(self.resources)), return_exceptions=True)
            for defect in ended:
                if isinstance(defect, Exception):
                    _logger.error("lab_ha_round_failed", exc_info=defect)

    def _restless(self, sid: str) -> bool:
        service = self.services.get(sid)
        managed = self.resources[sid]["state"] != "ignored" and self._vm(sid) is not None
        return managed and (service is None or service.order is not None or service.state not in _SETTLED)

    async def aclose(self) -> None:
        if self._rounds is not None:
            self._rounds.cancel()
            await asyncio.wait({self._rounds})
