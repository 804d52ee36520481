"""Ledgers on network file systems are refused before anything is made, by the table of mounts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from privacy import file_system
from privacy.file_system import file_system_of
from privacy.ledger import storage as ledger_file
from privacy.ledger.ledger import Ledger, LedgerError

LINE = "{number} 1 0:{number} / {point} rw,relatime shared:1 - {kind} source rw"


@pytest.fixture
def mounts(tmp_path, monkeypatch):
    """``mounts((point, type), ...)`` makes these, in this order, all there is below an ext4 root."""

    def make(*pairs: tuple[object, str]) -> None:
        lines = [
            LINE.format(number=number, point=str(point).replace(" ", r"\040"), kind=kind)
            for number, (point, kind) in enumerate([("/", "ext4"), *pairs], start=20)
        ]
        table = tmp_path / "mountinfo"
        table.write_text("\n".join(lines) + "\n", encoding="utf-8")
        monkeypatch.setattr(file_system, "MOUNT_TABLE", table)

    return make


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "lustre", "gpfs", "afs", "fuse.sshfs", "ceph"]
)
def test_a_ledger_on_a_network_file_system_is_refused_and_leaves_nothing(tmp_path, mounts, kind):
    shared = tmp_path / "shared"
    shared.mkdir()
    mounts((shared, kind))
    path = shared / "new" / "ledger.sqlite"
    with pytest.raises(LedgerError, match="local disk") as refused:
        Ledger(path)
    message = str(refused.value)
    assert str(path) in message
    assert f"({kind})" in message
    assert "privacy.ledger" in message
    assert "\n" not in message
    assert list(shared.iterdir()) == []


def test_reading_is_allowed_where_writing_is_not(tmp_path, mounts):
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    mounts((tmp_path, "nfs4"))
    with Ledger(path, read_only=True) as ledger:
        assert ledger.entries() == []
    with pytest.raises(LedgerError, match="nfs4"):
        Ledger(path)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "fuseblk"])
def test_a_local_disk_below_a_network_mount_is_local(tmp_path, mounts, kind):
    (tmp_path / "disk").mkdir()
    mounts((tmp_path, "nfs4"), (tmp_path / "disk", kind))
    assert file_system_of(tmp_path / "disk" / "x" / "y").kind == "local"
    Ledger(tmp_path / "disk" / "ledger.sqlite").close()


def test_a_mount_covers_what_was_mounted_there_before(tmp_path, mounts):
    mounts((tmp_path, "ext4"), (tmp_path, "nfs"))
    assert file_system_of(tmp_path / "a").type == "nfs"
    mounts((tmp_path, "nfs"), (tmp_path, "ext4"))
    assert file_system_of(tmp_path / "a").type == "ext4"


def test_a_name_that_only_begins_alike_is_another_place(tmp_path, mounts):
    mounts((tmp_path / "data", "nfs"))
    assert file_system_of(tmp_path / "data" / "a").type == "nfs"
    assert file_system_of(tmp_path / "database" / "a").type == "ext4"


def test_links_are_followed(tmp_path, mounts):
    shared, link = tmp_path / "a shared folder", tmp_path / "link"
    shared.mkdir()
    link.symlink_to(shared)
    mounts((shared, "cifs"))
    with pytest.raises(LedgerError, match="cifs"):
        Ledger(link / "ledger.sqlite")
    file = tmp_path / "file.sqlite"
    file.symlink_to(shared / "ledger.sqlite")
    with pytest.raises(LedgerError, match="cifs"):
        Ledger(file)
    assert list(shared.iterdir()) == []


def test_what_is_not_known_is_used_and_said(tmp_path, mounts, monkeypatch, caplog):
    monkeypatch.setattr(ledger_file, "_told", set())
    mounts((tmp_path, "novelfs"))
    with caplog.at_level(logging.INFO, logger="privacy.ledger.storage"):
        Ledger(tmp_path / "one.sqlite").close()
        Ledger(tmp_path / "two.sqlite").close()
    assert [record.getMessage().count("novelfs") for record in caplog.records] == [1]


def test_without_a_table_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(file_system, "MOUNT_TABLE", Path("/nowhere/mountinfo"))
    assert file_system_of(tmp_path) == file_system.FileSystem("unknown", "unknown")
    Ledger(tmp_path / "ledger.sqlite").close()


def test_a_damaged_table_is_no_reason_to_fail(tmp_path, monkeypatch):
    table = tmp_path / "mountinfo"
    table.write_bytes(b"\xff\xfe - \nno dash\n1 2 3 - \n20 1 0:1 / / rw - ext4 x rw\n")
    monkeypatch.setattr(file_system, "MOUNT_TABLE", table)
    assert file_system_of(tmp_path).type == "ext4"
