"""Images for engines that stack layers: small ones of 1, 12 and 60 layers with everything in them that a stack can get wrong.

All begin with the same layer, a busybox; the one of 60 begins with the one of 12. Nothing is fetched: busybox comes with the engines
(`integration/engines`), one program is compiled here. `container_tree` describes what a running container sees, to be compared with what
another engine or snapshotter makes of the same image.
"""

import hashlib
import os
import subprocess
import tarfile
from pathlib import Path

import images
from lab import Failure

# A program that can be given rights: busybox drops those of a set-user-id bit by itself.
WHO = """\
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int main(int count, char **words) {
    const char *can = count > 1 && open(words[1], O_RDONLY) >= 0 ? "can" : "can't";
    printf("%d %s read\\n", (int)geteuid(), can);
    return 0;
}
"""

# CAP_DAC_OVERRIDE, effective and permitted, as images.READ_ANY_FILE is made: the one of such capabilities that engines leave to containers.
OVERRIDE_RIGHTS = b"".join(word.to_bytes(4, "little") for word in (0x0200_0001, 1 << 1, 0, 0, 0))

APPLETS = "cat chmod chown cp dd echo env false find grep head id ln ls mkdir mv ps rm rmdir sh sleep sort stat sync test touch true wc".split()
ENVIRONMENT = ["PATH=/bin", f"GREETING={images.GREETING}"]

# The images and which layers they have, from the bottom up. The second layer of `gap` is in no published image, its third is.
IMAGES = {
    "one": [0],
    "twelve": range(12),
    "sixty": range(60),
    "gap": [0, "unpublished", 5],
    "pause": [0],
}


class Stack:
    """The layouts of all images, in directories of their own below one."""

    def __init__(self, home, engines):
        busybox = Path(engines) / "bookworm/bin/busybox"
        if not busybox.exists():
            raise Failure(f"{busybox} is missing: integration/engines brings it")
        key = [Path(__file__).read_text(), hashlib.sha256(busybox.read_bytes()).hexdigest()]
        Path(home).mkdir(parents=True, exist_ok=True)
        self.directory = images.cached(home, "stack", key, lambda directory: _write_images(directory, busybox))

    def names(self):
        """All images."""
        return list(IMAGES)

    def layout(self, name):
        """The directory of an image's layout."""
        return self.directory / name

    def layers(self, name):
        """The layer digests of an image, from the bottom up."""
        manifest, _ = images.read_layout(self.layout(name))
        return [layer["digest"] for layer in manifest["layers"]]

    def size(self, name):
        """Bytes of an image's layers as they are transferred."""
        manifest, _ = images.read_layout(self.layout(name))
        return sum(layer["size"] for layer in manifest["layers"])


