import re
from collections.abc import Awaitable, Callable

from tests.contract.vms.harness import Service

Eventually = Callable[..., Awaitable[None]]


async def shown(service: Service) -> dict[str, float]:
    """The clusters' figures as Prometheus reads them."""
    answer = await service.http.get("/metrics")
    assert answer.status_code == 200
    found = re.findall(r"^(pve_\w+\{[^}]*\}) (\S+)$", answer.text, re.MULTILINE)
    assert len(found) == len(dict(found))
    return {name: float(value) for name, value in found}


async def test_the_clusters_figures_are_shown_under_the_exporters_names(
    service: Service, eventually: Eventually
) -> None:
    user = await service.new_user()
    vm = await service.vm(user, name="measured", cores=2, memory_mib=1024)
    guest = f'cluster="lab",id="qemu/{vm["vmid"]}"'

    async def up() -> bool:
        return (await shown(service)).get(f"pve_up{{{guest}}}") == 1

    await eventually(up)
    figures = await shown(service)
    assert figures[f"pve_cpu_usage_limit{{{guest}}}"] == 2
    assert figures[f"pve_memory_size_bytes{{{guest}}}"] == 1024**3
    assert figures[f"pve_disk_size_bytes{{{guest}}}"] == 4 * 1024**3
    assert figures[f'pve_guest_info{{{guest},name="measured",node="{vm["node"]}",template="0",type="qemu"}}'] == 1
    assert figures['pve_up{cluster="lab",id="node/sv1"}'] == 1
    assert figures['pve_storage_shared{cluster="lab",id="storage/sv1/shared"}'] == 1
    assert figures['pve_guests_not_shown{cluster="lab"}'] == 0
    guests = {name for name in figures if 'id="qemu/' in name}
    assert not [name for name in guests if 'id="qemu/9001"' in name]  # nobody's but Telar's own
