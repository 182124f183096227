"""Makes container images without any hub: OCI image layouts on disk, the same bytes from the same packages each time.

`python_image` is the image of the demo: Debian's own packages and one layer with everything that a copy of an image tends to lose.
`generated_image` is an image of any size for measurements. `merged_tree` says what a container of a layout must show.
"""

import contextlib
import gzip
import hashlib
import importlib.util
import io
import json
import os
import random
import re
import shutil
import subprocess
import tarfile
from importlib._bootstrap_external import _code_to_hash_pyc
from pathlib import Path

from lab import Failure, tail

EPOCH = 1_700_000_000  # of every file that we invent

# A version 2 file capability, CAP_DAC_READ_SEARCH effective and permitted: five little-endian words (capability.h of Linux).
READ_ANY_FILE = b"".join(word.to_bytes(4, "little") for word in (0x0200_0001, 1 << 2, 0, 0, 0))

GREETING = """it's "$HOME", isn't it?"""  # quoting that shell scripts made from the config must survive
PROGRAM = b"""\
import os
import numpy

matrix = numpy.array([[4.0, 1.0], [2.0, 3.0]])
print("numpy", numpy.__version__, "finds", *sorted(float(x.round(6)) for x in numpy.linalg.eigvals(matrix)), flush=True)
print(os.environ.get("GREETING"), os.geteuid())
"""

BASE_PACKAGES = "base-files bash coreutils dash findutils grep gzip hostname libc-bin netbase perl-base sed tar util-linux".split()
PYTHON_PACKAGES = ["python3", "python3-numpy"]


class Layer:
    """One layer being written: a tar archive with numeric owners, gzip-compressed, both digests computed on the way."""

    def __init__(self, path, level=6):
        self.path = path
        self._file = open(path, "wb")
        self._blob = _Hashed(self._file)
        self._gzip = gzip.GzipFile(filename="", mode="wb", fileobj=self._blob, compresslevel=level, mtime=0)
        self._plain = _Hashed(self._gzip)
        self._tar = tarfile.open(fileobj=self._plain, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20)
        self._seen = set()

    def add(self, name, kind=tarfile.REGTYPE, content=b"", mode=None, link="", owner=(0, 0), mtime=EPOCH, xattrs=None):
        """Adds an entry; for a regular file `content` is bytes or (readable, size)."""
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.mtime = kind, link, mtime
        member.uid, member.gid = owner
        member.mode = mode if mode is not None else {tarfile.DIRTYPE: 0o755, tarfile.SYMTYPE: 0o777}.get(kind, 0o644)
        # A value that is no UTF-8 would be written in another character set, and not every reader knows that: refuse it here.
        member.pax_headers = {f"SCHILY.xattr.{key}": value.decode("utf-8") for key, value in (xattrs or {}).items()}
        stream, member.size = (io.BytesIO(content), len(content)) if isinstance(content, bytes) else content
        self._seen.add(name)
        self._tar.addfile(member, stream)

    def directory(self, name):
        """Adds a directory and those above it, unless they are in the layer."""
        for parent in [*reversed(Path(name).parents), Path(name)]:
            if str(parent) != "." and str(parent) not in self._seen:
                self.add(str(parent), tarfile.DIRTYPE)

    def add_packages(self, packages, python=None):
        """Adds what the packages install, below a merged /usr; with `python` (3, 11) also the byte code that their scripts would make."""
        for package in packages:
            with _package_files(package) as files:
                for member in files:
                    name = merged_usr(member.name)
                    if name == "." or name in self._seen and member.isdir():
                        continue
                    self.directory(str(Path(name).parent))
                    source = files.extractfile(member).read() if member.isreg() else b""
                    link = merged_usr(member.linkname) if member.islnk() else member.linkname
                    self.add(name, member.type, source, member.mode, link, (member.uid, member.gid), member.mtime)
                    if python and name.endswith(".py") and re.match(r"usr/lib/python3", name) and "/test" not in name:
                        self._add_byte_code(name, source, python)

    def _add_byte_code(self, name, source, python):
        with contextlib.suppress(SyntaxError, ValueError):  # templates and deliberate mistakes
            code = compile(source, f"/{name}", "exec", dont_inherit=True, optimize=0)
            hashed = _code_to_hash_pyc(code, importlib.util.source_hash(source), False)
            place = Path(name).parent / "__pycache__"
            self.directory(str(place))
            self.add(str(place / f"{Path(name).stem}.cpython-{python[0]}{python[1]}.pyc"), content=bytes(hashed))

    def close(self):
        """Ends the layer and returns (layer digest, diff ID, compressed size)."""
        self._tar.close()
        self._gzip.close()
        self._file.close()
        return self._blob.digest(), self._plain.digest(), self._blob.size


