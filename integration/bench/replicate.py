#!/usr/bin/env python3
"""What a copy of a repository costs, and what bringing it up to date costs after one more image.

  integration/bench/replicate.py [--bin target/release] [--megabytes 200 --files 5000] [--more-megabytes 40 --more-files 500]

The repository is served by `cvmfs-publisher serve`. The floor is curl, which fetches the same objects with as many connections and neither
verifies nor looks into them.
"""

import argparse
import copy as copies
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import images
import lab as laboratory
from lab import Lab
from products import Repository

FQRN = "bench.example.org"


def objects(storage):
    """Stored bytes of every object below data/, by path."""
    found = Path(storage).glob("data/[0-9a-f][0-9a-f]/*")
    return {str(path.relative_to(storage)): path.stat().st_size for path in found}


def floor(lab, url, paths, connections):
    """Seconds that curl needs to fetch these objects into one directory; None without curl."""
    if not shutil.which("curl"):
        return None
    out, config = lab.path("floor"), lab.dir / "curl.conf"
    config.write_text("".join(f'url = "{url}/{path}"\noutput = "{out}/{path.replace("/", "-")}"\n' for path in paths))
    start = time.monotonic()
    command = ["curl", "--silent", "--fail", "--parallel", "--parallel-max", str(connections), "--config", config]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return time.monotonic() - start


def replicate(lab, repository, url, copy, connections):
    """One run; returns its report and the peak of its memory in bytes."""
    command = [*repository.publisher[:1], "--json", "--state", lab.dir / "copy-state", "replicate", url, copy]
    command += ["--public-key", repository.keys / f"{FQRN}.pub", "--connections", connections]
    with open(lab.dir / "report.json", "w+") as out:
        process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        lab.equal("replicate succeeds", process.returncode, 0)
        return json.loads(out.read()), usage.ru_maxrss * 1024


def line(what, report, peak):
    stored, seconds = report["stored"], report["seconds"]
    rate = stored["bytes"] / seconds / 1e6
    print(
        f"  {what:<22}{stored['objects']:7} objects, {report['catalogs']:5} catalogs, {stored['bytes'] / 1e6:8.2f} MB stored; "
        f"{report['requests']:6} requests, {report['received'] / 1e6:8.2f} MB received; {seconds:6.2f} s, {rate:6.1f} MB/s, peak {peak / 1e6:.0f} MB"
    )


def scenario():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release", help="directory of cvmfs-publisher and cvmfs-client")
    parser.add_argument("--megabytes", type=int, default=200, help="size of the first image, plain")
    parser.add_argument("--files", type=int, default=5000, help="number of its files")
    parser.add_argument("--more-megabytes", type=int, default=40, help="size of the second image")
    parser.add_argument("--more-files", type=int, default=500, help="number of its files")
    parser.add_argument("--connections", type=int, default=16, help="requests in flight")
    args = parser.parse_args()

    with Lab(os.environ.get("DEMO_DIR", "target/demo")) as lab:
        repository = Repository(lab, args.bin, FQRN)
        repository.create()
        copy = copies.copy(repository)
        copy.storage, copy.state = lab.dir / "copy", lab.dir / "copy-state"
        copy.publisher = [*copy.publisher[:1], "--storage", copy.storage, "--keys", copy.keys, "--state", copy.state]
        url = f"http://127.0.0.1:{repository.serve()}/cvmfs/{FQRN}"

        def publish(name, megabytes, files, seed):
            layout = images.generated_image(lab.home, megabytes, megabytes // 10, files=files, seed=seed)
            lab.run(*repository.publisher, "convert-image", f"oci:{layout}:1", FQRN, "--as", f"bench/{name}:1")

        print()
        publish("first", args.megabytes, args.files, seed=1)
        before = objects(repository.storage)
        curl = floor(lab, url, before, args.connections)
        report, peak = replicate(lab, repository, url, copy.storage, args.connections)
        line("first copy", report, peak)
        if curl:
            print(f"  curl, the same objects {curl:.2f} s: replicate / curl = {report['seconds'] / curl:.2f}")
        lab.equal("the copy is sound", copy.check("--data"), 0)

        publish("second", args.more_megabytes, args.more_files, seed=2)
        after = objects(repository.storage)
        new = {path: size for path, size in after.items() if path not in before}
        report, peak = replicate(lab, repository, url, copy.storage, args.connections)
        line("after one more image", report, peak)
        published = sum(new.values())
        print(f"  published in between  {len(new):7} objects, {published / 1e6:.2f} MB: received / published = {report['received'] / published:.3f}")
        lab.check("no more comes than was published", report["received"] <= published + 10_000)
        lab.equal("the copy is sound", copy.check("--data"), 0)

        report, peak = replicate(lab, repository, url, copy.storage, args.connections)
        line("nothing new", report, peak)
        lab.equal("nothing new costs three requests", (report["requests"], report["stored"]["objects"]), (3, 0))
    return lab.verdict()


if __name__ == "__main__":
    laboratory.main(scenario)
