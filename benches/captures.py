#!/usr/bin/env python3
"""Makes the captures that benches/peers.py compares programs with: the same octets every time.

usage: captures.py DIRECTORY [NAME...]      names: mix scan64

* mix.pcap: 2.7 million packets of some 94,000 conversations within 240 seconds: TCP with handshake and end, UDP, ICMP, IPv6, VLAN tags,
  ARP; conversations of very different lengths, frames of 60 to 1514 octets.
* scan64.pcap: a scan of a million conversations: SYN, and RST with ACK, in frames of 60 octets.

Beside each stands NAME.json with what is in it. A capture that is there already is left as it is.
"""
import heapq
import json
import os
import random
import struct
import sys

PCAP_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
START = 1_700_000_000  # 20 s past a full minute
SPAN_MICROS = 240_000_000
CONVERSATIONS = 94_129
MAC_A, MAC_B = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
PAYLOAD = bytes(1500)
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def folded(total):
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Conversation:
    """Headers of one conversation, each way; TCP's checksum stays zero, as a host leaves it to its card."""

    def __init__(self, number, rng):
        kind = rng.random()
        self.protocol = 6 if kind < 0.60 else 17 if kind < 0.96 else 1
        self.is_v6 = self.protocol != 1 and rng.random() < 0.12
        client, server = 0x0A00_0000 + number, 0xC633_6400 + rng.randrange(256)  # 198.51.100.0/24
        port = rng.choice((80, 443, 443, 443, 22, 502, 102, 8080) if self.protocol == 6 else (53, 53, 123, 443, 161, 5004))
        self.ports = (1024 + rng.randrange(64_000), port)
        tag = bytes((0x81, 0, 0, 120)) if rng.random() < 0.05 else b""
        self.identification = rng.randrange(65_536)
        self.ways = []
        for source, destination, macs in ((client, server, MAC_B + MAC_A), (server, client, MAC_A + MAC_B)):
            if self.is_v6:
                prefix = bytes.fromhex("20010db8") + bytes(8)  # 2001:db8::/32
                addresses = prefix + source.to_bytes(4) + prefix + destination.to_bytes(4)
                self.ways.append((macs + tag + b"\x86\xdd", addresses, 0))
            else:
                addresses = source.to_bytes(4) + destination.to_bytes(4)
                total = sum(int.from_bytes(addresses[at:at + 2]) for at in range(0, 8, 2)) + 0x4500 + (64 << 8) + self.protocol
                self.ways.append((macs + tag + b"\x08\x00", addresses, total))

    def headers(self, way, data, flags=0, sequence=0, acknowledgement=0):
        """Headers of a packet with so many octets of data."""
        ports = self.ports if way == 0 else self.ports[::-1]
        if self.protocol == 6:
            transport = struct.pack(">HHIIBBHHH", *ports, sequence, acknowledgement, 0x50, flags, 8192, 0, 0)
        elif self.protocol == 17:
            transport = struct.pack(">HHHH", *ports, 8 + data, 0)
        else:
            transport = struct.pack(">BBHHH", 8 if way == 0 else 0, 0, 0, *self.ports)
        link, addresses, total = self.ways[way]
        length = len(transport) + data
        if self.is_v6:
            return link + struct.pack(">IHBB", 6 << 28, length, self.protocol, 64) + addresses + transport
        self.identification = (self.identification + 1) & 0xFFFF
        checksum = folded(total + 20 + length + self.identification)
        fixed = struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, self.identification, 0, 64, self.protocol, checksum)
        return link + fixed + addresses + transport

    def packets(self, count, rng):
        """Headers and octets of data of `count` packets, one after the other."""
        if self.protocol != 6:
            typical = rng.choice((64, 120, 400, 1100))
            for number in range(count):
                data = min(1400, int(rng.expovariate(1 / typical)))
                yield self.headers(number & 1 if rng.random() < 0.9 else 0, data), data
            return
        sent = [rng.randrange(1 << 32), rng.randrange(1 << 32)]

        def segment(way, data, flags):
            headers = self.headers(way, data, flags, sent[way], sent[1 - way] if flags & ACK else 0)
            sent[way] = (sent[way] + data + bool(flags & (SYN | FIN))) & 0xFFFF_FFFF
            return headers, data

        opening, closing = [(0, SYN), (1, SYN | ACK), (0, ACK)], [(0, FIN | ACK), (1, FIN | ACK), (0, ACK)]
        for way, flags in opening[:count]:
            yield segment(way, 0, flags)
        # Half of the segments are full ones of the server, as in a download; the rest are acknowledgements and requests.
        for _ in range(count - 6):
            draw = rng.random()
            if draw < 0.26:
                yield segment(1, 1440, ACK)
            elif draw < 0.80:
                yield segment(0 if draw < 0.65 else 1, 0, ACK)
            else:
                yield segment(0 if draw < 0.90 else 1, 1 + rng.randrange(600), PSH | ACK)
        for way, flags in closing[:max(0, count - 3)]:
            yield segment(way, 0, flags)


