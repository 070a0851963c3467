"""`python -m worker` takes jobs; `python -m worker health` tells whether the workers of this host are well."""

import sys


def main() -> int:
    """Each loads its own alone: the exit status."""
    if sys.argv[1:] == ["health"]:
        from worker.health import health

        return health()
    from worker import service

    return service.main()


if __name__ == "__main__":
    sys.exit(main())
