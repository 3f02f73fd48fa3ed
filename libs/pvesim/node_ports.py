"""The nodes' own API ports: one listener per node, silent while its node is down."""

from collections.abc import Callable

from libs.pvesim.cluster.nodes import Node
from libs.pvesim.lab import Lab
from libs.pvesim.wire import WireServer


class NodePorts:
    """Listeners by node name; a node that comes back listens at the port it had."""

    def __init__(self, lab: Lab, make: Callable[[str], WireServer]) -> None:
        self._lab = lab
        self._make = make
        self._servers: dict[str, WireServer] = {}
        self.ports: dict[str, int] = {}

    async def open(self) -> None:
        """Listen for every node that the settings give a port; follow the nodes' failures and returns."""
        settings = self._lab.settings
        for name, port in settings.node_ports.items():
            node = self._lab.nodes.by_name[name]
            server = self._servers[name] = self._make(name)
            self.ports[name] = await server.start(settings.host, port)
            await self._follow(node)
        self._lab.on_power.append(self._follow)

    async def _follow(self, node: Node) -> None:
        server = self._servers.get(node.name)
        if server is None:
            return
        if node.up and not server.listening:
            await server.start(self._lab.settings.host, self.ports[node.name])
        elif not node.up and server.listening:
            await server.aclose(grace_s=0)

    async def aclose(self) -> None:
        self._lab.on_power.remove(self._follow)
        for server in self._servers.values():
            await server.aclose()