def mixed(rng):
    """(microseconds, headers, octets of data) of every packet of the mix, in order."""

    def life(number):
        conversation = Conversation(number, rng_of[number])
        own = rng_of[number]
        # Few long conversations carry most packets, as everywhere; at most 20,000 packets.
        count = min(20_000, 1 + int(1.55 * own.paretovariate(0.86)))
        # Nobody asks one name server's port twenty thousand questions, or pings as often.
        if conversation.protocol == 1 or conversation.ports[1] == 53:
            count = min(count, 4)
        gap = min(2_000_000, max(200, (SPAN_MICROS // 2) // count)) * own.random() + 100
        at = own.random() * max(1.0, SPAN_MICROS - count * gap)
        for headers, data in conversation.packets(count, own):
            yield int(at), headers, data
            at += own.expovariate(1 / gap)

    def arp():
        for number in range(31_000):
            way = number & 1
            frame = (MAC_A + MAC_B if way else b"\xff" * 6 + MAC_A) + bytes.fromhex("08060001080006040001" if not way else "08060001080006040002")
            yield number * (SPAN_MICROS // 31_000), frame + MAC_A + bytes((198, 51, 100, 1)) + bytes(6) + bytes((198, 51, 100, 2)), 0

    rng_of = [random.Random(rng.randrange(1 << 62)) for _ in range(CONVERSATIONS)]
    return heapq.merge(arp(), *(iter(list(life(number))) for number in range(CONVERSATIONS)), key=lambda packet: packet[0])


def scanned():
    """The same of the scan: 203.0.113.1 asks a million addresses, 100,000 a second; each refuses."""
    macs, scanner = (MAC_B + MAC_A + b"\x08\x00", MAC_A + MAC_B + b"\x08\x00"), bytes((203, 0, 113, 1))
    for number in range(1_000_000):
        target, port = (0x0A00_0000 + number).to_bytes(4), 40_000 + (number & 0x3FFF)
        for way in (0, 1):
            addresses = scanner + target if way == 0 else target + scanner
            total = sum(int.from_bytes(addresses[at:at + 2]) for at in range(0, 8, 2)) + 0x4500 + 40 + (64 << 8) + 6
            ip = struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, folded(total)) + addresses
            ports = (port, 502) if way == 0 else (502, port)
            tcp = struct.pack(">HHIIBBHHH", *ports, way ^ 1, way * 2, 0x50, (RST | ACK) if way else SYN, 0 if way else 8192, 0, 0)
            yield number * 10 + way * 5, macs[way] + ip + tcp, 0


def write(path, packets):
    """Writes a capture, and what is in it beside it."""
    counted = dict(packets=0, octets=0, ip_packets=0)
    record = struct.Struct("<IIII")
    with open(path + ".part", "wb", buffering=1 << 22) as out:
        out.write(PCAP_HEADER)
        for micros, headers, data in packets:
            padding = max(0, 60 - len(headers) - data)
            length = len(headers) + data + padding
            out.write(record.pack(START + micros // 1_000_000, micros % 1_000_000, length, length) + headers + PAYLOAD[:data + padding])
            counted["packets"] += 1
            counted["octets"] += length
            counted["ip_packets"] += headers[12:14] != b"\x08\x06"
    with open(os.path.splitext(path)[0] + ".json", "w") as out:
        json.dump(counted, out)
    os.rename(path + ".part", path)
    return counted


def make(directory, name):
    """The path of a capture, made if it is not there yet, and what is in it."""
    path = os.path.join(directory, name + ".pcap")
    if not os.path.exists(path):
        os.makedirs(directory, exist_ok=True)
        write(path, scanned() if name == "scan64" else mixed(random.Random(5)))
    with open(os.path.join(directory, name + ".json")) as text:
        return path, json.load(text)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for wanted in sys.argv[2:] or ["mix", "scan64"]:
        print(*make(sys.argv[1], wanted))
