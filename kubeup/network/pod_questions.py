"""Asks from inside a network namespace, a pod's or this node's own: whether something answers there, and how large packets may be.

The questions go to the Python that runs kb, started inside the namespace by nsenter, so that no image or other program is needed. They only
look; what an answer means is decided elsewhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from kubeup.cluster import dns_query
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.shapes import read_rows

ANSWER_S = 2
LISTEN_S = 6
WATCH_S = 2.5
"""Longer than the two rounds of an echo."""
GREETING = "kb-probe"
_ASK = f"""
import concurrent.futures, json, os, select, socket, struct, sys, time
def sum_up(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 65535)
    return ~(total + (total >> 16)) & 65535
def echo(address, six):
    level, head, kind, answer = (41, 48, 128, 129) if six else (0, 28, 8, 0)
    own = int.from_bytes(os.urandom(2), "big")
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, 58 if six else 1) as one:
        one.setsockopt(level, 23 if six else 10, 2)
        one.connect((address, 0))
        best = 0
        for _ in range(2):
            mtu = min(9000, one.getsockopt(level, 24 if six else 14))
            for size in sorted({{mtu, 128, *(it for it in (8900, 1480, 1460, 1450, 1440, 1430, 1420, 1400, 1370, 1280, 1000, 576) if it < mtu)}}):
                data = bytes(size - head - size % 2)
                packet = struct.pack("!BBHHH", kind, 0, 0, own, size) + data
                packet = packet[:2] + struct.pack("!H", sum_up(packet)) + packet[4:] + bytes(size % 2)
                try:
                    one.send(packet)
                except OSError:
                    pass
            end = time.monotonic() + 1
            while best < mtu and select.select([one], [], [], max(0, end - time.monotonic()))[0]:
                got = one.recv(65535)
                got = got if six else got[(got[0] & 15) * 4:]
                if got[0] == answer and struct.unpack("!H", got[4:6])[0] == own:
                    best = max(best, struct.unpack("!H", got[6:8])[0])
            if best >= mtu:
                break
    return "%d %d" % (best, mtu) if best else ""
def watch(address, six):
    wanted = socket.inet_pton(socket.AF_INET6 if six else socket.AF_INET, address)
    left = came = False
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)) as one:
        end = time.monotonic() + {WATCH_S}
        while not came and select.select([one], [], [], max(0, end - time.monotonic()))[0]:
            data, place = one.recvfrom(128)
            if place[1] != (0x86dd if six else 0x800):
                continue
            at, proto, kinds = (40, data[6], (128, 129)) if six else ((data[0] & 15) * 4, data[9], (8, 0))
            if proto != (58 if six else 1) or len(data) <= at:
                continue
            source, target = (data[8:24], data[24:40]) if six else (data[12:16], data[16:20])
            left = left or (target == wanted and data[at] == kinds[0] and place[2] == 4)
            came = source == wanted and data[at] == kinds[1] and place[2] != 4
    return "answered" if came else "left" if left else "stayed"
def listen(address, port, six):
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((address, port))
        one.listen(8)
        one.settimeout({LISTEN_S})
        other = one.accept()[0]
        with other:
            other.settimeout(1)
            other.recv(4096)
            other.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Length: {len(GREETING)}\\r\\n\\r\\n{GREETING}")
    return "served"
def ask(question):
    kind, address, port, payload = question
    six = ":" in address
    try:
        if kind == "echo":
            return echo(address, six)
        if kind == "watch":
            return watch(address, six)
        if kind == "listen":
            return listen(address, port, six)
        family = socket.AF_INET6 if six else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as one:
            one.settimeout({ANSWER_S})
            try:
                one.connect((address, port))
            except ConnectionRefusedError:
                return "refused" if kind == "touch" else ""
            if kind in ("tcp", "touch"):
                return "open"
            data = bytes.fromhex(payload)
            if kind == "udp":
                one.send(data)
                return one.recv(65535).hex()
            one.sendall(struct.pack("!H", len(data)) + data)
            with one.makefile("rb") as stream:
                return stream.read(struct.unpack("!H", stream.read(2))[0]).hex()
    except (OSError, struct.error):
        return ""
questions = json.loads(sys.argv[1])
with concurrent.futures.ThreadPoolExecutor(len(questions)) as pool:
    print(json.dumps(list(pool.map(ask, questions))))
"""
"""Answers: of udp and dns-tcp the data in hexadecimal digits; of tcp `open`; of touch, to which a refusal is an answer, `open` or
`refused`; of echo the largest packet that came back and the largest that the route allows; of listen `served`; of watch, asked of this node
while a pod asks for an echo, whether the packet `left` this machine, `stayed`, or was `answered` by one that came back; "" if none came.
The numbers are Linux's: IP_MTU_DISCOVER and IP_MTU (and IPv6's) with IP_PMTUDISC_DO, ICMP's echo, ETH_P_ALL (no other packet socket
sees what leaves) and PACKET_OUTGOING."""


@frozen
class Question:
    """kind: udp and dns-tcp for a DNS server, tcp, touch for anything that answers TCP, echo for its ICMP, listen on an own address, watch for another's packets."""

    kind: str
    address: str
    port: int = 0


def ask(
    host: Host, namespace: Optional[Path], *, questions: Sequence[Question], name: str = ""
) -> Optional[dict[Question, str]]:
    """The answer to each question, "" for none; None if nothing can be asked there: the pod has ended meanwhile, or nsenter is missing.
    namespace: None for this node's own. name: the name that DNS servers are asked for."""
    query_id = int(host.monotonic() * 1000) & 0xFFFF
    rows = []
    for one in questions:
        kind = dns_query.TYPE_AAAA if ":" in one.address else dns_query.TYPE_A
        is_dns = one.kind in ("udp", "dns-tcp")
        payload = dns_query.render_query(name, query_id=query_id, record_type=kind).hex() if is_dns else ""
        rows.append((one.kind, one.address, one.port, payload))
    enter = ["nsenter", f"--net={namespace}"] if namespace else []
    argv = [*enter, sys.executable, "-I", "-S", "-c", _ASK, json.dumps(rows)]
    answer = host.query(argv, timeout_s=5 * ANSWER_S)
    told = read_rows(answer.stdout if answer.ok else "", str)
    if len(told) != len(questions):
        return None
    return {
        one: text
        if one.kind not in ("udp", "dns-tcp") or dns_query.parse_answer(_unhex(text), query_id=query_id)
        else ""
        for one, text in zip(questions, told)
    }


def _unhex(text: str) -> Optional[bytes]:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None
