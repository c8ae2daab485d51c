#!/usr/bin/env python3
"""An FTP server that lets nobody in: something for a password guesser to guess at.

    ftp.py ADDRESS PORT
"""

import socketserver
import sys


class Refusal(socketserver.StreamRequestHandler):
    """One conversation (RFC 959): every password is wrong, and after three the line is cut."""

    timeout = 10

    def handle(self):
        wrong = 0
        self.say("220 ready")
        for line in self.rfile:
            word = line.split(maxsplit=1)[0].upper() if line.split() else b""
            if word == b"QUIT":
                return
            if word == b"PASS":
                wrong += 1
                self.say("530 Login incorrect")
                if wrong == 3:
                    return
            else:
                self.say("331 Password required" if word == b"USER" else "502 Not here")

    def say(self, text):
        self.wfile.write(text.encode() + b"\r\n")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


Server((sys.argv[1], int(sys.argv[2])), Refusal).serve_forever()
