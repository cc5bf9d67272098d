"""Exit codes of the commands, and that output goes where it was asked to, or nowhere."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from qfuse.dialects.errors import QfuseError
from qfuse.tools.ending import exit_code
from qfuse.tools.files import check_writable, write_text

MODULE = "func.func @f() {\n  return\n}\n"


def run_opt(*argv: str, **streams) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "qfuse.tools.qfuse_opt", *argv]
    return subprocess.run(command, input=MODULE.encode(), stderr=subprocess.PIPE, **streams)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (QfuseError("no such thing"), 1, "qfuse: error: no such thing\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(capsys, error, code, said):
    def command() -> int:
        raise error

    assert exit_code("qfuse", command) == code
    assert capsys.readouterr() == ("", said)


def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = run_opt("-", stdout=full)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "qfuse-opt: error: [Errno 28] No space left on device"
    ]


def test_a_reader_that_left_is_no_news():
    read, write = os.pipe()
    os.close(read)
    done = run_opt("-", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_closed_output_is_no_error():
    done = run_opt("-", preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, b"")


def test_input_that_is_no_text():
    command = [sys.executable, "-m", "qfuse.tools.qfuse_opt", "-"]
    done = subprocess.run(command, input=b"\xff\xfe", capture_output=True)
    assert done.returncode == 1
    assert done.stderr == b"qfuse-opt: error: cannot read -: not a text file\n"


def test_files_are_as_readable_as_others(tmp_path: Path):
    (tmp_path / "other").write_text("")
    write_text(tmp_path / "ours", "text")
    modes = {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert len(modes) == 1


def test_pipes_and_links_are_written_through(tmp_path: Path):
    """Nothing takes the place of a device: as root, that would be the end of /dev/null."""
    pipe, target, link = (tmp_path / name for name in ("pipe", "target", "link"))
    os.mkfifo(pipe)
    link.symlink_to(target)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    write_text(link, "through")
    assert link.is_symlink() and target.read_text() == "through"
    with pytest.raises(QfuseError, match="Not a regular file"):
        check_writable(pipe)
