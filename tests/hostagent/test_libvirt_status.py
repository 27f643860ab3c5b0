"""A libvirtd that was killed in a bad moment finds its guests again."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from hostagent.libvirt_status import mended_status
from hostagent.main import main

BEGINNING = b"<domstatus state='paused' reason='starting up' pid='0'><domain type='qemu' id='19'/></domstatus>"
STATUS = """<domstatus state='running' reason='booted' pid='142'>
  <blockjobs active='yes'>
    <blockjob name='commit-vda-libvirt-9-format' type='{job}' state='pivoting' newstate='completed' jobflags='0x4'>
      <disk dst='vda'/>
      <base node='libvirt-5-format'/>
    </blockjob>
  </blockjobs>
  <domain type='qemu' id='1'>
    <devices>
      <disk type='file' device='disk'>
        <mirror type='file' job='{vda}'><format type='qcow2'/></mirror>
        <target dev='vda' bus='virtio'/>
      </disk>
      <disk type='file' device='disk'>
        <mirror type='file' job='{vdb}'><format type='qcow2'/></mirror>
        <target dev='vdb' bus='virtio'/>
      </disk>
    </devices>
  </domain>
</domstatus>
"""


def status(job: str = "active-commit", vda: str = "", vdb: str = "copy") -> bytes:
    return STATUS.format(job=job, vda=vda, vdb=vdb).encode()


def test_a_mirror_is_told_again_what_it_is_for() -> None:
    mended = mended_status(status())
    assert b"job=\"active-commit\"" in mended
    assert mended.replace(b'"', b"'").strip() == status(vda="active-commit").strip()
    assert mended_status(mended) == mended


BACKUP = """<domstatus state='running' reason='booted' pid='142'>
  <blockjobs active='yes'>
    <blockjob name='backup-vda-libvirt-3-format' type='backup' state='running'><disk dst='vda'/></blockjob>
    <blockjob name='backup-vdb-libvirt-2-format' type='backup' state='new'><disk dst='vdb'/></blockjob>
  </blockjobs>
  <backups>
    <domainbackup mode='push'>
      <disks>
        <disk name='vda' backup='yes' state='running' type='file'/>
        <disk name='vdb' backup='yes'{state} type='file'/>
        <disk name='vdz' backup='no'/>
      </disks>
    </domainbackup>
  </backups>
</domstatus>
"""


def test_a_disk_that_a_backup_just_began_to_copy_is_told_to_be_under_way() -> None:
    text = BACKUP.format(state="").encode()
    mended = mended_status(text)
    assert b'name="vdb" backup="yes" type="file" state="running"' in mended
    assert b'name="vdz" backup="no"/>' in mended
    assert mended_status(mended) == mended
    whole = BACKUP.format(state=" state='cancelling'").encode()
    assert mended_status(whole) == whole
    unknown = text.replace(b"<disk dst='vdb'/>", b"<disk dst='vdc'/>")
    assert mended_status(unknown) == unknown


@pytest.mark.parametrize(
    "text",
    [status(vda="active-commit"), status(job="commit"), status(vda="copy", vdb=""), b"", b"<domstatus", b"<other/>"],
    ids=["whole", "a job without mirror", "a mirror without job", "empty", "torn", "something else"],
)
def test_what_cannot_be_known_stays_as_it_is(text: bytes) -> None:
    assert mended_status(text) == text


def test_a_guest_that_never_began_is_off(tmp_path: Path) -> None:
    (tmp_path / "begins.xml").write_bytes(BEGINNING)
    (tmp_path / "runs.xml").write_bytes(BEGINNING)
    (tmp_path / "runs.pid").write_text(str(os.getpid()))
    (tmp_path / "began.xml").write_bytes(BEGINNING.replace(b"'0'", b"'142'"))
    (tmp_path / "torn.xml").write_bytes(BEGINNING[:40])
    done = CliRunner().invoke(main, ["mend-libvirt", "--run-dir", str(tmp_path)])
    assert (done.exit_code, done.output.split(":")[0]) == (0, "begins")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["began.xml", "runs.pid", "runs.xml", "torn.xml"]


def test_only_the_file_that_needs_it_is_changed(tmp_path: Path) -> None:
    (tmp_path / "lost.xml").write_bytes(status())
    (tmp_path / "whole.xml").write_bytes(status(vda="active-commit"))
    (tmp_path / "lost.pid").write_text("142")
    done = CliRunner().invoke(main, ["mend-libvirt", "--run-dir", str(tmp_path)])
    assert (done.exit_code, done.output.split(":")[0]) == (0, "lost")
    assert (tmp_path / "whole.xml").read_bytes() == status(vda="active-commit")
    assert (tmp_path / "lost.xml").read_bytes() == mended_status(status())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["lost.pid", "lost.xml", "whole.xml"]
    assert CliRunner().invoke(main, ["mend-libvirt", "--run-dir", str(tmp_path)]).output == ""
    assert CliRunner().invoke(main, ["mend-libvirt", "--run-dir", str(tmp_path / "none")]).exit_code == 0
