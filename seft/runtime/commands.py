"""The commands `seft generate` and `seft serve`. Importing this module loads no torch."""

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from seft.errors import ConfigError
from seft.option_rules import require_used, sampling_uses
from seft.report import Reporter

if TYPE_CHECKING:
    from seft.runtime.generate import TextModel


def add_generate(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `seft generate`."""
    _add_model(command)
    command.add_argument(
        "prompt",
        type=_prompt,
        help="Text to continue, or - for the text from stdin. With a chat template it is the message of a user.",
    )
    command.add_argument("--plain", action="store_true", help="Continue the text itself, without a chat template.")
    command.add_argument("--max-tokens", type=_positive, default=256, help="Maximum of new tokens. Default: 256.")
    command.add_argument(
        "--temperature", type=_not_negative, default=0.0, help="0 takes the most probable token each time. Default: 0."
    )
    command.add_argument(
        "--top-p",
        type=_share,
        default=1.0,
        help="Use only the most probable tokens whose probabilities add up to this value. Default: 1.",
    )
    command.add_argument("--seed", type=_seed, help="Seed of the random choice.")


def add_serve(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `seft serve`."""
    _add_model(command)
    command.add_argument("--host", default="127.0.0.1", help="Address to listen on. Default: 127.0.0.1.")
    command.add_argument(
        "--port", type=_port, default=8080, help="Port to listen on; 0 takes a free one. Default: 8080."
    )
    command.add_argument(
        "--name", help="Name of the model in the API. Default: the given model, without secrets of an address."
    )


def generate(options: argparse.Namespace, _: Reporter) -> tuple[dict[str, Any], str]:
    """Generate a text and write it to stdout piece by piece, unless --json is given. Returns data and a last line."""
    require_used(options, sampling_uses(options.temperature))
    model = _load(options)
    from seft.runtime.generate import Sampling

    chat = bool(model.tokenizer.chat_template) and not options.plain
    prompt = model.encode_chat([{"role": "user", "content": options.prompt}]) if chat else model.encode(options.prompt)
    sampling = Sampling(options.temperature, options.top_p, options.seed)
    room = model.room(prompt)
    most: int = options.max_tokens if room is None else max(1, min(options.max_tokens, room))
    texts, start, first, tokens = [], time.perf_counter(), 0.0, 0
    for piece in model.stream(prompt, most, sampling, chat=chat):
        first = first or time.perf_counter()
        tokens = piece.tokens
        texts.append(piece.text)
        if not options.json:
            sys.stdout.write(piece.text)
            sys.stdout.flush()
    end = time.perf_counter()
    speed = (tokens - 1) / (end - first) if tokens > 1 else 0.0
    data = {
        "text": "".join(texts),
        "prompt_tokens": len(prompt),
        "tokens": tokens,
        "first_token_seconds": first - start,
        "tokens_per_second": speed,
        "level": _level(),
    }
    line = f"\n{tokens} tokens, {speed:.1f} tokens/s, {first - start:.2f} s to the first token, kernels: {_level()}"
    return data, line


def serve(options: argparse.Namespace, _: Reporter) -> tuple[dict[str, Any], str]:
    """Serve a model until the process is interrupted."""
    from seft.checkpoint.compact.byte_sources import public_name
    from seft.runtime.serve import Server

    name = options.name or public_name(options.model)
    _require_free(options.host, options.port)
    with Server(_load(options), name, options.host, options.port) as server:
        sys.stderr.write(f"serving {name} at {server.url}, kernels: {_level()}\n")
        sys.stderr.flush()
        server.serve_forever()
    return {"model": name}, ""


def _require_free(host: str, port: int) -> None:
    """Raise ConfigError if the server cannot listen there. Call this before loading the model, which takes long."""
    if reason := _refusal(host, 0) if host else "an empty name":
        rule = f"must be a name or an address of this machine, which refuses it ({reason})"
        raise ConfigError("host", rule, host, "Use 127.0.0.1, or 0.0.0.0 or :: for all addresses.")
    if reason := _refusal(host, port):
        rule = f"must be a port on which a server can listen at {host}, which refuses it ({reason})"
        raise ConfigError("port", rule, port, "Use another one, such as --port 8081, or 0 for a free one.")


def _refusal(host: str, port: int) -> str:
    """Return why the system lets no server listen there, or an empty text."""
    from seft.runtime.serve import family

    try:
        # Like the server, this also listens on the addresses of IPv4 if the host is ::.
        socket.create_server((host, port), family=family(host), dualstack_ipv6=family(host) is socket.AF_INET6).close()
    except (OSError, OverflowError, TypeError) as error:  # TypeError: a name that cannot be encoded
        return str(getattr(error, "strerror", error)).partition(" (")[0]
    return ""


def _level() -> str:
    from seft.native import kernels

    level = kernels.level()
    return "none, torch only" if level is None else level.name


def _load(options: argparse.Namespace) -> "TextModel":
    """Load the model. Writes a line first, because the import of torch alone takes seconds."""
    from seft.checkpoint.compact.byte_sources import public_name

    sys.stderr.write(f"loading {public_name(options.model)} ...\n")
    sys.stderr.flush()
    import torch

    from seft.float32_products import use_float32_products
    from seft.runtime.compressed import Values
    from seft.runtime.generate import TextModel

    use_float32_products()
    if options.threads:
        torch.set_num_threads(options.threads)
    values = Values(options.values) if options.values else None
    if options.device != "cpu" and not torch.cuda.is_available():
        rule = "must be cpu on this machine, where torch finds no CUDA device"
        raise ConfigError("device", rule, options.device, "Leave it out.")
    return TextModel.load(options.model, values, getattr(torch, options.dtype), options.device)


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model",
        help="Pruned model: a folder, a compact file, its address (https:// or s3://), a GGUF file, or a hub id.",
    )
    command.add_argument(
        "--values",
        choices=["bfloat16", "int8"],
        help="How nonzero weights are stored. int8 is faster and not exact. Default: int8 for a compact file with int8"
        " matrices, otherwise bfloat16.",
    )
    command.add_argument(
        "--dtype",
        choices=["bfloat16", "float32"],
        default="bfloat16",
        help="Data type of activations. Default: bfloat16.",
    )
    command.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="Device to run on. Default: cpu.")
    command.add_argument("--threads", type=_threads, help="Number of threads. Default: torch's.")


