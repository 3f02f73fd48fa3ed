"""Schemathesis over the merged document of a suite of its own: whatever is sent, answers are what is documented."""

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from .conftest import MakeSuite, log_in

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
WITHOUT = r"/events$|/logs|^/api/v1/logout$"
"""Streams, which do not end, and the end of the session that asks."""
EXAMPLES = 4


@pytest.mark.timeout(600)
def test_every_answer_is_documented_and_none_is_a_server_error(tmp_path: Path, make_suite: MakeSuite) -> None:
    with make_suite(TELAR_AUTH_NETWORK_FAILURES="1000000") as suite:
        token = log_in(suite.url, suite.username, suite.password)["access_token"]
        operations = sum(
            len(item)
            for path, item in httpx.get(f"{suite.url}/openapi.json").json()["paths"].items()
            if not re.search(WITHOUT, path)
        )
        config = tmp_path / "schemathesis.toml"
        # The gateway answers TRACE with 501 on purpose; undocumented methods are its own tests' business.
        config.write_text("[phases.coverage]\nunexpected-methods = []\n")
        run = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"),
                *(f"{suite.url}/openapi.json", "--header", f"Authorization: Bearer {token}"),
                *("--checks", CHECKS, "--exclude-path-regex", WITHOUT, "--max-examples", str(EXAMPLES)),
                *("--phases", "examples,coverage,fuzzing", "--seed", "1", "--request-timeout", "10"),
                *("--continue-on-failure", "--warnings", "off", "--no-color"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
    told = "\n".join(line[:400] for line in run.stdout.splitlines())
    assert run.returncode == 0, told[-8000:]
    tested = re.search(r"Tested: (\d+)", run.stdout)
    assert tested is not None, told
    assert int(tested[1]) == operations