def _write_images(directory, busybox):
    directory.mkdir()
    who = directory / "who"
    source = directory / "who.c"
    source.write_text(WHO)
    done = subprocess.run(["cc", "-static", "-O1", "-s", "-o", who, source], capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(f"cc can't make a static program: {done.stderr}")
    for name, numbers in IMAGES.items():
        layout = images.Layout(directory / name)
        for number in numbers:
            with layout.layer() as layer:
                _fill(layer, number, busybox.read_bytes(), who.read_bytes())
        command = ["/bin/sleep", "1000000000"] if name == "pause" else ["/bin/sh", "-c", 'echo "$GREETING"']
        layout.finish("1", Env=ENVIRONMENT, Cmd=command, WorkingDir="/")


def _fill(layer, number, busybox, who):
    """Writes the layer of a number; the same bytes in each image."""
    special = {0: _base, 1: _below, 2: _changes, 3: _odd, 4: _changed_again}
    if number in special:
        special[number](layer, busybox, who)
    elif number == "unpublished":
        layer.directory("opt/gap")
        layer.add("opt/gap/file", content=b"only the registry has this layer\n" * 3000)
    else:
        layer.directory("opt/layers")
        layer.add(f"opt/layers/{number}", content=b"%d\n" % number)
        layer.add("opt/layers/last", content=b"%d\n" % number)
        if number % 7 == 0:
            layer.add(f"opt/layers/.wh.{number - 2}")


def _base(layer, busybox, who):
    for name in ("bin", "dev", "etc", "proc", "run", "sys", "tmp", "var"):
        layer.directory(name)
    layer.add("root", tarfile.DIRTYPE, mode=0o700)
    layer.add("bin/busybox", content=busybox, mode=0o755)
    for applet in APPLETS:
        layer.add(f"bin/{applet}", tarfile.SYMTYPE, link="busybox")
    layer.add("bin/who", content=who, mode=0o755)
    layer.add("etc/passwd", content=b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n")
    layer.add("etc/group", content=b"root:x:0:\nnogroup:x:65534:\n")


def _below(layer, *_):
    """What the layers above change."""
    layer.directory("opt/stack/replaced/sub")
    layer.add("opt/stack/deleted", content=b"a layer above deletes this\n")
    layer.add("opt/stack/back", content=b"deleted, and back in a third layer\n")
    layer.add("opt/stack/replaced/old", content=b"an opaque directory hides this\n")
    layer.add("opt/stack/replaced/sub/deep", content=b"and this\n")
    layer.directory("opt/stack/gone/with")
    layer.add("opt/stack/gone/with/all", content=b"deleted with its directory\n")
    layer.add("opt/stack/becomes-directory", content=b"a file\n")
    layer.directory("opt/stack/becomes-file")
    layer.add("opt/stack/becomes-file/inside", content=b"vanishes\n")
    layer.add("opt/stack/becomes-link", content=b"a file\n")
    layer.directory("opt/stack/merged")
    layer.add("opt/stack/merged/below", content=b"one of two\n")
    layer.add("opt/stack/mode", content=b"other mode and owner above\n", mode=0o600)


def _changes(layer, *_):
    layer.directory("opt/stack")
    layer.add("opt/stack/.wh.deleted")
    layer.add("opt/stack/.wh.back")
    layer.add("opt/stack/.wh.gone")
    layer.add("opt/stack/.wh.never-there")
    layer.add("opt/stack/replaced", tarfile.DIRTYPE)
    layer.add("opt/stack/replaced/.wh..wh..opq")
    layer.add("opt/stack/replaced/new", content=b"alone here\n")
    layer.add("opt/stack/becomes-directory", tarfile.DIRTYPE)
    layer.add("opt/stack/becomes-directory/inside", content=b"new\n")
    layer.add("opt/stack/becomes-file", content=b"a file\n")
    layer.add("opt/stack/becomes-link", tarfile.SYMTYPE, link="merged/below")
    layer.directory("opt/stack/merged")
    layer.add("opt/stack/merged/above", content=b"two of two\n")
    layer.add("opt/stack/mode", content=b"other mode and owner above\n", mode=0o644, owner=(1000, 1001))


def _odd(layer, _, who):
    layer.directory("opt/odd")
    layer.add("opt/odd/set-user-id", content=who, mode=0o4755)
    layer.add("opt/odd/override-rights", content=who, mode=0o755, xattrs={"security.capability": OVERRIDE_RIGHTS})
    layer.add("opt/odd/secret", content=b"for root only\n", mode=0o600)
    layer.add("opt/odd/link-a", content=b"two names, one file\n")
    layer.add("opt/odd/link-b", tarfile.LNKTYPE, link="opt/odd/link-a")
    layer.directory("opt/odd/elsewhere")
    layer.add("opt/odd/elsewhere/link-c", tarfile.LNKTYPE, link="opt/odd/link-a")
    layer.add("opt/odd/symlink", tarfile.SYMTYPE, link="link-b", owner=(7, 8))
    layer.add("opt/odd/dangling", tarfile.SYMTYPE, link="/not/there")
    layer.add("opt/odd/owned", content=b"by user 1000\n", owner=(1000, 1001), mode=0o640)
    layer.add("opt/odd/high", content=b"by a user with a large number\n", owner=(4_000_000_000, 4_000_000_000))
    layer.add("opt/odd/attribute", content=b"", xattrs={"user.comment": b"kept"})
    layer.add("opt/odd/attributes-of-a-directory", tarfile.DIRTYPE, mode=0o3777, owner=(1, 2), xattrs={"user.comment": b"kept as well"})
    layer.add("opt/odd/\u00fcml\u00e4ut and space", content=b"")
    layer.add("opt/odd/pipe", tarfile.FIFOTYPE, mode=0o600)
    layer.add("opt/odd/no-rights", content=b"for nobody\n", mode=0)
    layer.add("opt/odd/old", content=b"from 1970\n", mtime=1)


def _changed_again(layer, *_):
    """A third layer on the same paths, and an opaque directory with nothing below."""
    layer.directory("opt/stack")
    layer.add("opt/stack/back", content=b"here again\n")
    layer.add("opt/stack/replaced", tarfile.DIRTYPE)
    layer.add("opt/stack/replaced/newer", content=b"beside new\n")
    layer.directory("opt/stack/opaque-alone")
    layer.add("opt/stack/opaque-alone/.wh..wh..opq")
    layer.add("opt/stack/opaque-alone/inside", content=b"x\n")


# What a container sees

# Mounted by the engine, not part of the image.
MOUNTED = ("dev", "proc", "run", "sys")


def container_tree(root):
    """{path: description} of a container's root file system as the kernel shows it; more than `images.found_tree` has.

    Left out: the times of directories and names that lead to one file from several directories (engines differ in both), and attributes
    that tell overlayfs how to stack.
    """
    tree = {".": _describe(f"{root}/.")}
    for directory, directories, files in os.walk(root):
        if directory == str(root):
            directories[:] = [name for name in directories if name not in MOUNTED]
        by_inode = {}
        for name in directories + files:
            path = os.path.join(directory, name)
            tree[os.path.relpath(path, root)] = described = _describe(path)
            if described["type"] == "-":
                by_inode.setdefault(os.lstat(path).st_ino, []).append((name, described))
        for same in by_inode.values():
            for _, described in same:
                described["links"] = sorted(name for name, _ in same)
    return tree


def _describe(path):
    # Of an overlay that an ordinary user has mounted, root reads the names of the others and not the values.
    names = [name for name in os.listxattr(path, follow_symlinks=False) if not name.startswith(("user.overlay.", "trusted.overlay."))]
    attributes = {name: os.getxattr(path, name, follow_symlinks=False).hex() for name in names}
    return images.describe_path(path) | {"attributes": attributes, "device": os.lstat(path).st_rdev}
