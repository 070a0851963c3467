"""`seft workers`: the workers of the service."""

from seft.client.shell import AsJson, connected, show_rows


def workers(as_json: AsJson = False) -> None:
    """List the workers of the service and the job that each one runs."""
    with connected(as_json) as service:
        answer = service.workers()
        rows = (
            [
                worker["name"],
                f"{worker['device']} {worker['device_name']}",
                f"{worker['memory'] / 1e9:.1f} GB",
                worker["job_id"] or ("busy" if worker["busy"] else ""),
                worker["seen_at"][:19],
            ]
            for worker in answer
        )
        show_rows(answer, as_json, ("worker", "device", "memory", "job", "seen"), rows)
