"""`python -m worker` runs jobs; `python -m worker health` checks the workers of this host."""

import sys


def main() -> int:
    """Run the command in the arguments and return its exit status. Each command imports only what it needs."""
    if sys.argv[1:] == ["health"]:
        from worker.health import health

        return health()
    from worker import service

    return service.main()


if __name__ == "__main__":
    sys.exit(main())