class _Hashed:
    def __init__(self, sink):
        self._sink, self._hash, self.size = sink, hashlib.sha256(), 0

    def write(self, data):
        self._hash.update(data)
        self.size += len(data)
        return self._sink.write(data)

    def flush(self):
        self._sink.flush()

    def digest(self):
        return "sha256:" + self._hash.hexdigest()


class Layout:
    """An OCI image layout with one image, written to `directory`; complete once `finish` has returned."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.blobs = self.directory / "blobs" / "sha256"
        self.blobs.mkdir(parents=True)
        self._layers = []

    @contextlib.contextmanager
    def layer(self, level=6):
        """The next layer, from the bottom up."""
        layer = Layer(self.blobs / "new", level)
        yield layer
        digest, diff_id, size = layer.close()
        os.rename(layer.path, self.blobs / digest.removeprefix("sha256:"))
        descriptor = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size}
        self._layers.append((descriptor, diff_id))

    def begin_with(self, layout):
        """Takes over all layers of another layout."""
        manifest, config = read_layout(layout)
        for descriptor, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"]):
            blob = descriptor["digest"].replace(":", "/")
            os.link(Path(layout) / "blobs" / blob, self.directory / "blobs" / blob)
            self._layers.append((descriptor, diff_id))

    def add_archive(self, file):
        """The next layer, made by somebody else: a tar archive, compressed with gzip. Returns its layer digest."""
        data = Path(file).read_bytes()
        digest, diff_id = (hashlib.sha256(content).hexdigest() for content in (data, gzip.decompress(data)))
        (self.blobs / digest).write_bytes(data)
        descriptor = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": f"sha256:{digest}", "size": len(data)}
        self._layers.append((descriptor, f"sha256:{diff_id}"))
        return descriptor["digest"]

    def annotate(self, number, annotations):
        """Writes annotations to the descriptor of a layer."""
        descriptor, diff_id = self._layers[number]
        self._layers[number] = (descriptor | {"annotations": annotations}, diff_id)

    def finish(self, tag, **settings):
        """Writes config (`settings` is its inner `config` object), manifest and index."""
        config = {
            "created": "2023-11-14T22:13:20Z",
            "architecture": debian_architecture(),
            "os": "linux",
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in self._layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self._store(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [descriptor for descriptor, _ in self._layers],
        }
        entry = self._store(manifest, manifest["mediaType"])
        entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
        (self.directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (self.directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))

    def _store(self, document, media_type):
        data = json.dumps(document, indent=1).encode()
        digest = hashlib.sha256(data).hexdigest()
        (self.blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def read_layout(directory):
    """(manifest, config) of the only image of a layout."""
    directory = Path(directory)
    read = lambda digest: json.loads((directory / "blobs" / digest.replace(":", "/")).read_text())
    manifest = read(json.loads((directory / "index.json").read_text())["manifests"][0]["digest"])
    return manifest, read(manifest["config"]["digest"])


def cached(home, name, key, make):
    """The directory `home/NAME-HASH`, made by `make(directory)` unless it is there; what an older recipe or `key` made is removed."""
    recipe = Path(__file__).read_text()
    digest = hashlib.sha256(json.dumps([recipe, key]).encode()).hexdigest()[:12]
    directory = Path(home) / f"{name}-{digest}"
    if not directory.exists():
        for old in Path(home).glob(f"{name}-*"):
            shutil.rmtree(old)
        unfinished = Path(home) / f"new-{name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        make(unfinished)
        unfinished.rename(directory)
    return directory


# The image of the demo


def python_image(home):
    """Debian's python3 with numpy in three layers; the third changes and deletes what the others hold. Returns the layout's directory."""
    home = Path(home).resolve()  # apt takes a relative path for one below its own cache
    home.mkdir(parents=True, exist_ok=True)
    return cached(home, "python-image", None, lambda directory: _write_python_image(directory, home / "packages"))


def _write_python_image(directory, debs):
    print("making the image from Debian packages (once, about half a minute)", flush=True)
    debs.mkdir(exist_ok=True)
    base = list_packages(BASE_PACKAGES, debs)
    everything = list_packages(BASE_PACKAGES + PYTHON_PACKAGES, debs)
    fetch_packages(BASE_PACKAGES + PYTHON_PACKAGES, debs)
    layout = Layout(directory)

    with layout.layer() as layer:
        for name in ("bin", "lib", "lib64", "sbin"):
            layer.directory(f"usr/{name}")
            layer.add(name, tarfile.SYMTYPE, link=f"usr/{name}")
        layer.add_packages([debs / name for name in base])
        layer.add("etc/passwd", content=b"root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n")
        layer.add("etc/group", content=b"root:x:0:\nnogroup:x:65534:\n")
        layer.directory("opt/demo/replaced")
        layer.add("opt/demo/deleted", content=b"the top layer deletes this\n")
        layer.add("opt/demo/replaced/old", content=b"an opaque directory hides this\n")

    with layout.layer() as layer:
        layer.add_packages([debs / name for name in everything if name not in base], byte_code_version(everything))
        multiarch = f"usr/lib/{os.uname().machine}-linux-gnu"
        for library in ("blas", "lapack"):  # what the packages' scripts would link
            layer.add(f"{multiarch}/lib{library}.so.3", tarfile.SYMTYPE, link=f"{library}/lib{library}.so.3")
        layer.add("opt/demo/replaced/older", content=b"and this\n")

    tools = read_files(debs, base, ["usr/bin/cat", "usr/bin/id"])
    with layout.layer() as layer:
        layer.directory("opt/demo")
        layer.add("opt/demo/program.py", content=PROGRAM)
        layer.add("opt/demo/.wh.deleted")
        layer.add("etc/.wh.issue")
        layer.add("opt/demo/replaced", tarfile.DIRTYPE)
        layer.add("opt/demo/replaced/.wh..wh..opq")
        layer.add("opt/demo/replaced/new", content=b"alone here\n")
        layer.add("opt/demo/set-user-id", content=tools["usr/bin/id"], mode=0o4755)
        layer.add("opt/demo/read-any-file", content=tools["usr/bin/cat"], mode=0o755, xattrs={"security.capability": READ_ANY_FILE})
        layer.add("opt/demo/secret", content=b"for root only\n", mode=0o600)
        layer.add("opt/demo/link-a", content=b"two names, one file\n")
        layer.add("opt/demo/link-b", tarfile.LNKTYPE, link="opt/demo/link-a")
        layer.add("opt/demo/symlink", tarfile.SYMTYPE, link="link-b")
        layer.add("opt/demo/owned", content=b"by user 1000\n", owner=(1000, 1001), mode=0o640)
        layer.add("opt/demo/\u00fcml\u00e4ut and space", content=b"")
        layer.add("opt/demo/pipe", tarfile.FIFOTYPE, mode=0o600)

    layout.finish(
        "1",
        Env=["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", f"GREETING={GREETING}"],
        Entrypoint=["/usr/bin/python3"],
        Cmd=["/opt/demo/program.py"],
    )


def byte_code_version(packages):
    """The version of Python among the packages if the one that runs this is the same, and can compile for it; None otherwise."""
    python = next(tuple(map(int, found.groups())) for p in packages if (found := re.match(r"libpython(3)\.(\d+)-minimal_", p)))
    # Byte code is only good for the minor version that compiled it; another Python would leave it to the container, which then starts slowly.
    return python if importlib.util.cache_from_source("x.py").endswith(f"cpython-{python[0]}{python[1]}.pyc") else None


# Debian packages, unpacked without their scripts and without touching this machine


def debian_architecture():
    """The architecture in the words of Debian and OCI, which agree where it matters."""
    return subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True).stdout.strip()


def _apt_get(caches, *arguments):
    """apt-get on the assumption that nothing is installed: a package then comes with all that it depends on."""
    if not shutil.which("apt-get"):
        raise Failure("the image is made of Debian packages and this machine has no apt-get; take another image: make demo IMAGE=…")
    options = ["-o=Dir::State::status=/dev/null", "-o=Debug::NoLocking=1", "-o=APT::Sandbox::User=root", "-o=APT::Install-Recommends=0"]
    options += [f"-o=Dir::Cache::{cache}={caches}/{cache}.bin" for cache in ("pkgcache", "srcpkgcache")]
    command = ["apt-get", "-qq", "-y", *options, *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(f"{' '.join(command)}\n{tail(done.stderr)}Perhaps the package lists are old or missing: apt-get update")
    return done.stdout


def list_packages(names, directory):
    """File names of the packages and of all that they depend on, in a fixed order."""
    uris = _apt_get(directory, "--print-uris", "-o=Dir::Cache::archives=/nonexistent", "install", *names)
    return sorted(line.split()[1] for line in uris.splitlines() if line.startswith("'"))


def fetch_packages(names, directory):
    """Downloads the packages and all that they depend on; apt checks their hashes."""
    (directory / "partial").mkdir(parents=True, exist_ok=True)
    _apt_get(directory, "--download-only", f"-o=Dir::Cache::archives={directory}", "install", *names)


@contextlib.contextmanager
def _package_files(package):
    """The archive inside a package, as a stream."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as files:
            yield files
        process.stdout.read()
    if process.returncode != 0:
        raise Failure(f"dpkg-deb can't read {package}: remove it and run this again")


