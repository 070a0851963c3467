"""`python -m tests.worker.stand_in_worker SCENARIO`: a real worker with the fake training process."""

import sys

from worker.service import main

if __name__ == "__main__":
    sys.exit(main((sys.executable, "-m", "tests.worker.stand_in", sys.argv[1])))
