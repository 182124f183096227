#!/usr/bin/env python3
"""cvmfs-client behind real caches: two Squids, two nginx servers, and what happens when one after another of them fails.

  make test-proxies

The configuration files beside this one are those that an admin would install; only addresses, directories and times are others here, so
that all runs on one machine within a minute. Prints a line for each step and ends with status 1 if an expectation was not met.
"""

import argparse
import hashlib
import io
import os
import random
import re
import shutil
import stat
import sys
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import lab as laboratory
from lab import Lab, configured, free_port
from products import Repository

FQRN = "proxies.example.org"
HERE = Path(__file__).resolve().parent

# Times of the configuration files, and what they are here.
TTL, DOT_FILES, RESET = 5, 5, 3

# One object of the store in a log line.
OBJECT = re.compile(r"/data/[0-9a-f]{2}/")


class Log:
    """The lines that a server adds to a log."""

    def __init__(self, path):
        self.path, self.offset = Path(path), 0

    def new(self):
        """Complete lines since the last call. Servers write them when an answer is complete, which its reader may know before."""
        time.sleep(0.1)
        if not self.path.exists():
            return []
        data = self.path.read_bytes()[self.offset :]
        data = data[: data.rfind(b"\n") + 1]
        self.offset += len(data)
        return data.decode(errors="replace").splitlines()


class Server:
    """A program that is stopped and started again."""

    def __init__(self, lab, name, port, command, log):
        self.lab, self.name, self.port, self.command, self.log = lab, name, port, command, Log(log)
        self.process = None

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def start(self):
        self.process = self.lab.serve(self.name, self.command, self.port)
        return self

    def stop(self):
        """Ends it by its process id."""
        self.process.terminate()
        self.process.wait(15)


