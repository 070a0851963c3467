"""`seft webhooks`: addresses that are told what happens to jobs."""

from typing import Annotated

import typer

from seft.client.shell import AsJson, connected, show, show_rows

app = typer.Typer(help="Addresses that are told what happens to jobs.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def create(
    url: str,
    event: Annotated[list[str] | None, typer.Option(help="A type of event, such as job.succeeded; none: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Have an address told, and print the secret that signs, this once."""
    with connected(as_json) as service:
        hook = service.create_webhook(url, event or [])
        show(hook, as_json, f"{hook['id']}  {hook['secret']}")


@app.command("list")
def list_webhooks(as_json: AsJson = False) -> None:
    """List webhooks, newest first."""
    with connected(as_json) as service:
        found = service.webhooks()
        rows = (
            [hook["id"], hook["url"], ", ".join(hook["events"]) or "all", hook["disabled_at"] or ""] for hook in found
        )
        show_rows(found, as_json, ("webhook", "url", "events", "disabled"), rows)


@app.command()
def delete(webhook_id: str, as_json: AsJson = False) -> None:
    """Remove a webhook and its deliveries."""
    with connected(as_json) as service:
        hook = service.delete_webhook(webhook_id)
        show(hook, as_json, f"{hook['id']}  deleted")


@app.command()
def rotate(webhook_id: str, as_json: AsJson = False) -> None:
    """Print a new secret; the one before signs beside it for a day."""
    with connected(as_json) as service:
        hook = service.rotate_webhook_secret(webhook_id)
        show(hook, as_json, hook["secret"])


@app.command()
def disable(webhook_id: str, as_json: AsJson = False) -> None:
    """Deliver nothing until it is enabled again."""
    with connected(as_json) as service:
        hook = service.disable_webhook(webhook_id)
        show(hook, as_json, f"{hook['id']}  disabled")


@app.command()
def enable(webhook_id: str, as_json: AsJson = False) -> None:
    """Take up deliveries again after they were given up."""
    with connected(as_json) as service:
        hook = service.enable_webhook(webhook_id)
        show(hook, as_json, f"{hook['id']}  enabled")


@app.command("test")
def send_test(webhook_id: str, as_json: AsJson = False) -> None:
    """Send a message that tells of nothing; `deliveries` shows what came of it."""
    with connected(as_json) as service:
        delivery = service.test_webhook(webhook_id)
        show(delivery, as_json, f"{delivery['id']}  {delivery['state']}")


@app.command()
def deliveries(webhook_id: str, as_json: AsJson = False) -> None:
    """List what was sent to a webhook, is owed to it, and what it answered."""
    with connected(as_json) as service:
        found = service.webhook_deliveries(webhook_id)
        rows = (
            [
                each["id"],
                each["type"],
                each["state"],
                ", ".join(str(entry["status"] or entry["text"]) for entry in each["log"]),
                each["due_at"] or "",
            ]
            for each in found
        )
        show_rows(found, as_json, ("delivery", "event", "state", "answers", "next try"), rows)
