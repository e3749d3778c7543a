"""The parts of tests/campaign.py: random configurations of every public function, judged by the oracle, under faults.

configuration.py    what a configuration is, and random ones of all kinds
arrays.py           arrays of the same values that lie in memory in other ways
convolutions.py     one module for each kind of function: what a configuration calls, and what comes out
windows.py
layers.py
files.py
faults.py           what goes wrong around a call: no memory, an interrupt, another thread
judging.py          one configuration: called, judged, called again under its fault
reduction.py        a smaller configuration that fails in the same way
running.py          one configuration after another, until the time is over or one fails
"""

from .judging import check

__all__ = ["check"]
