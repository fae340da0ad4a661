"""How workers on several hosts reach one another: by the address by which Ray knows each.

Left to itself gloo listens on the address of the host's name, which on many machines (Debian's and Ubuntu's among
them) is 127.0.0.1 or 127.0.1.1, where no other host finds it. NCCL leaves the loopback interface out by itself.
"""

import fcntl
import os
import socket
import struct
from typing import Any

import ray
from ray.train.torch import TorchConfig

GLOO = "GLOO_SOCKET_IFNAME"
SIOCGIFADDR = 0x8915
"""Asks Linux for an interface's IPv4 address (netdevice(7))."""


def interface_of(address: str) -> str | None:
    """Return the name of the interface that has an IPv4 address; None where none of this host has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                reply = fcntl.ioctl(any_socket, SIOCGIFADDR, request)
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(reply[20:24]) == address:
                return name
    return None


def choose_interface() -> None:
    """Let gloo in this process use the interface by which Ray reaches its host, unless the environment names one."""
    interface = interface_of(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    if interface is not None:
        os.environ.setdefault(GLOO, interface)


class Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Ray Train's set-up of torch, after each worker has chosen its interface."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Choose interfaces, and join the workers."""
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


class ReachableConfig(TorchConfig):
    """Ray Train's settings of the process group, for workers that reach one another from any host."""

    @property
    def backend_cls(self) -> type[Backend]:
        """Give the set-up."""
        return Backend
