"""The commands about the files of a model: `seft inspect`, `export`, `pack` and `expand`.

Each function of a command returns its result as JSON data and as text. Importing this module loads no torch.
"""

import argparse
from pathlib import Path
from typing import Any

from seft.config import parse_format
from seft.console import describe_model
from seft.report import Reporter

Answer = tuple[dict[str, Any], str]


def add_inspect(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `seft inspect`."""
    command.add_argument("folder", type=Path, help="Hugging Face folder.")


def inspect(options: argparse.Namespace, _: Reporter) -> Answer:
    """Count the zeros in the files of a folder."""
    from seft.checkpoint import folder

    counted, record = folder.inspect(options.folder)
    recorded = record.data() if record else {"facts": None, "versions": None}
    facts = {key: recorded[key] for key in ("facts", "versions")}
    data = {"folder": str(options.folder), "sparsity": counted.data(), **facts}
    return data, describe_model(counted, record)


def add_export(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `seft export`."""
    command.add_argument("folder", type=Path, help="Hugging Face folder in bfloat16, such as one that prune wrote.")
    command.add_argument("--format", type=parse_format, required=True, help="Format to write, such as gguf_q8_0.")
    command.add_argument("out", type=Path, help="File to write. Must not exist.")


def export(options: argparse.Namespace, report: Reporter) -> Answer:
    """Write the model in a folder as one file of another format."""
    from seft import verbs

    size = verbs.export(options.folder, options.format, options.out, report=report)
    data = {"out": str(options.out), "format": options.format, "bytes": size}
    return data, f"{options.out}  {options.format}  {size:,} bytes, every zero kept"


def add_pack(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `seft pack`."""
    add_inspect(command)
    command.add_argument("out", type=Path, metavar="FILE", help="File to write. Must be new.")


def pack(options: argparse.Namespace, _: Reporter) -> Answer:
    """Store a model folder in one compact file."""
    from seft.checkpoint.compact import writer

    sizes = writer.pack(options.folder, options.out)
    text = f"{options.out} has {sizes.container:,} bytes. The folder has {sizes.folder:,}."
    return {"out": str(options.out), **sizes._asdict()}, text


def add_expand(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `seft expand`."""
    command.add_argument("file", help="Compact file: a path, a web address, or s3://bucket/key.")
    command.add_argument("out", type=Path, help="Folder to write. Must be new or empty.")


def expand(options: argparse.Namespace, _: Reporter) -> Answer:
    """Restore a model folder from a compact file."""
    from seft.checkpoint.compact.reader import open_container

    with open_container(options.file) as container:
        container.expand(options.out)
    text = f"{options.out} has {len(container.files)} files with {container.size:,} bytes."
    return {"out": str(options.out), "folder": container.size}, text
