"""`seft webhooks`: addresses that receive the events of jobs."""

from typing import Annotated

import typer

from seft.client.shell import AsJson, connected, show, show_rows

app = typer.Typer(help="Manage addresses that receive job events.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def create(
    url: str,
    event: Annotated[list[str] | None, typer.Option(help="An event type, such as job.succeeded. Default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create a webhook and print the secret that signs its messages. It is never shown again."""
    with connected(as_json) as service:
        hook = service.create_webhook(url, event or [])
        show(hook, as_json, f"{hook['id']}  {hook['secret']}")


@app.command("list")
def list_webhooks(as_json: AsJson = False) -> None:
    """List webhooks, newest first."""
    with connected(as_json) as service:
        hooks = service.webhooks()
        rows = (
            [hook["id"], hook["url"], ", ".join(hook["events"]) or "all", hook["disabled_at"] or ""] for hook in hooks
        )
        show_rows(hooks, as_json, ("webhook", "url", "events", "disabled"), rows)


@app.command()
def delete(webhook_id: str, as_json: AsJson = False) -> None:
    """Delete a webhook and its deliveries."""
    with connected(as_json) as service:
        hook = service.delete_webhook(webhook_id)
        show(hook, as_json, f"{hook['id']}  deleted")


@app.command()
def rotate(webhook_id: str, as_json: AsJson = False) -> None:
    """Create and print a new secret. For one day messages carry signatures of both secrets."""
    with connected(as_json) as service:
        hook = service.rotate_webhook_secret(webhook_id)
        show(hook, as_json, hook["secret"])


@app.command()
def disable(webhook_id: str, as_json: AsJson = False) -> None:
    """Stop deliveries until the webhook is enabled again."""
    with connected(as_json) as service:
        hook = service.disable_webhook(webhook_id)
        show(hook, as_json, f"{hook['id']}  disabled")


@app.command()
def enable(webhook_id: str, as_json: AsJson = False) -> None:
    """Resume the deliveries of a disabled webhook."""
    with connected(as_json) as service:
        hook = service.enable_webhook(webhook_id)
        show(hook, as_json, f"{hook['id']}  enabled")


@app.command("test")
def send_test(webhook_id: str, as_json: AsJson = False) -> None:
    """Send a test message. `deliveries` shows its result."""
    with connected(as_json) as service:
        delivery = service.test_webhook(webhook_id)
        show(delivery, as_json, f"{delivery['id']}  {delivery['state']}")


@app.command()
def deliveries(webhook_id: str, as_json: AsJson = False) -> None:
    """List the sent and pending messages of a webhook, with the responses of its address."""
    with connected(as_json) as service:
        entries = service.webhook_deliveries(webhook_id)
        rows = (
            [
                each["id"],
                each["type"],
                each["state"],
                ", ".join(str(entry["status"] or entry["text"]) for entry in each["log"]),
                each["due_at"] or "",
            ]
            for each in entries
        )
        show_rows(entries, as_json, ("delivery", "event", "state", "answers", "next try"), rows)
