"""Options of the measurements that start a subject over a long line."""

import argparse
from pathlib import Path

import subjects


def subject(name):
    """A subject by its name."""
    if name not in subjects.ALL:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(subjects.ALL)}")
    return subjects.ALL[name]


def parse(documentation, binaries):
    """The options; `subject` is a value, its size in `megabytes` none if it is to be its own."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release", help=f"directory of {binaries}")
    parser.add_argument("--subject", type=subject, default="science", help=f"what is started: {' or '.join(subjects.ALL)}")
    parser.add_argument("--megabytes", type=int, help="size of the image, plain; by default what such images have")
    parser.add_argument("--repeat", type=int, default=3, help="how often each is measured; the median counts")
    parser.add_argument("--rtt", type=float, default=20, help="round-trip time of the line in ms")
    parser.add_argument("--megabits", type=float, default=100, help="its bandwidth in Mbit/s")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    return parser.parse_args()
