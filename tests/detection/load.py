#!/usr/bin/env python3
"""A load test: COUNT requests to one web server, each on a connection of its own, eight at a time.

    load.py ADDRESS PORT COUNT
"""

import socket
import sys
from concurrent.futures import ThreadPoolExecutor


def request(_):
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20) as line:
        line.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
        while line.recv(4096):
            pass


with ThreadPoolExecutor(8) as pool:
    for _ in pool.map(request, range(int(sys.argv[3]))):
        pass
