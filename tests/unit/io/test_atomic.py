from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medseg.core.errors import MedsegError, ReadError, ResourceError, WriteError
from medseg.io.atomic import write_atomically, write_bytes_atomically, write_json_atomically, write_text_atomically


def test_a_failed_check_leaves_no_file(tmp_path: Path) -> None:
    def check(path: Path) -> None:
        assert path.read_bytes() == b"new"
        assert path.name.endswith(".nii.gz"), "readers choose their format by the end of a name"
        raise ReadError("not as written")

    (tmp_path / "a.nii.gz").write_bytes(b"old")
    with pytest.raises(ReadError):
        write_bytes_atomically(tmp_path / "a.nii.gz", b"new", check=check, overwrite=True)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.nii.gz", b"old")]


KILLED = """
import os, signal, sys
from pathlib import Path
from medseg.io.atomic import write_atomically

def write(path):
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

write_atomically(Path(sys.argv[1]), write)
"""


def test_a_process_killed_while_writing_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a.txt")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name[0] for path in tmp_path.iterdir()] == ["."], "only the hidden half"
    write_text_atomically(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole"


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (errno.ENOSPC, ResourceError, "resource.disk"),
        (errno.EDQUOT, ResourceError, "resource.disk"),
        (errno.EACCES, WriteError, "write.failed"),
        (errno.EIO, WriteError, "write.failed"),
    ],
)
def test_what_the_system_refuses_is_told(tmp_path: Path, number: int, kind: type[MedsegError], code: str) -> None:
    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    with pytest.raises(kind) as raised:
        write_atomically(tmp_path / "a.bin", write)
    assert (raised.value.code, "a.bin" in raised.value.message) == (code, True)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(WriteError) as raised:
        write_text_atomically(tmp_path / ("x" * 300), "text")
    assert raised.value.code == "write.failed"


def test_file_names_that_are_no_utf8_can_be_recorded(tmp_path: Path) -> None:
    name = os.fsdecode(b"Gr\xf6\xdfe.nii")  # Latin-1, as old file shares have it
    write_json_atomically(tmp_path / "a.json", {"input": name, "Ärzte": 1})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"input": name, "Ärzte": 1}
