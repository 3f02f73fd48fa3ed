"""`make bench`: every row beside its peer in one run; prints them and writes bench/results.json.

`make bench ROWS="image_upload image_list"` measures those alone, and keeps what the file says of the others.
"""

import importlib
import json
import platform
import sys
from pathlib import Path

RESULTS = Path("bench/results.json")
ROWS = (
    "gateway_relay",
    "image_upload",
    "image_download",
    "image_list",
    "fetch_pictures",
    "item_list",
    "events",
    "stack_deploy",
    "embedded_start",
    "login_enumeration",
    "revocation",
    "vm_create",
    "vm_list",
    "stack_list",
)
"""Modules of this folder; each has a `run()` that gives its row."""


def main(chosen: list[str]) -> None:
    if unknown := sorted(set(chosen) - set(ROWS)):
        sys.exit(f"No such row: {', '.join(unknown)}. There are: {', '.join(ROWS)}")
    results = json.loads(RESULTS.read_text()) if chosen and RESULTS.exists() else {}
    results["machine"] = {"python": platform.python_version(), "system": platform.platform()}
    RESULTS.parent.mkdir(exist_ok=True)
    for name in chosen or ROWS:
        print(f"== {name}", flush=True)
        results[name] = importlib.import_module(f"tests.bench.{name}").run()
        print(json.dumps(results[name], indent=2, default=str), flush=True)
        RESULTS.write_text(json.dumps(results, indent=2, default=str) + "\n")
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main(sys.argv[1:])
