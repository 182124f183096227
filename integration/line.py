#!/usr/bin/env python3
"""A long, thin line in front of servers on this machine: round-trip time and bandwidth, where the kernel can't emulate them.

  integration/line.py [--rtt 20] [--megabits 100]       measures itself and prints what it found

Each direction is one serial link: a byte leaves when all before it have left, whichever connection they belong to, and arrives half a round
trip later. A new connection costs a round trip before its first byte. Not there: packet loss, and the slow start of TCP, which makes a real
line slower for short transfers.
"""

import argparse
import queue
import socket
import statistics
import sys
import threading
import time

from lab import Relay

# What is sent at a time: 1.3 ms of 100 Mbit/s.
CHUNK = 1 << 14

# Seconds that a connection's bytes may wait for the link, as in the buffer of a router; the link would idle otherwise.
BUFFER = 0.01


class Link:
    """Two directions that several relays may share."""

    def __init__(self, rtt, megabits):
        self.rtt, self.megabits = rtt / 1000, megabits
        self.up, self.down = (_Direction(megabits * 125_000, rtt / 2000) for _ in range(2))

    def __str__(self):
        return f"{self.rtt * 1000:g} ms, {self.megabits:g} Mbit/s"


class _Direction:
    def __init__(self, rate, delay):
        self._rate, self._delay, self._free, self._lock = rate, delay, 0.0, threading.Lock()

    def send(self, size):
        """Takes a place on the link: returns when these bytes begin to leave and when the last of them arrives."""
        with self._lock:
            begin = max(self._free, time.monotonic())
            self._free = begin + size / self._rate
            return begin, self._free + self._delay


class Line(Relay):
    """A relay that counts, behind a link."""

    def __init__(self, port, link):
        self.link = link
        super().__init__(port)

    def _pump(self, source, sink, up):
        direction, arrivals = self.link.up if up else self.link.down, queue.SimpleQueue()
        deliver = threading.Thread(target=self._deliver, args=(arrivals, sink), daemon=True)
        deliver.start()
        if up:
            time.sleep(self.link.rtt)
        try:
            while data := source.recv(CHUNK):
                self._count(data, up)
                begin, arrival = direction.send(len(data))
                arrivals.put((arrival, data))
                wait(begin - BUFFER)
        except OSError:
            pass
        arrivals.put((time.monotonic() + self.link.rtt / 2, b""))

    def _deliver(self, arrivals, sink):
        try:
            while True:
                arrival, data = arrivals.get()
                wait(arrival)
                if not data:
                    return sink.shutdown(socket.SHUT_WR)
                sink.sendall(data)
        except OSError:
            pass


def wait(moment):
    """Sleeps until then."""
    if (left := moment - time.monotonic()) > 0:
        time.sleep(left)


def measure(link, megabytes=5):
    """What a link really does: (round trip in ms, Mbit/s over one connection, over four)."""
    line = Line(_serve(), link)
    with _connect(line) as s:
        trips = [_timed(lambda: _exchange(s, 1)) for _ in range(15)]
    rates = []
    for connections in (1, 4):
        each = megabytes * 1_000_000 // connections
        sockets = [_connect(line) for _ in range(connections)]
        threads = [threading.Thread(target=_exchange, args=(s, each)) for s in sockets]
        for s in sockets:
            _exchange(s, 1)  # connected
        start = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - start - link.rtt
        rates.append(each * connections * 8 / seconds / 1e6)
        for s in sockets:
            s.close()
    return statistics.median(trips) * 1000, *rates


def _serve():
    """The port of a server that answers a number with that many bytes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept():
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection):
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while asked := connection.recv(8):
                connection.sendall(bytes(int.from_bytes(asked, "big")))

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def _connect(line):
    s = socket.create_connection(("127.0.0.1", line.port))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _exchange(s, 1)
    return s


def _exchange(s, size):
    s.sendall(size.to_bytes(8, "big"))
    while size:
        size -= len(s.recv(min(size, 1 << 18)))


def _timed(what):
    start = time.monotonic()
    what()
    return time.monotonic() - start


def check(link):
    """Measures a link; returns the line that says what it does, and whether that is within a tenth of what it should."""
    trip, *rates = measure(link)
    text = f"line of {link}: measured {trip:.1f} ms, {rates[0]:.1f} Mbit/s over one connection, {rates[1]:.1f} over four"
    return text, abs(trip / 1000 - link.rtt) < 0.1 * link.rtt + 0.0005 and all(abs(rate - link.megabits) < 0.1 * link.megabits for rate in rates)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtt", type=float, default=20, help="round-trip time in ms")
    parser.add_argument("--megabits", type=float, default=100, help="bandwidth of each direction in Mbit/s")
    args = parser.parse_args()
    text, right = check(Link(args.rtt, args.megabits))
    print(text)
    sys.exit(0 if right else "that is more than a tenth off: is this machine busy?")


if __name__ == "__main__":
    main()
