"""Requests that the kernel makes of a FUSE file system, counted by the kernel itself (tracepoint fuse_request_send)."""

import collections
import contextlib
import os
import re
from pathlib import Path

EVENT = re.compile(r"fuse_request_send: connection (\d+) req \d+ opcode \d+ \((?:FUSE_)?(\w+)\)")


class Requests:
    """A trace buffer of its own; without tracing in this kernel `counted` gives None."""

    def __init__(self, lab):
        self.directory = None
        with contextlib.suppress(OSError):
            point = lab.path("tracing")
            if lab.run("mount", "-t", "tracefs", "none", point, ok=None).returncode != 0:
                return
            lab.undo(lambda: lab.run("umount", point, ok=None))
            directory = point / "instances" / f"requests-{os.getpid()}"
            directory.mkdir()
            lab.undo(directory.rmdir)
            (directory / "buffer_size_kb").write_text("16384")
            (directory / "events/fuse/fuse_request_send/enable").write_text("1")
            self.directory = directory

    def counted(self, mountpoint, what):
        """({kind: requests}, result) of calling `what`, for the file system on a mount point."""
        if self.directory:
            (self.directory / "trace").write_text("")
        result = what()
        if not self.directory:
            return None, result
        number = os.stat(mountpoint).st_dev
        connection = str(os.major(number) << 20 | os.minor(number))
        events = EVENT.findall((self.directory / "trace").read_text(errors="replace"))
        return dict(collections.Counter(kind.lower() for device, kind in events if device == connection)), result
