"""What only a GPU can tell, in about nine minutes: `python tests/first_contact.py --out FOLDER`.

Nine steps follow each other, each in a process of its own with a limit of its own; `contact/steps.py` lists them. What
a step finds is in FOLDER/results.jsonl at once, and what its processes print in FOLDER/log.txt, so that a later step
that hangs, or dies, loses nothing. At the end FOLDER/page.txt says on one page what was found; it is printed as well.

    python tests/first_contact.py --out FOLDER --steps 1-3,6     # some steps
    python tests/first_contact.py --out FOLDER --seconds 300     # less time for each
    python tests/first_contact.py --out FOLDER --record gpuconv/bench/results
    python tests/first_contact.py --show FOLDER                  # the page again, of an earlier run; with --record
    python tests/first_contact.py --out FOLDER --double          # on the double of CuPy, small: does the program work?

The exit status is 0 if all is right, and otherwise the number of the first step with a fault; 64 for wrong arguments.
It needs the packages of the extra `test` other than Jupyter's. gpuconv itself is taken from this checkout.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from contact.program import main

if __name__ == "__main__":
    sys.exit(main())
