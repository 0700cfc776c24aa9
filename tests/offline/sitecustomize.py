"""No test talks to the network: a Python that finds this folder on its path raises when it reaches beyond this machine.

tests/conftest.py runs this file in the test process and puts its folder first on PYTHONPATH, so that subprocesses load
it at start-up. It listens to the interpreter's audit events, which no import order can dodge; libraries that open
sockets in C stay unseen. Loopback and unix sockets pass. NET=1 lets everything pass (tests marked `net`).
"""

import os
import socket
import sys

HERE = {"localhost", "localhost.localdomain", "", socket.gethostname(), "::1", "0.0.0.0", "::"}
ASKS = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
}


class NetworkUsed(RuntimeError):
    """A test reached beyond this machine. No OSError, so that no library takes it for bad weather and goes on."""


def host_of(address):
    """The host an audit event names: str, or None for a unix socket or for a socket that is connected already."""
    host = address[0] if isinstance(address, tuple) else address
    host = host.decode() if isinstance(host, bytes) else host
    return host if isinstance(address, tuple) or not str(host).startswith(("/", "\0")) else None


def listen(event, args):
    if event not in ASKS or os.environ.get("NET") == "1":
        return
    host = host_of(args[ASKS[event]])
    if host is not None and host not in HERE and not host.startswith("127."):
        raise NetworkUsed(f"{event} to {host}: tests use no network; ship the data, or mark the test `net`.")


sys.addaudithook(listen)
