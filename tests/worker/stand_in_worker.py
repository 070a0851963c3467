"""`python -m tests.worker.stand_in_worker SCENARIO`: a real worker whose training process is the stand-in."""

import sys

from worker.service import main

if __name__ == "__main__":
    sys.exit(main((sys.executable, "-m", "tests.worker.stand_in", sys.argv[1])))
