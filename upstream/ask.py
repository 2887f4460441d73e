"""One question to one target. It goes out as the node's own packets do: by its routing table, from its own address.

An answer is `""`, anything else says why there is none. Whatever the target sends, little of it is read.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from contextlib import suppress
from struct import pack

from upstream.targets import Target

ECHO_REQUEST, ECHO_REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}  # RFC 792, RFC 4443
STATUS_LINE = 512  # bytes at most


class CannotAsk(Exception):
    """This process may not: no question was asked, whatever the target would say."""


async def ask(target: Target, timeout: float) -> str:
    """Why the target does not answer within `timeout` seconds, "" = it does. Raises CannotAsk."""
    try:
        async with asyncio.timeout(timeout):
            return await {"icmp": _echo, "tcp": _connect, "http": _get}[target.kind](target)
    except TimeoutError:
        return f"no answer within {timeout:g} s"
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__  # some of asyncio's say nothing


# --- ICMP


async def _echo(target: Target) -> str:
    """Its answer bears 16 random bytes of ours, so that nobody can answer for it who does not see the question."""
    version, token = target.address.version, os.urandom(16)
    with _icmp_socket(version) as client:
        client.setblocking(False)
        client.connect((str(target.address), 0))  # answers of others are not taken; nothing to wait for
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, request(version, token))
        while True:
            answer = await loop.sock_recv(client, 1024)
            if is_answer(version, answer, token):
                return ""


def _icmp_socket(version: int) -> socket.socket:
    """One of datagrams where the kernel lets this group (ping_group_range), else a raw one. Raises CannotAsk."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    with suppress(PermissionError):
        return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, protocol)
    try:
        return socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    except PermissionError as error:
        raise CannotAsk("it may not send ICMP: give it CAP_NET_RAW, or net.ipv4.ping_group_range its group") from error


def request(version: int, token: bytes) -> bytes:
    """An echo request. Of IPv6 the kernel makes the checksum, and for sockets of datagrams the identifier, too."""
    identifier = int.from_bytes(token[:2], "big")
    message = pack("!BBHHH", ECHO_REQUEST[version], 0, 0, identifier, 1) + token
    return message if version == 6 else message[:2] + pack("!H", checksum(message)) + message[4:]


def checksum(data: bytes) -> int:
    """RFC 1071; `data` of an even length."""
    total = sum(int.from_bytes(data[place : place + 2], "big") for place in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def is_answer(version: int, packet: bytes, token: bytes) -> bool:
    """Of IPv4 a raw socket gives the IP header, too; the first half of its first byte is 4, and that of no ICMP."""
    head = (packet[0] & 0xF) * 4 if version == 4 and packet and packet[0] >> 4 == 4 else 0
    message = packet[head:]
    return len(message) >= 8 and message[0] == ECHO_REPLY[version] and message[8 : 8 + len(token)] == token


# --- TCP and HTTP


async def _connect(target: Target) -> str:
    _, writer = await asyncio.open_connection(str(target.address), target.port)
    writer.close()
    return ""


async def _get(target: Target) -> str:
    """2xx and 3xx count, as in Kubernetes' probes."""
    reader, writer = await asyncio.open_connection(
        str(target.address), target.port, ssl=_unchecked() if target.tls else None, limit=STATUS_LINE
    )
    try:
        host = f"{target.host}:{target.port}"
        writer.write(f"GET {target.path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: routerd\r\n".encode())
        writer.write(b"Accept: */*\r\nConnection: close\r\n\r\n")
        return status_of(await reader.readline())
    except ValueError:  # no end of line within the limit
        return "what answers speaks no HTTP"
    finally:
        writer.transport.abort()  # a target that does not take leave of TLS would be waited for


def status_of(line: bytes) -> str:
    """Why the first line of an answer is none that counts, "" = it counts (RFC 9112, section 4)."""
    version, _, rest = line.partition(b" ")
    code = rest[:3]
    if not (version.startswith(b"HTTP/1.") and len(code) == 3 and code.isdigit()):
        return "what answers speaks no HTTP"
    return "" if code[:1] in b"23" else f"HTTP status {code.decode()}"


def _unchecked() -> ssl.SSLContext:
    """A certificate is not asked for: the question is whether a way leads there, not who is there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without the host's authorities, which take 20 ms to read
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
