"""python -m durablestack"""

import sys

from durablestack.cli import main

if __name__ == "__main__":
    sys.exit(main(prog_name="python -m durablestack"))
