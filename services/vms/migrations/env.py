"""Alembic's entry: this service's tables beside the shared ones."""

from libs.common.migrations import run_environment
from services.vms.models import METADATA

run_environment(METADATA)
