#!/usr/bin/env python3
"""Ordinary traffic of a small plant, for the demo.

usage: traffic.py serve ADDRESS                 a Modbus device (TCP 502) and a name server (UDP 53), until killed
       traffic.py poll ADDRESS SECONDS          reads ten holding registers and asks one name, every 200 ms
                                                (SECONDS 0: until killed)

Both ends speak just enough of the protocol for a dissector to recognise it. Exit status: 0, or 1 with a sentence
when the other end does not answer.
"""

import socket
import struct
import sys
import threading
import time

MODBUS, DNS = 502, 53
READ_HOLDING_REGISTERS, REGISTERS = 3, 10
ANSWER_SECS_MAX = 5


def serve(address):
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind((address, DNS))
    threading.Thread(target=answer_names, args=(names,), daemon=True).start()
    listener = socket.create_server((address, MODBUS))
    while True:
        peer, _ = listener.accept()
        threading.Thread(target=answer_polls, args=(peer,), daemon=True).start()


def answer_names(names):
    while True:
        query, client = names.recvfrom(512)
        # Flags 0x8183: a response, no such name. The question is repeated (RFC 1035 §4.1).
        names.sendto(query[:2] + struct.pack(">HHHHH", 0x8183, 1, 0, 0, 0) + query[12:], client)


def answer_polls(peer):
    with peer:
        try:
            while request := exactly(peer, 12):
                values = struct.pack(f">{REGISTERS}H", *range(REGISTERS))
                # MBAP: the request's transaction and protocol, the length from the unit on, the unit.
                reply = struct.pack(">BBB", request[6], READ_HOLDING_REGISTERS, len(values)) + values
                peer.sendall(request[:4] + struct.pack(">H", len(reply)) + reply)
        except OSError:
            return  # a scanner's connection ends as it likes


def poll(address, seconds):
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.settimeout(ANSWER_SECS_MAX)
    with socket.create_connection((address, MODBUS), timeout=ANSWER_SECS_MAX) as device:
        end = time.monotonic() + seconds
        turn = 0
        while seconds == 0 or time.monotonic() < end:
            turn = turn % 0xFFFF + 1
            device.sendall(struct.pack(">HHHBBHH", turn, 0, 6, 1, READ_HOLDING_REGISTERS, 0, REGISTERS))
            header = exactly(device, 6)
            if not header or not exactly(device, struct.unpack(">H", header[4:])[0]):
                sys.exit(f"traffic.py: {address} closed the Modbus connection")
            question = b"\x04pump\x05plant\x00" + struct.pack(">HH", 1, 1)
            names.sendto(struct.pack(">HHHHHH", turn, 0x0100, 1, 0, 0, 0) + question, (address, DNS))
            names.recv(512)
            time.sleep(0.2)


def exactly(stream, count):
    """`count` bytes, or nothing when the other end has closed."""
    data = b""
    while len(data) < count:
        piece = stream.recv(count - len(data))
        if not piece:
            return b""
        data += piece
    return data


if __name__ == "__main__":
    try:
        match sys.argv[1:]:
            case ["serve", address]:
                serve(address)
            case ["poll", address, seconds]:
                poll(address, float(seconds))
            case _:
                print(__doc__, file=sys.stderr)
                sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"traffic.py: {error}")
