"""Detect the file system of a path, and whether a ledger may be kept on it.

SQLite relies on POSIX locks that all processes see, and on fsync that reaches the disk. Network file systems give
neither reliably (https://sqlite.org/howtocorrupt.html, section 2): two machines could both spend what is left of a
budget, and a row that was reported durable could be lost.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MOUNT_TABLE = Path("/proc/self/mountinfo")
"""Linux' table of mounts; elsewhere there is none, and every path is of unknown kind."""

_NETWORK = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb2",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "lustre",
        "gpfs",
        "mmfs",
        "ceph",
        "glusterfs",
        "beegfs",
        "panfs",
        "orangefs",
        "pvfs2",
        "coda",
        "ncpfs",
        "acfs",
        "davfs",
    ]
)
_LOCAL = frozenset(
    [
        "ext2",
        "ext3",
        "ext4",
        "xfs",
        "btrfs",
        "zfs",
        "f2fs",
        "bcachefs",
        "jfs",
        "reiserfs",
        "tmpfs",
        "ramfs",
        "rootfs",
        "overlay",
        "overlayfs",
        "aufs",
        "ecryptfs",
        "vfat",
        "exfat",
        "ntfs",
        "ntfs3",
        "fuseblk",
        "fuse.fuse-overlayfs",
    ]
)
Kind = Literal["local", "network", "unknown"]


@dataclass(frozen=True)
class FileSystem:
    """The file system of a path.

    Attributes:
      type: As the operating system names it; "unknown" where it does not tell.
      kind: Whether its files are this machine's alone.
    """

    type: str
    kind: Kind


def file_system_of(path: Path) -> FileSystem:
    """Return the file system on which a path lies, or would lie. Symbolic links are followed."""
    try:
        table = MOUNT_TABLE.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return FileSystem("unknown", "unknown")
    place = Path(os.path.realpath(path))
    found, depth = "unknown", -1
    for line in table.splitlines():
        mount, _, source = line.partition(" - ")
        fields = mount.split(" ")
        if len(fields) < 5 or not source:
            continue
        point = Path(_unescaped(fields[4]))
        # The deepest mount point holds the path; of two at one point, the later one covers the earlier.
        if len(point.parts) >= depth and place.is_relative_to(point):
            found, depth = source.split(" ")[0], len(point.parts)
    return FileSystem(found, _kind(found))


def _kind(name: str) -> Kind:
    name = name.lower()
    if name in _LOCAL:
        return "local"
    # FUSE may be anything, and is mostly another machine (sshfs, s3fs, rclone, gcsfuse).
    return "network" if name in _NETWORK or name.split(".")[0] == "fuse" else "unknown"


def _unescaped(text: str) -> str:
    """Undo the octal escapes of blanks and backslashes in the table."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
