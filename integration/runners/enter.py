#!/usr/bin/env python3
"""Starts a program in a root directory as `systemd-nspawn --volatile=overlay` does, on machines without systemd: enter.py FILE

FILE is JSON: root, args, env, cwd, user and group. The directory is never written to: an overlay with a tmpfs lies on it. The program is
process 1 of a namespace, has mounts and a host name of its own, and nothing is left of the machine's directories.
"""

import ctypes
import json
import os
import socket
import sys
import warnings  # noqa: F401  os.execvpe loads it, when the machine's files are out of sight

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID = 0x00020000, 0x04000000, 0x08000000, 0x20000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH, PR_SET_PDEATHSIG, SIGKILL = 2, 1, 9
DEVICES = ("full", "null", "random", "tty", "urandom", "zero")

libc = ctypes.CDLL(None, use_errno=True)


def call(name, *arguments):
    """A function of the C library; strings and None are pointers."""
    if getattr(libc, name)(*(os.fsencode(word) if isinstance(word, str) else word for word in arguments)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name} {arguments}: {os.strerror(error)}")


def enter(root):
    """Makes the overlay the root directory."""
    call("mount", "none", "/", None, MS_REC | MS_PRIVATE, None)
    call("mount", "tmpfs", "/tmp", "tmpfs", MS_NODEV, None)
    for name in ("upper", "work", "root"):
        os.mkdir(f"/tmp/{name}")
    call("mount", "overlay", "/tmp/root", "overlay", MS_NODEV, f"lowerdir={root},upperdir=/tmp/upper,workdir=/tmp/work")
    call("mount", "proc", "/tmp/root/proc", "proc", MS_NOSUID | MS_NODEV, None)
    call("mount", "tmpfs", "/tmp/root/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    call("mount", "tmpfs", "/tmp/root/dev", "tmpfs", MS_NOSUID, "mode=755")
    for name in DEVICES:
        open(f"/tmp/root/dev/{name}", "w").close()
        call("mount", f"/dev/{name}", f"/tmp/root/dev/{name}", None, MS_BIND, None)
    os.chdir("/tmp/root")
    call("pivot_root", ".", ".")  # the old root then lies on the new one
    call("umount2", ".", MNT_DETACH)
    os.chdir("/")


def main():
    with open(sys.argv[1]) as file:
        what = json.load(file)
    call("unshare", CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status))
    call("prctl", PR_SET_PDEATHSIG, SIGKILL)
    socket.sethostname("container")
    enter(what["root"])
    os.chdir(what["cwd"])
    os.setgroups([])
    os.setgid(what["group"])
    os.setuid(what["user"])
    os.execvpe(what["args"][0], what["args"], what["env"])


if __name__ == "__main__":
    main()
