"""Runs programs below a root directory: chroot in a mount namespace of its own, no engine."""

import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path

from lab import Failure, tail

ROOT, NOBODY = "0:0", "65534:65534"

# enter ROOT USER:GROUP COMMAND…, with the environment of the image
ENTER = """
root=$1 user=$2; shift 2
mount --bind /proc "$root/proc"; mount --bind /dev "$root/dev"; mount -t tmpfs none "$root/tmp"; chmod 1777 "$root/tmp"
exec env -i "${image_environment[@]}" "$chroot" --userspec="+${user%:*}:+${user#*:}" --groups= "$root" "$@"
"""


class Container:
    """A root directory with the environment of its image."""

    def __init__(self, root, environment):
        self.root = Path(root)
        words = " ".join(map(shlex.quote, environment))
        prelude = f"image_environment=({words}); chroot={shutil.which('chroot')}"
        self._enter = ["unshare", "--mount", "--propagation", "private", "bash", "-euc", prelude + ENTER, "enter", str(root)]

    def run(self, *command, user=ROOT):
        """Runs a command to its end; stdout and stderr in one."""
        return subprocess.run(
            [*self._enter, user, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )

    def first_output(self, command, since):
        """Runs a command; returns the seconds from `since` to its first output (or its end without any) and all of its output."""
        with subprocess.Popen([*self._enter, ROOT, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            first = os.read(process.stdout.fileno(), 1 << 16)
            seconds = time.monotonic() - since
            output = (first + process.stdout.read()).decode(errors="replace")
        if process.returncode != 0:
            raise Failure(f"status {process.returncode} from {shlex.join(command)} in {self.root}\n{tail(output)}")
        return seconds, output
