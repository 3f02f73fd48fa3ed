import pytest

from libs.common.bus.topics import matches


@pytest.mark.parametrize(
    ("pattern", "routing_key", "expected"),
    [
        ("vms.vm.created.v1", "vms.vm.created.v1", True),
        ("vms.vm.created.v1", "vms.vm.created.v2", False),
        ("#", "vms.vm.created.v1", True),
        ("vms.#", "vms.vm.created.v1", True),
        ("vms.#", "vms", True),
        ("vms.#", "vmss.vm.created.v1", False),
        ("#.v1", "vms.vm.created.v1", True),
        ("#.created.#", "vms.vm.created.v1", True),
        ("#.created.#", "vms.vm.deleted.v1", False),
        ("vms.*.created.v1", "vms.vm.created.v1", True),
        ("vms.*.created.v1", "vms.created.v1", False),
        ("vms.*", "vms.vm.created.v1", False),
        ("*.*.*.*", "vms.vm.created.v1", True),
        ("#.#", "vms.vm", True),
        ("#.*", "vms", True),
    ],
)
def test_a_pattern_covers_what_amqp_says(pattern: str, routing_key: str, expected: bool) -> None:
    assert matches(pattern, routing_key) is expected
