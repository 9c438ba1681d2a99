"""Commands on a terminal of a given width."""

import contextlib
import fcntl
import os
import pty
import struct
import sys
import termios
from pathlib import Path

ROOT = Path(__file__).parent.parent


def on_terminal(words: list[str], width: int, folder: Path = ROOT) -> tuple[int, str]:
    """Runs Python with these words on a terminal of `width` columns; its exit code and what it wrote, escape codes among it."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
        kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        os.execve(sys.executable, [sys.executable, *words], {**kept, "TERM": "xterm", "PYTHONPATH": str(ROOT)})
    said = b""
    with contextlib.suppress(OSError):  # the end, on Linux
        while read := os.read(terminal, 65536):
            said += read
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), said.decode()
