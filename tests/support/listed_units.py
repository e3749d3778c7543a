"""Holds every launch in the tests to the list of units that the library says it launches."""

import re

from gpuconv.cuda import loader
from gpuconv.tools import kernel_report

KERNELS = {path.name for path in loader.folder().glob("*.cu")}

listed = set()


def must_be_listed(text, options):
    """What is launched and not in the list of units is compiled by nobody before it comes to a user."""
    file = re.match(r'#line 1 "([^"]+)"', text)
    if file is None or file[1] not in KERNELS:
        return  # a test's own
    unit = file[1], frozenset(options)
    if unit not in listed:  # or the test has changed what may be launched
        listed.clear()
        listed.update((one.file, frozenset(loader.options(one))) for one in kernel_report.units())
    assert unit in listed, f"launched, but in no UNITS: {file[1]} {' '.join(options)}"
