"""Who may look at what: proxies waiting on ports for their one client, and the displays behind them."""

import asyncio
import secrets
import string
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from libs.pvesim.cluster.nodes import Node
from libs.pvesim.console.display import Display
from libs.pvesim.console.picture import Painter, Screen
from libs.pvesim.console.websocket import Dropped, FrameStream
from libs.pvesim.errors import PveError
from libs.pvesim.qemu.model import Vm
from libs.pvesim.tasks import TaskRun

if TYPE_CHECKING:
    from libs.pvesim.lab import Lab

PORTS = range(5900, 6000)
_RESERVED_S = 5.0
_PASSWORD_CHARACTERS = 8
_FIRMWARE, _DESKTOP = (720, 400), (800, 600)


def new_password() -> str:
    """Eight printable characters, punctuation included, as the original draws them."""
    return "".join(
        secrets.choice(string.ascii_letters + string.digits + string.punctuation) for _ in range(_PASSWORD_CHARACTERS)
    )


Speaker = Callable[[FrameStream], Awaitable[None]]


async def _nobody(_stream: FrameStream) -> None:
    raise Dropped("nothing is behind this port")


@dataclass(eq=False, slots=True)
class Proxy:
    """A port for one client. `speak` is what is behind it; its PveError ends the proxy's task."""

    api_node: str
    port: int
    path: str
    speak: Speaker = _nobody
    error: PveError | None = None
    taken: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def converse(self, stream: FrameStream) -> None:
        """Serve the client until either side has enough, or the proxy's task is stopped."""
        talk = asyncio.ensure_future(self.speak(stream))
        stop = asyncio.ensure_future(self.closed.wait())
        try:
            await asyncio.wait({talk, stop}, return_when=asyncio.FIRST_COMPLETED)
            if talk.done():
                talk.result()
        except Dropped:
            return
        except PveError as failure:
            self.error = failure
        finally:
            talk.cancel()
            stop.cancel()
            await asyncio.gather(talk, stop, return_exceptions=True)
            self.done.set()


class ConsoleDesk:
    """Proxies by API node and port, displays by machine. Nothing of it outlives the lab's process."""

    def __init__(self) -> None:
        self._proxies: dict[tuple[str, int], Proxy] = {}
        self._reserved: dict[tuple[str, int], float] = {}
        self._displays: dict[int, tuple[Display, int | None, str]] = {}
        self._shells: dict[str, Display] = {}
        self._painter = Painter()
        self._lab: Lab | None = None

    def attach(self, lab: "Lab") -> None:
        """Begin to follow the machines: a display ends with its machine's process or node."""
        self._lab = lab
        lab.vms.watchers.append(self._follow)
        lab.on_power.append(self._follow_node)

    def open(self, api_node: str, path: str) -> Proxy:
        """Take the lowest free port of an API node; raises the error of a node whose ports are all taken."""
        now = asyncio.get_running_loop().time()
        for port in PORTS:
            place = (api_node, port)
            if place not in self._proxies and self._reserved.get(place, 0.0) <= now:
                self._reserved[place] = now + (self._lab.clock.real(_RESERVED_S) if self._lab else _RESERVED_S)
                proxy = self._proxies[place] = Proxy(api_node, port, path)
                return proxy
        raise PveError("unable to find free port (5900-6000)")

    def take(self, api_node: str, port: int, path: str) -> Proxy | None:
        """The proxy that listens on a port, for its one client; None when nobody listens there."""
        proxy = self._proxies.get((api_node, port))
        if proxy is None or proxy.path != path:
            return None
        del self._proxies[api_node, port]
        proxy.taken.set()
        return proxy

    async def attend(self, run: TaskRun, proxy: Proxy, accept_s: float) -> None:
        """The work of a proxy's task: wait for the client, then until it has left."""
        try:
            await run.work(0)
            try:
                async with asyncio.timeout(accept_s):
                    await proxy.taken.wait()
            except TimeoutError:
                raise PveError("connection timed out") from None
            await proxy.done.wait()
            if proxy.error is not None:
                raise proxy.error
        finally:
            proxy.closed.set()
            if self._proxies.get((proxy.api_node, proxy.port)) is proxy:
                del self._proxies[proxy.api_node, proxy.port]

    def display(self, node: str, vmid: int) -> Display | None:
        """The display of a machine that runs on this node, while the node lives."""
        vm = self._lab.vms.by_id.get(vmid) if self._lab is not None else None
        if self._lab is None or vm is None or vm.node != node or not vm.running or not self._lab.nodes.by_name[node].up:
            return None
        known = self._displays.get(vm.vmid)
        if known is None:
            display = Display(f"QEMU ({vm.name})", lambda: self._describe(vm), self._painter)
            known = self._displays[vm.vmid] = (display, vm.pid, vm.node)
            self._remind(vm, display)
        return known[0]

    def shell(self, node: Node) -> Display | None:
        """The display of a node's shell."""
        if not node.up:
            return None
        if node.name not in self._shells:
            screen = Screen(_DESKTOP, node.name, (f"node {node.nodeid} at {node.address}",), "shell", healthy=True)
            self._shells[node.name] = Display(f"{node.name} - shell", lambda: screen, self._painter)
        return self._shells[node.name]

    def _describe(self, vm: Vm) -> Screen:
        """What a machine's picture says; the firmware's screen is smaller than the guest's."""
        lab = self._lab
        now = lab.clock.now() if lab is not None else 0.0
        up = vm.guest_up is not None and now >= vm.guest_up
        booting = "no operating system" if vm.guest_up is None else "booting"
        state = vm.qmp if vm.qmp != "running" else ("running" if up else booting)
        lines = (
            f"VMID {vm.vmid} on node {vm.node}",
            f"{vm.cpus} cores, {vm.memory_mib} MiB memory",
            f"process {vm.pid}",
        )
        return Screen(_DESKTOP if up else _FIRMWARE, vm.name, lines, f"state: {state}", healthy=state == "running")

    def _follow(self, vm: Vm) -> None:
        known = self._displays.get(vm.vmid)
        if known is None:
            return
        display, pid, node = known
        if not vm.running or (vm.pid, vm.node) != (pid, node):
            del self._displays[vm.vmid]
            display.end()
        else:
            self._remind(vm, display)
            display.touch()

    def _remind(self, vm: Vm, display: Display) -> None:
        """Have the picture looked at again when the guest is up."""
        if self._lab is not None and vm.guest_up is not None and (left := vm.guest_up - self._lab.clock.now()) > 0:
            asyncio.get_running_loop().call_later(left, display.touch)

    async def _follow_node(self, node: Node) -> None:
        if node.up:
            return
        if (shell := self._shells.pop(node.name, None)) is not None:
            shell.end()
        for vmid, (display, _, place) in list(self._displays.items()):
            if place == node.name:
                del self._displays[vmid]
                display.end()
