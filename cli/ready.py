"""Exit 0 if this container's process answers `/readyz` (or the path given) with 200: its health check."""

import http.client
import sys

PORT = 8000
_TIMEOUT_S = 8


def main(path: str = "/readyz") -> int:
    """The exit code; it imports little, because it runs every few seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return int(connection.getresponse().status != http.client.OK)
    except OSError:
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
