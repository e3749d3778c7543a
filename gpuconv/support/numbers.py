"""Numbers formatted for people."""


def si(count: float) -> str:
    """Format a number with three digits and a decimal prefix, ready for its unit: ``57.8 M``.

    >>> si(57802752) + "B", si(999999) + "B", si(12) + "FLOP", si(2.1e-5) + "s"
    ('57.8 MB', '1 MB', '12 FLOP', '21 us')
    """
    power = 0
    while power < 5 and float(f"{count:.3g}") >= 1000:
        count, power = count / 1000, power + 1
    while power > -3 and 0 < float(f"{count:.3g}") < 1:
        count, power = count * 1000, power - 1
    return f"{count:.3g} {('', 'k', 'M', 'G', 'T', 'P', 'n', 'u', 'm')[power]}"
