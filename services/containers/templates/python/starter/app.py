"""Stands in for your application: this stack was created without a ZIP."""  # noqa: INP001 - a program, not a package

import os
import platform
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>It works</title>
<h1>It works</h1>
<p>This stack runs Python {platform.python_version()}. It was created without a ZIP, so this page stands in for your
application.</p>
</html>
"""


class Page(BaseHTTPRequestHandler):
    """Answers everything with the one page."""

    def do_GET(self) -> None:
        body = PAGE.encode()
        self.send_response(200)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
ThreadingHTTPServer(("", int(os.environ["PORT"])), Page).serve_forever()
