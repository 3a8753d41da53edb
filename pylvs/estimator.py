"""The kernel's rate estimator: every two seconds a look at the counters, and smoothed rates from what has been added.

What `--stats`, `--rate` and /proc show is the last look, so it lags up to two seconds behind, as in the kernel. Rates
are kept scaled, 1024 times for connections and packets, 32 times for bytes, and move a quarter of the way to what the
last two seconds brought.
"""

from __future__ import annotations

from pylvs.model import Stats

TICK_SECONDS = 2
#: after so many ticks without traffic every rate is zero, however high it was
LONGEST_DECAY = 256

Counts = tuple[int, int, int, int, int]
NOTHING: Counts = (0, 0, 0, 0, 0)
SHIFTS = (9, 9, 9, 4, 4)  # from what two seconds brought to the scaled rate
SCALES = (10, 10, 10, 5, 5)


class Estimate:
    """One set of counters: connections, packets in and out, bytes in and out. `owner` is whose counters they are."""

    __slots__ = ("_average", "_base", "_last", "_seen", "owner")

    def __init__(self, owner: object = None) -> None:
        self.owner = owner
        self._seen = NOTHING  # at the last look
        self._base = NOTHING  # what counts as zero
        self._last = NOTHING  # what the next rate is reckoned from
        self._average = [0, 0, 0, 0, 0]

    def look(self, counts: Counts) -> None:
        """Two seconds have passed."""
        for i, (count, last, shift) in enumerate(zip(counts, self._last, SHIFTS, strict=True)):
            self._average[i] += (((count - last) << shift) - self._average[i]) >> 2
        self._seen = self._last = counts

    def zero(self) -> None:
        """Count from the last look on, with no rates; what came since then is still to be counted, as in the kernel."""
        self._base = self._last = self._seen
        self._average = [0, 0, 0, 0, 0]

    def stats(self) -> Stats:
        """What is shown."""
        conns, inpkts, outpkts, inbytes, outbytes = (a - b for a, b in zip(self._seen, self._base, strict=True))
        cps, inpps, outpps, inbps, outbps = (
            (average + (1 << scale - 1) - 1) >> scale for average, scale in zip(self._average, SCALES, strict=True)
        )
        return Stats(
            conns=conns,
            inpkts=inpkts,
            outpkts=outpkts,
            inbytes=inbytes,
            outbytes=outbytes,
            cps=cps,
            inpps=inpps,
            outpps=outpps,
            inbps=inbps,
            outbps=outbps,
        )
