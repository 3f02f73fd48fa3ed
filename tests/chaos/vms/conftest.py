from tests.integration.vms.conftest import lab, service

__all__ = ["lab", "service"]
