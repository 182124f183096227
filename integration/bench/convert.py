#!/usr/bin/env python3
"""What a conversion costs, as ratios to a floor measured in the same run: memory, time, processor.

  make bench [MEGABYTES=1500 LARGEST=1000]

The floor is the least that any publisher must do with the same bytes: inflate, SHA-256, compress, SHA-1 and write, on as many threads. It is
`target/release/examples/floor --threads N --out DIR BLOB…`, which prints {"plain_bytes": …, "seconds": …, "cpu_seconds": …}.
The merge of a flat image is `target/release/examples/flatten --rows N`, which prints {"rows": …, "seconds": …}.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import images
import lab as laboratory
import registry
from lab import Failure, Lab, tail
from products import Repository

FQRN = "bench.example.org"


def measured(command, log):
    """Runs a command; returns (wall seconds, processor seconds, peak memory in bytes)."""
    start = time.monotonic()
    with open(log, "wb") as out:
        process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise Failure(f"status {process.returncode} from {command[0]}\n{tail(log.read_text())}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def example(name, *arguments):
    """The figures that one of our measuring programs prints."""
    program = Path("target/release/examples") / name
    if not program.exists():
        raise Failure(f"{program} is missing: cargo build --release -p publisher --examples")
    done = subprocess.run([program, *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(f"status {done.returncode} from {program}\n{tail(done.stderr)}")
    return json.loads(done.stdout)


def scenario():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release", help="directory of cvmfs-publisher and cvmfs-client")
    parser.add_argument("--megabytes", type=int, default=1500, help="size of the image, plain")
    parser.add_argument("--largest", type=int, default=1000, help="size of its largest file")
    parser.add_argument("--rows", type=int, default=500_000, help="rows of the flat merge")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))

    with Lab(os.environ.get("DEMO_DIR", "target/demo")) as lab:
        layout = images.generated_image(lab.home, args.megabytes, args.largest, files=20_000)
        url = registry.serve(lab)
        registry.push(layout, url, "bench/image", "1")
        repository = Repository(lab, args.bin, FQRN)
        repository.create()
        repository.wish(f"{url}/bench/image:1")
        wall, cpu, peak = measured(repository.convert_command(), lab.dir / "convert.log")
        lab.equal("the repository is sound", repository.check(), 0)

        manifest, _ = images.read_layout(layout)
        blobs = [layout / "blobs" / layer["digest"].replace(":", "/") for layer in manifest["layers"]]
        floor = example("floor", "--threads", cores, "--out", lab.path("floor"), *blobs)
        merge = example("flatten", "--rows", args.rows)

    plain = floor["plain_bytes"]
    print(f"\nconvert an image of {plain / 1e6:.0f} MB with a file of {args.largest} MB, {cores} cores")
    print(f"  peak memory         {peak / 1e6:8.0f} MB     of 300 MB allowed: {peak / 300e6:.2f}")
    print(f"  wall                {wall:8.1f} s      {plain / wall / 1e6:.0f} MB/s plain")
    print(f"  processor           {cpu:8.1f} s      {cpu / wall:.2f} of {cores} cores busy")
    print(f"  floor, wall         {floor['seconds']:8.1f} s      convert / floor = {wall / floor['seconds']:.2f}   (target 1.2)")
    print(f"  floor, processor    {floor['cpu_seconds']:8.1f} s      convert / floor = {cpu / floor['cpu_seconds']:.2f}")
    rate = merge["rows"] / merge["seconds"]
    print(f"merge a flat image of {merge['rows']} rows")
    print(f"  rows a second       {rate:8.0f}        of 300000 wanted: {rate / 300_000:.2f}")
    return lab.verdict()


if __name__ == "__main__":
    laboratory.main(scenario)
