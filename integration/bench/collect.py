#!/usr/bin/env python3
"""What a garbage collection costs in a repository of ten million objects: seconds, memory; nothing of that size is written.

  make bench-collect [OBJECTS=10000000 ORPHANS=1000000]

Runs `target/release/examples/collect OBJECTS ORPHANS`, which makes real catalogs that name every object twice, as layers and flat images do,
and a storage that makes the objects up when it is listed; it prints {"objects": …, "mark_seconds": …, "mark_peak_bytes": …, …}.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, default=Path("target/release/examples/collect"))
    parser.add_argument("--objects", type=int, default=10_000_000, help="objects that the revision refers to")
    parser.add_argument("--orphans", type=int, default=1_000_000, help="objects that nothing refers to")
    parser.add_argument("--memory", type=int, default=300, help="megabytes that it may take at most")
    args = parser.parse_args()
    if not args.program.exists():
        sys.exit(f"{args.program} is missing: cargo build --release -p cvmfs --example collect")
    done = subprocess.run([args.program, str(args.objects), str(args.orphans)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"status {done.returncode} from {args.program}")
    figures = json.loads(done.stdout)
    peak = max(figures["mark_peak_bytes"], figures["sweep_peak_bytes"]) / 1e6
    print(f"collecting among {figures['objects']:,} objects with {figures['references']:,} references in {figures['catalogs']:,} catalogs, {figures['threads']} threads")
    for name, count in (("mark", figures["references"]), ("sweep", figures["objects"])):
        seconds = figures[f"{name}_seconds"]
        print(f"  {name:5} {seconds:7.1f} s  {count / max(seconds, 0.1):12,.0f} a second  peak {figures[f'{name}_peak_bytes'] / 1e6:6.0f} MB")
    print(f"  peak memory {peak:.0f} MB of {args.memory} MB allowed")
    sys.exit(0 if peak <= args.memory else 1)


if __name__ == "__main__":
    main()
