"""The benchmarks, a package so that `benchmarks/selection.py` does not stand in for the package
`selection`.

Python puts a script's own folder first on its path. It is taken off again here, so that `python
benchmarks/quality.py` finds the right one; what a benchmark imports from this package therefore
comes before what it imports from others.
"""

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _HERE]
