#!/usr/bin/env python3
"""What the pods of a RayJob call as `ray`, without Ray: the head does what is submitted, the submitter prints it."""

import http.server
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request


class Head(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        work = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.send_response(200)
        self.end_headers()
        ran = subprocess.Popen(work, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for line in ran.stdout:
            self.wfile.write(line)
        self.wfile.write(b"exit %d\n" % ran.wait())


def option(name):
    found = [word for word in sys.argv if word.startswith(f"--{name}=")]
    return found[0].partition("=")[2] if found else sys.argv[sys.argv.index(f"--{name}") + 1]


if sys.argv[1] == "start" and "--head" in sys.argv:
    store = socket.create_server(("", 6379))
    http.server.ThreadingHTTPServer(("", 8265), Head).serve_forever()
elif sys.argv[1] == "start":
    time.sleep(3600)
elif sys.argv[1] == "health-check":
    host, _, port = option("address").partition(":")
    socket.create_connection((host, int(port))).close()
elif sys.argv[1:3] == ["job", "submit"]:
    words = sys.argv[sys.argv.index("--") + 1 :]
    work = subprocess.list2cmdline(words).encode()  # as Ray does it
    for line in urllib.request.urlopen(urllib.request.Request(option("address"), work)):
        if line.startswith(b"exit "):
            sys.exit(line != b"exit 0\n")
        sys.stdout.buffer.write(line)
        sys.stdout.flush()
