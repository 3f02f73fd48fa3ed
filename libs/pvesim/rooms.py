"""Every room that answers API calls, in one list for the router."""

from libs.pvesim.access import acl_calls, login, tfa_calls
from libs.pvesim.access import calls as account_calls
from libs.pvesim.cluster import history, info, journal, options, pools, resources, task_calls
from libs.pvesim.console import calls as console_calls
from libs.pvesim.console import spice, terminal
from libs.pvesim.endpoints import Routes
from libs.pvesim.ha import resources as ha_resources
from libs.pvesim.ha import rules as ha_rules
from libs.pvesim.ha import status as ha_status
from libs.pvesim.qemu import (
    clone,
    cloudinit,
    config,
    create,
    firewall,
    migrate,
    monitor,
    move_disk,
    power,
    removal,
    snapshots,
    status,
    templates,
)
from libs.pvesim.qemu.agent import calls as agent_calls
from libs.pvesim.qemu.agent import execution
from libs.pvesim.storage import calls as storage_calls
from libs.pvesim.storage import configuration, download, upload

_ACCESS = (account_calls, acl_calls, login, tfa_calls)
_HA = (ha_resources, ha_rules, ha_status)
_CLUSTER = (history, info, journal, options, pools, resources, task_calls)
_CONSOLE = (console_calls, spice, terminal)
_QEMU = (
    agent_calls, clone, cloudinit, config, create, execution, firewall, migrate, monitor, move_disk, power, removal,
    snapshots, status, templates,
)  # fmt: skip
_STORAGE = (configuration, download, storage_calls, upload)
ROOMS: tuple[Routes, ...] = tuple(room.routes for room in (*_ACCESS, *_CLUSTER, *_CONSOLE, *_HA, *_QEMU, *_STORAGE))
