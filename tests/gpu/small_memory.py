"""`python -m tests.gpu.small_memory BYTES FOLDER PIPE PARENT STORE`: a training process whose card has few bytes.

It limits torch to a fraction of the card's memory, and then runs `worker.training`. So torch raises its real
`OutOfMemoryError`.
"""

import sys
from pathlib import Path

from worker import training


def main(most: int, folder: Path, *descriptors: int) -> None:
    """Limit the memory and run the job."""
    import torch

    torch.cuda.set_per_process_memory_fraction(most / torch.cuda.get_device_properties(0).total_memory)
    training.main(folder, *descriptors)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
