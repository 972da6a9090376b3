"""Scripts that measure. Ratios within one run count as results; absolute figures drift with machine and day.

`python -m benchmarks` lists them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # servers and processes as the tests have them
