"""What a job needs before it runs: model dimensions, memory, time, and which worker it fits."""
