"""`seft workers`: who does the jobs."""

from seft.client.shell import AsJson, connected, show_rows


def workers(as_json: AsJson = False) -> None:
    """List the service's workers, and what each of them does."""
    with connected(as_json) as service:
        found = service.workers()
        rows = (
            [
                worker["name"],
                f"{worker['device']} {worker['device_name']}",
                f"{worker['memory'] / 1e9:.1f} GB",
                worker["job_id"] or ("busy" if worker["busy"] else ""),
                worker["seen_at"][:19],
            ]
            for worker in found
        )
        show_rows(found, as_json, ("worker", "device", "memory", "job", "seen"), rows)
