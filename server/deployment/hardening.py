"""Restrictions of the services on their machines, as lines of a systemd unit.

Each of the four programs gets what all of them can do without, and beyond it what it itself can. What is left open is
left open for a reason: Flower and PyTorch need writable and executable memory at once (foreign functions, kernels made
as they run), PyTorch pins threads to cores, a node looks at ``/proc/meminfo`` and uses GPUs, and only SuperLink needs
no one beyond this machine.
"""

from __future__ import annotations

_ALL = (
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "AmbientCapabilities=",
    "ProtectSystem=strict",
    "PrivateTmp=yes",
    "ProtectProc=invisible",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelLogs=yes",
    "ProtectControlGroups=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "RemoveIPC=yes",
    "KeyringMode=private",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged",
    "SystemCallErrorNumber=EPERM",
    # What was in memory (texts, keys) is written nowhere when a program dies.
    "LimitCORE=0",
    "UMask=0077",
)
_NO_DEVICES = ("PrivateDevices=yes", "PrivateUsers=yes")
_OWN: dict[str, tuple[str, ...]] = {
    "superlink": (
        *_NO_DEVICES,
        "ProtectHome=yes",
        "IPAddressDeny=any",
        "IPAddressAllow=localhost",
        "TasksMax=512",
    ),
    # Experiments and evaluation data may lie in somebody's home; models come from a hub.
    "superexec": (*_NO_DEVICES, "ProtectHome=read-only", "TasksMax=2048"),
    "proxy": (
        *_NO_DEVICES,
        "ProtectHome=yes",
        "ProcSubset=pid",
        "MemoryDenyWriteExecute=yes",
        "SystemCallFilter=~@resources",
        "TasksMax=64",
    ),
    # GPUs; the data may lie in a home.
    "node": (
        "DevicePolicy=closed",
        "DeviceAllow=char-nvidia* rw",
        "DeviceAllow=char-drm rw",
        "DeviceAllow=char-kfd rw",
        "ProtectHome=read-only",
        "TasksMax=2048",
    ),
}


def hardening(service: str, folder: str) -> tuple[str, ...]:
    """Return the lines of the ``[Service]`` section of one program's unit.

    Args:
        folder: the deployment's or the node's, which alone may be written.
    """
    return (*_ALL, *_OWN[service], f"ReadWritePaths={folder}")
