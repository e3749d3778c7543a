"""How long things take, as a model: the host spends time to ask for an operation, and the stream spends some on it.

A stream begins an operation when the host has asked for it and what is before it in the stream has ended. So a device
that is quicker than the host waits for it, as a real one does, and events that are recorded meanwhile measure the host.
Nothing here looks at a clock: the same calls take the same time on every machine.
"""

from __future__ import annotations

from contextlib import contextmanager


class Pace:
    """The seconds that have passed for the host, and those at which each queue will be done.

    `asking` is what the host spends on an operation, and `costs` what a device spends on those named; all others cost
    it `least`, and the time in which it moves their bytes at `bandwidth`.
    """

    def __init__(self):
        self.asking, self.least, self.bandwidth, self.costs = 5e-6, 2e-6, 1.5e12, {}
        self.now = 0.0
        self._ends = {}

    def spend(self, seconds):
        """The host is busy with something else."""
        self.now += seconds

    def add(self, queue, others, what, count):
        """Put an operation on `count` bytes at the end of a queue, after what `others` hold by now."""
        self.now += self.asking
        begin = max(self.now, *(self.end(one) for one in (queue, *others)))
        self._ends[queue] = begin + self.costs.get(what, self.least + count / self.bandwidth)

    def end(self, queue):
        return self._ends.get(queue, 0.0)

    def wait(self, queue, until):
        """A queue begins nothing before that time."""
        self._ends[queue] = max(self.end(queue), until)

    def wait_on_host(self, until):
        self.now = max(self.now, until)

    @contextmanager
    def at(self, **settings):
        """Inside, other settings hold: asking, least, bandwidth, costs."""
        before = {name: getattr(self, name) for name in settings}
        vars(self).update(settings)
        try:
            yield self
        finally:
            vars(self).update(before)