def read_files(debs, packages, names):
    """The contents of some files of some packages, by name."""
    found = {}
    for package in packages:
        with _package_files(debs / package) as files:
            for member in files:
                if merged_usr(member.name) in names:
                    found[merged_usr(member.name)] = files.extractfile(member).read()
    return found


def merged_usr(name):
    """Where a package's file lies since /bin, /lib and /sbin are links into /usr."""
    name = os.path.normpath(name.lstrip("/"))
    return f"usr/{name}" if re.match(r"(bin|lib|lib64|sbin)/", name) else "." if name in ("bin", "lib", "lib64", "sbin") else name


# An image of any size


def generated_image(home, megabytes, largest, files, seed=1):
    """One image of about `megabytes` MB plain: a file of `largest` MB, the rest in `files` files in two layers; half of it compresses away."""
    Path(home).mkdir(parents=True, exist_ok=True)

    def make(directory):
        print(f"making an image of {megabytes} MB with a file of {largest} MB (once)", flush=True)
        content = Content(seed)
        sizes = random.Random(seed)
        weights = [sizes.paretovariate(1.2) for _ in range(files)]
        unit = (megabytes - largest) * 1_000_000 / sum(weights)
        layout = Layout(directory)
        with layout.layer(level=1) as layer:
            layer.directory("opt/small")
            for number, weight in enumerate(weights):
                place = f"opt/small/{number % 100:02}"
                layer.directory(place)
                size = int(weight * unit)
                layer.add(f"{place}/{number}", content=(content.read(size), size))
        with layout.layer(level=1) as layer:
            layer.directory("opt")
            layer.add("opt/large", content=(content.read(largest * 1_000_000), largest * 1_000_000))
        layout.finish("1", Env=["PATH=/usr/bin"], Cmd=["/none"])

    return cached(home, "generated-image", [megabytes, largest, files, seed], make)