def nginx(lab, name, root):
    """An nginx that serves what is in `root`/cvmfs."""
    home, port = lab.path(name), free_port()
    replacements = {"listen 8000;": f"listen 127.0.0.1:{port};", "root /srv;": f"root {root};", "max-age=61": f"max-age={DOT_FILES}"}
    (home / "cvmfs.conf").write_text(configured(HERE / "nginx/cvmfs.conf", replacements))
    (home / "nginx.conf").write_text(
        f"daemon off; master_process off; worker_processes 1; user root; pid {home}/pid; error_log {home}/error.log;\n"
        "events { worker_connections 256; }\n"
        "http {\n"
        + "".join(f"  {kind}_temp_path {home}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        + """  log_format lab '$request_method $uri $status "$http_user_agent" via=$http_via';\n"""
        f"  access_log {home}/access.log lab; sendfile on;\n  include {home}/cvmfs.conf;\n}}\n"
    )
    return Server(lab, name, port, ["nginx", "-p", home, "-c", home / "nginx.conf", "-e", home / "error.log"], home / "access.log")


def squid(lab, name, address="127.0.0.1", workers="127.0.0.1"):
    """A Squid with an empty cache on disk. Its own user has to get at it, so it is not in the lab's directory.

    Without `workers` its clients are those of the configuration file.
    """
    home, port = Path("/var/spool/squid") / name, free_port()
    home.mkdir()
    replacements = {
        "http_port 3128": f"http_port {address}:{port}\nvisible_hostname {name}\npinger_enable off",
        "src 10.0.0.0/8": f"src {workers or '10.0.0.0/8'}",
        "ufs /var/spool/squid 50000 16 256": f"ufs {home}/cache 500 4 16",
        "coredump_dir /var/spool/squid": f"coredump_dir {home}",
        "/var/log/squid": home,
        "/run/squid.pid": f"{home}/pid",
    }
    (home / "squid.conf").write_text(configured(HERE / "squid/squid.conf", replacements))
    (home / "cache").mkdir()
    for path in (home, home / "cache"):
        shutil.chown(path, "proxy", "proxy")
    lab.run("squid", "-f", home / "squid.conf", "-z", "-N")
    return Server(lab, name, port, ["squid", "-f", home / "squid.conf", "-N"], home / "access.log")


def outcomes(lines):
    """How a Squid answered: (TCP_MISS/200, URL) of each line of its log."""
    fields = (line.split() for line in lines)
    return [(field[3], field[6]) for field in fields if len(field) > 6]


class Site:
    """A repository on two servers behind two caches, and the configuration of its clients."""

    def __init__(self, lab, binaries):
        self.lab, self.repository = lab, Repository(lab, binaries, FQRN)
        lab.mount("/var/spool/squid", "mount", "-t", "tmpfs", "-o", "mode=755", "none", "/var/spool/squid")
        roots = [lab.path(f"stratum-1{letter}") for letter in "ab"]
        for root in roots:
            (root / "cvmfs").mkdir()
        self.copies = [root / "cvmfs" / FQRN for root in roots]
        self.a, self.b = (nginx(lab, f"nginx-{letter}", root) for letter, root in zip("ab", roots))
        self.squid_1, self.squid_2 = (squid(lab, f"squid-{number}") for number in (1, 2))
        self.servers = [self.a, self.b, self.squid_1, self.squid_2]
        self.random = random.Random(3)
        self.tree = {}

    def content(self, size):
        return self.random.randbytes(size)

    def publish(self, base, files):
        """Publishes files (path → content, or a link's target) below a directory, and copies the repository to the servers."""
        tar = self.lab.dir / "content.tar"
        with tarfile.open(tar, "w") as out:
            for path, content in files.items():
                member = tarfile.TarInfo(path)
                member.mtime, member.mode = 1_700_000_000, 0o644
                if isinstance(content, str):
                    member.type, member.linkname = tarfile.SYMTYPE, content
                    out.addfile(member)
                else:
                    member.size = len(content)
                    out.addfile(member, io.BytesIO(content))
                self.tree[f"{base}/{path}"] = content
        self.lab.run(*self.repository.publisher, "ingest", FQRN, "--tar", tar, "--base", base)
        for copy in self.copies:
            # Objects first, the signed manifest last.
            shutil.copytree(self.repository.storage / "data", copy / "data", symlinks=True, dirs_exist_ok=True)
            for file in self.repository.storage.iterdir():
                if file.name not in ("data", ".cvmfspublished") and file.is_file():
                    shutil.copy2(file, copy)
            shutil.copy2(self.repository.storage / ".cvmfspublished", copy / "new")
            os.rename(copy / "new", copy / ".cvmfspublished")

    def client_configuration(self, name, proxies=None):
        """A directory like /etc/cvmfs."""
        directory = self.lab.path(f"etc-{name}")
        (directory / "domain.d").mkdir()
        addresses = {
            "squid-1.example.org:3128": self.squid_1.address,
            "squid-2.example.org:3128": self.squid_2.address,
            "CVMFS_TIMEOUT=5": "CVMFS_TIMEOUT=2",
            # What was fetched ahead would be there before its server fails.
            "CVMFS_TIMEOUT_DIRECT=10": "CVMFS_TIMEOUT_DIRECT=2\nCVMFS_BACKOFF_INIT=1\nCVMFS_PREFETCH=no",
            "RESET_AFTER=300": f"RESET_AFTER={RESET}",
            "RESET_AFTER=1800": f"RESET_AFTER={RESET}",
        }
        text = configured(HERE / "cvmfs/default.local", addresses)
        (directory / "default.local").write_text(text + (f'CVMFS_HTTP_PROXY="{proxies}"\n' if proxies else ""))
        servers = {
            "stratum-1a.example.org:8000": self.a.address,
            "stratum-1b.example.org:8000": self.b.address,
            "/etc/cvmfs/keys/example.org": self.repository.keys,
        }
        (directory / "domain.d/example.org.conf").write_text(configured(HERE / "cvmfs/domain.d/example.org.conf", servers))
        return directory

    def mount(self, name, proxies=None):
        """Mounts the repository with an empty cache."""
        point = self.lab.path(name)
        options = ["--config-dir", self.client_configuration(name, proxies), "--cache", self.lab.dir / f"cache-{name}"]
        self.lab.mount(point, self.repository.client, "mount", FQRN, point, *options)
        return Mount(self, point)

    def forget(self):
        """Logs begin anew."""
        for server in self.servers:
            server.log.new()

    def get(self, url, proxy=None, method="GET"):
        """An answer to a request of our own."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": f"http://{proxy.address}"} if proxy else {}))
        try:
            return opener.open(urllib.request.Request(url, method=method), timeout=10)
        except urllib.error.HTTPError as answer:
            return answer


class Mount:
    """A mounted repository."""

    def __init__(self, site, point):
        self.site, self.lab, self.point = site, site.lab, point

    def read_right(self, step, *paths, within=10):
        """Checks that files can be read, have their content, and come in time."""
        start = time.monotonic()
        for path in paths:
            try:
                found = (self.point / path).read_bytes()
            except OSError as error:
                found = str(error).encode()
            right = self.site.tree[path]
            self.lab.check(f"{step}: {path} has its content", found == right, f"{len(found)} bytes, {found[:80]!r}")
        seconds = time.monotonic() - start
        self.lab.check(f"{step}: it takes less than {within} s", seconds < within, f"{seconds:.1f} s")

    def uses(self, step, proxy, host):
        """Checks which proxy and which server the client says that it uses."""
        proxy = f"http://{proxy.address}" if isinstance(proxy, Server) else proxy
        self.lab.equal(f"{step}: the client uses this proxy", os.getxattr(self.point, "user.proxy").decode(), proxy)
        self.lab.equal(f"{step}: the client uses this server", os.getxattr(self.point, "user.host").decode(), f"http://{host.address}/cvmfs/{FQRN}")

    def tree(self):
        """Path → content or target of everything that is no directory."""
        found = {}
        for directory, _, names in os.walk(self.point):
            for path in (Path(directory) / name for name in names):
                about = path.lstat()
                is_link = stat.S_ISLNK(about.st_mode)
                found[str(path.relative_to(self.point))] = os.readlink(path) if is_link else path.read_bytes()
        return {path: content for path, content in found.items() if not path.endswith(".cvmfscatalog")}


def scenario():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release", help="directory of cvmfs-publisher and cvmfs-client")
    args = parser.parse_args()
    lacking = [program for program in ("nginx", "squid") if not shutil.which(program)]
    if lacking:
        raise Failure(f"{' and '.join(lacking)}: integration/setup proxies")
    with Lab(os.environ.get("PROXIES_DIR", "target/proxies")) as lab:
        site = Site(lab, args.bin)
        start = time.monotonic()
        table = []
        for step in (headers, first_mount, second_mount, new_revision, damage_in_a_cache, dead_caches, dead_server, damaged_server, names):
            before = lab.passed, len(lab.failed), time.monotonic()
            step(site)
            passed, failed = lab.passed - before[0], len(lab.failed) - before[1]
            table.append((step.__doc__.splitlines()[0].rstrip("."), passed, failed, time.monotonic() - before[2]))
            print(f"{'FAILED' if failed else 'ok':8}{table[-1][0]}", flush=True)
        print(f"\n{'passed':>8}{'failed':>8}{'seconds':>9}  step")
        for name, passed, failed, seconds in table:
            print(f"{passed:8}{failed:8}{seconds:9.1f}  {name}")
        versions = [lab.run(*command) for command in (["nginx", "-v"], ["squid", "-v"])]
        print(f"\n{versions[0].stderr.strip()}, {versions[1].stdout.splitlines()[0]}; {time.monotonic() - start:.0f} s in all")
        return lab.verdict()


def headers(site):
    """nginx says how long each kind of file may be cached; Squid lets only the site in."""
    lab = site.lab
    lab.run(*site.repository.publisher, "init", FQRN, "--ttl", TTL)
    for copy in site.copies:
        copy.mkdir()
    content = {f"small/{i:03}": site.content(site.random.randrange(5000)) for i in range(300)}
    content |= {f"fresh/{i}": site.content(20_000) for i in range(20)}
    content |= {"large": site.content(30_000_000), "empty": b"", "link": "small/000", "umlaut-ä": b"named", "blank and %41": b"escaped?"}
    site.publish("software", content)
    for server in site.servers:
        server.start()
    root = f"http://{site.a.address}/cvmfs/{FQRN}"
    data = next(path for path in (site.copies[0] / "data").rglob("*") if path.is_file()).relative_to(site.copies[0])
    for path, age in (".cvmfspublished", DOT_FILES), (".cvmfswhitelist", DOT_FILES), (str(data), 259200):
        answer = site.get(f"{root}/{path}")
        lab.equal(f"{path}: status", answer.status, 200)
        lab.equal(f"{path}: how long it may be cached", answer.headers.get_all("Cache-Control"), [f"max-age={age}"])
        lab.equal(f"{path}: nothing to ask again with", (answer.headers["ETag"], answer.headers["Last-Modified"]), (None, None))
    lab.equal("an absent object", site.get(f"{root}/data/00/{'0' * 38}").status, 404)
    lab.equal("no listing of a directory", site.get(f"{root}/data/").status, 404)
    lab.equal("no writing", site.get(f"{root}/.cvmfspublished", method="PUT").status, 403)
    lab.equal("Squid leads to repositories", site.get(f"{root}/.cvmfspublished", site.squid_1).status, 200)
    lab.equal("Squid leads nowhere else", site.get(f"http://{site.a.address}/secret", site.squid_1).status, 403)


def first_mount(site):
    """A mount through the first Squid shows the whole tree."""
    lab = site.lab
    site.forget()
    site.first = site.mount("first")
    site.first.uses("first mount", site.squid_1, site.a)
    kept = {f"software/fresh/{i}" for i in range(20)}
    # The fresh files are for later: nobody has them yet.
    site.first.read_right("first mount", *(p for p, c in site.tree.items() if p not in kept and isinstance(c, bytes)), within=60)
    lab.equal("a link", os.readlink(site.first.point / "software/link"), "small/000")
    names = {str(path.relative_to(site.first.point)) for path in (site.first.point / "software").rglob("*") if not path.is_dir()}
    lab.equal("names", {name for name in names if not name.endswith(".cvmfscatalog")}, set(site.tree))
    asked, served = outcomes(site.squid_1.log.new()), site.a.log.new()
    objects = [url for _, url in asked if OBJECT.search(url)]
    lab.check("every object came through Squid once", len(objects) == len(set(objects)) > 300, f"{len(objects)} requests for {len(set(objects))} objects")
    lab.check("nginx saw nobody but Squid", served and all("squid-1" in line for line in served), [line for line in served if "squid-1" not in line][:3])
    lab.equal("the other cache and the other server were left alone", (site.squid_2.log.new(), site.b.log.new()), ([], []))


def second_mount(site):
    """A second machine gets everything out of Squid."""
    lab = site.lab
    site.forget()
    second = site.mount("second")
    read = [path for path, content in site.tree.items() if isinstance(content, bytes) and "fresh" not in path]
    second.read_right("second mount", *read, within=60)
    asked, served = outcomes(site.squid_1.log.new()), site.a.log.new()
    objects = [outcome.split("/")[0] for outcome, url in asked if OBJECT.search(url)]
    hits = {"TCP_MEM_HIT", "TCP_HIT"}
    lab.check("all objects are hits", len(objects) > 300 and set(objects) <= hits, {kind: objects.count(kind) for kind in set(objects)})
    lab.check("small ones out of memory, large ones from disk", set(objects) == hits, set(objects))
    lab.equal("nginx is not asked for objects", [line for line in served if OBJECT.search(line)], [])
    lab.run(site.repository.client, "umount", second.point)


def new_revision(site):
    """A new revision is seen when its lifetime in cache and client is over."""
    lab, mount = site.lab, site.first
    os.listdir(mount.point / "software")
    revision = os.getxattr(mount.point, "user.revision")
    site.publish("software", {"news": b"extra\n"})
    published = time.monotonic()
    longest = TTL + DOT_FILES + 5
    while not (mount.point / "software/news").exists() and time.monotonic() < published + longest + 10:
        time.sleep(0.2)
    seconds = time.monotonic() - published
    lab.check(f"the new file is there within {longest} s", seconds <= longest, f"{seconds:.1f} s")
    lab.check("the number is higher", int(os.getxattr(mount.point, "user.revision")) > int(revision))
    mount.read_right("new revision", "software/news", "software/small/000")
    kinds = [kind for kind, url in outcomes(site.squid_1.log.new()) if url.endswith(".cvmfspublished")]
    lab.check("the manifest came through Squid", kinds, kinds)
    mount.uses("new revision", site.squid_1, site.a)


def object_of(site, mount, path):
    """Where a file's object is in a copy of the repository."""
    name = os.getxattr(mount.point / path, "user.hash").decode()
    return f"data/{name[:2]}/{name[2:]}"


def damage_in_a_cache(site):
    """An object that is damaged in Squid's cache is fetched past it."""
    lab, mount = site.lab, site.first
    path = "software/fresh/0"
    name = object_of(site, mount, path)
    file, right = site.copies[0] / name, (site.copies[0] / name).read_bytes()
    file.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    got = site.get(f"http://{site.a.address}/cvmfs/{FQRN}/{name}", site.squid_1).read()
    lab.check("the damaged object is in the cache", got != right and len(got) == len(right))
    file.write_bytes(right)
    site.forget()
    mount.read_right("damaged in the cache", path)
    asked = [kind for kind, url in outcomes(site.squid_1.log.new()) if url.endswith(name)]
    lab.check("Squid gives it once, and asks the server the second time", len(asked) == 2 and "HIT" in asked[0] and "MISS" in asked[1], asked)
    mount.uses("damaged in the cache", site.squid_1, site.a)


def dead_caches(site):
    """Dead caches are left for the next group, at last for the servers, and used again when they are back."""
    lab, mount = site.lab, site.first
    site.squid_1.stop()
    site.forget()
    mount.read_right("first Squid dead", "software/fresh/1")
    mount.uses("first Squid dead", site.squid_2, site.a)
    lab.check("the second Squid was asked", any(OBJECT.search(url) for _, url in outcomes(site.squid_2.log.new())))
    site.squid_2.stop()
    site.forget()
    mount.read_right("both dead", "software/fresh/2")
    mount.uses("both dead", "DIRECT", site.a)
    direct = [line for line in site.a.log.new() if "cvmfs-client" in line and line.endswith("via=-")]
    lab.check("nginx was asked without a cache between", direct)
    site.squid_1.start()
    site.squid_2.start()
    time.sleep(RESET + 0.5)
    site.forget()
    mount.read_right("back again", "software/fresh/3")
    mount.uses("back again", site.squid_1, site.a)
    lab.check("the first Squid was asked", any(OBJECT.search(url) for _, url in outcomes(site.squid_1.log.new())))


def dead_server(site):
    """A dead server is left for the next one, with a way around the caches and without."""
    lab = site.lab
    site.a.stop()
    only = site.mount("only-squid", f"http://{site.squid_1.address}")
    site.forget()
    only.read_right("first server dead, one cache", "software/fresh/4")
    only.uses("first server dead, one cache", site.squid_1, site.b)
    lab.check("the second nginx was asked by Squid", any("squid-1" in line and OBJECT.search(line) for line in site.b.log.new()))
    site.first.read_right("first server dead, caches and a way around them", "software/fresh/5")
    site.a.start()
    time.sleep(RESET + 0.5)
    site.forget()
    only.read_right("server back again", "software/fresh/6")
    only.uses("server back again", site.squid_1, site.a)
    site.only = only


def damaged_server(site):
    """A server with a damaged and with a missing object is left for the next one."""
    lab, mount = site.lab, site.only
    for path, damage in ("software/fresh/7", lambda file: file.write_bytes(file.read_bytes()[:-100])), ("software/fresh/8", Path.unlink):
        time.sleep(RESET + 0.5)
        mount.uses(f"before {path}", site.squid_1, site.a)
        damage(site.copies[0] / object_of(site, mount, path))
        mount.read_right("damaged server", path)
        mount.uses(f"after {path}", site.squid_1, site.b)
    gone = "software/fresh/9"
    for copy in site.copies:
        (copy / object_of(site, mount, gone)).unlink()
    try:
        (mount.point / gone).read_bytes()
        error = None
    except OSError as failure:
        error = failure.errno
    lab.equal("what no server has is an I/O error", error, 5)
    mount.read_right("what no server has does not disturb the rest", "software/fresh/10")


def names(site):
    """A name of a cache with two addresses: each counts as a cache."""
    lab = site.lab
    hosts = lab.dir / "hosts"
    # Nobody listens on the second address.
    hosts.write_text("127.0.0.1 localhost\n127.0.0.1 caches.lab\n127.0.0.2 caches.lab\n")
    lab.mount("/etc/hosts", "mount", "--bind", hosts, "/etc/hosts")
    site.forget()
    for attempt in range(6):
        mount = site.mount(f"named-{attempt}", f"http://caches.lab:{site.squid_2.port}")
        mount.read_right("two addresses", "software/fresh/11", within=8)
        mount.uses("two addresses", f"http://caches.lab:{site.squid_2.port}", site.a)
        lab.run(site.repository.client, "umount", mount.point)
    lab.check("all came through the address that lives", len(outcomes(site.squid_2.log.new())) >= 6)


if __name__ == "__main__":
    laboratory.main(scenario)