def _prompt(text: str) -> str:
    try:
        if text == "-":
            return sys.stdin.buffer.read().decode()
        text.encode()
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(f"stdin must be text in UTF-8; {error}") from None
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"must be text in UTF-8; it is {text!r}") from None
    return text


def _bounded(kind: type[int] | type[float], allows: Callable[[float], bool], rule: str) -> Callable[[str], float]:
    """Return the function that parses a number which `allows` accepts. `rule` names the numbers that it accepts."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            name = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {name}; it is {text!r}") from None
        if not allows(value):
            raise argparse.ArgumentTypeError(f"must be {rule}; it is {text}")
        return value

    return read


PROCESSORS = os.cpu_count() or 1
_positive = _bounded(int, lambda number: number >= 1, "1 or more")
_threads = _bounded(
    int, lambda number: 1 <= number <= PROCESSORS, f"from 1 to {PROCESSORS}, the processors of this machine"
)
_seed = _bounded(int, lambda number: -(2**63) <= number < 2**63, "from -2**63 to 2**63 - 1")
_port = _bounded(int, lambda number: 0 <= number < 1 << 16, "from 0 to 65535")
_not_negative = _bounded(float, lambda number: 0 <= number < float("inf"), "0 or more")
_share = _bounded(float, lambda number: 0 < number <= 1, "above 0 and at most 1")