class Content:
    """Bytes that never repeat and shrink to about half: words of a fixed vocabulary between random bytes."""

    BLOCK = 1 << 16

    def __init__(self, seed):
        self._random = random.Random(seed)
        vocabulary = [self._random.randbytes(self._random.randrange(3, 12)).hex().encode() + b" " for _ in range(4096)]
        self._words = b"".join(self._random.choices(vocabulary, k=200_000))

    def read(self, size):
        """A readable with the next `size` bytes."""
        return _Chunks(self._blocks(), size)

    def _blocks(self):
        while True:
            start = self._random.randrange(len(self._words) - self.BLOCK)
            noise = self._random.randbytes(self.BLOCK * 3 // 8)
            yield noise + self._words[start : start + self.BLOCK - len(noise)]


class _Chunks:
    def __init__(self, blocks, size):
        self._blocks, self._left, self._rest = blocks, size, b""

    def read(self, size):
        size = min(size, self._left)
        parts, have = [self._rest], len(self._rest)
        while have < size:
            parts.append(next(self._blocks))
            have += len(parts[-1])
        data = b"".join(parts)
        self._rest, self._left = data[size:], self._left - size
        return data[:size]


# What a container must show


def merged_tree(layout):
    """{path: description} of the image's root file system, by the rules of the OCI layer specification; the root itself is left out."""
    tree = {}
    manifest, _ = read_layout(layout)
    for descriptor in manifest["layers"]:
        blob = Path(layout) / "blobs" / descriptor["digest"].replace(":", "/")
        upper, gone = {}, []
        with tarfile.open(blob, "r:gz") as members:
            for member in members:
                path = Path(member.name)
                if path.name == ".wh..wh..opq":
                    gone.append((str(path.parent), False))
                elif path.name.startswith(".wh."):
                    gone.append((str(path.parent / path.name[4:]), True))
                elif member.islnk():
                    upper[member.name] = upper[member.linkname]
                else:
                    upper[member.name] = _describe_member(members, member)
        # What is no directory any more has nothing below it.
        gone += [(path, False) for path, about in upper.items() if about["type"] != "d" and tree.get(path, about)["type"] == "d"]
        for path, itself in gone:
            for name in [n for n in tree if n.startswith(f"{path}/") or itself and n == path]:
                del tree[name]
        tree |= upper
    return tree


def _describe_member(members, member):
    kind = {tarfile.DIRTYPE: "d", tarfile.SYMTYPE: "l", tarfile.FIFOTYPE: "p", tarfile.CHRTYPE: "c", tarfile.BLKTYPE: "b"}.get(member.type, "-")
    content = member.linkname if kind == "l" else None
    if kind == "-":
        content = f"{member.size} bytes {hashlib.file_digest(members.extractfile(member), 'sha256').hexdigest()}"
    capability = member.pax_headers.get("SCHILY.xattr.security.capability")
    return {
        "type": kind,
        "mode": None if kind == "l" else oct(member.mode),
        "owner": (member.uid, member.gid),
        "mtime": None if kind == "d" else int(member.mtime),
        "content": content,
        "capability": capability and capability.encode().hex(),
    }


def found_tree(root):
    """The same description of a directory tree as the kernel shows it."""
    tree = {}
    for directory, directories, files in os.walk(root, followlinks=False):
        for name in directories + files:
            path = os.path.join(directory, name)
            tree[os.path.relpath(path, root)] = describe_path(path)
    return tree


def describe_path(path):
    """One entry of `found_tree`."""
    info = os.lstat(path)
    kind = {0o04: "d", 0o12: "l", 0o01: "p", 0o02: "c", 0o06: "b"}.get(info.st_mode >> 12, "-")
    content, capability = None, None
    if kind == "l":
        content = os.readlink(path)
    if kind == "-":
        with open(path, "rb") as file:
            content = f"{info.st_size} bytes {hashlib.file_digest(file, 'sha256').hexdigest()}"
        with contextlib.suppress(OSError):
            capability = os.getxattr(path, "security.capability").hex()
    return {
        "type": kind,
        "mode": None if kind == "l" else oct(info.st_mode & 0o7777),
        "owner": (info.st_uid, info.st_gid),
        "mtime": None if kind == "d" else int(info.st_mtime),
        "content": content,
        "capability": capability,
    }


def differences(expected, found, limit=20):
    """Readable lines, one a difference, at most `limit`."""
    lines = []
    for path in sorted(expected.keys() | found.keys()):
        if path not in found:
            lines.append(f"missing: {path}")
        elif path not in expected:
            lines.append(f"not in the image: {path} {found[path]}")
        else:
            lines += [f"{path}: {key} is {found[path][key]}, not {want}" for key, want in expected[path].items() if found[path][key] != want]
    return lines[:limit] + ([f"… and {len(lines) - limit} more"] if len(lines) > limit else [])
