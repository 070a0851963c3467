"""Read an exported folder again, trusting nothing: files, counts, loading, logits.

`verify` does it in a clean process, `python -m seft.checkpoint.verify FOLDER`, so that nothing which the exporting process has in
memory or has patched can make a broken folder look whole. It judges what was written, not whether the model is good.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from seft.checkpoint import sparsity
from seft.checkpoint.facts import MANIFEST, Fingerprint, Record, manifest
from seft.config import Allocation, Pattern, SparsityOf
from seft.errors import SeftError, SourceError, VerifyError
from seft.models.load import load
from seft.models.source import find
from seft.models.targets import target_linears
from seft.prune.allocation import uniform_zeros
from seft.prune.mask import overfull_groups

FINGERPRINT_TOKENS = 32
FINGERPRINT_TOLERANCE = 3e-4  # nats; float32 on another machine differs by less, one wrong weight mostly by more


def verify(folder: Path) -> None:
    """Check an exported folder in a process of its own; VerifyError names the first thing that is wrong."""
    package_root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-P", "-m", "seft.checkpoint.verify", str(folder)],
        env={**os.environ, "PYTHONPATH": package_root, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise VerifyError((done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}."])[-1])


def check(folder: Path) -> None:
    """The same checks in this process."""
    _check_files(folder)
    record = Record.read(folder)
    _check_counts(record, sparsity.of_folder(folder))
    _check_model(folder, record)


def fingerprint(model: nn.Module) -> Fingerprint:
    """Of a float32 model: tokens evenly spread over the vocabulary, read as one sequence. VerifyError if not finite."""
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    tokens = torch.arange(FINGERPRINT_TOKENS) * vocabulary // FINGERPRINT_TOKENS
    with torch.no_grad():
        logits = model(input_ids=tokens[None].to(model.device), use_cache=False).logits[0]
    scores = logits.float().log_softmax(-1).cpu()[:-1].gather(1, tokens[1:, None]).flatten()
    if not scores.isfinite().all():
        raise VerifyError("the logits must be finite; some are not. The weights are broken: prune less or repair anew.")
    return Fingerprint(tuple(tokens.tolist()), tuple(round(score, 6) for score in scores.tolist()))


def _check_files(folder: Path) -> None:
    try:
        written = json.loads((folder / MANIFEST).read_bytes())
        expected = {file["name"]: (file["size"], file["sha256"]) for file in written["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VerifyError(f"{folder} must hold a readable {MANIFEST}: {error}. Export again.") from None
    found = {file["name"]: (file["size"], file["sha256"]) for file in json.loads(manifest(folder))["files"]}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise VerifyError(
                f"{name} must have the (size, sha256) of {MANIFEST}, {expected.get(name)};"
                f" it has {found.get(name)}. Export or download again."
            )


def _check_counts(record: Record, counted: sparsity.Sparsity) -> None:
    said, found = ({"linears": part.linears, "model": part.model, **part.layers} for part in (record.sparsity, counted))
    for name in said | found:
        if said.get(name) != found.get(name):
            raise VerifyError(
                f"{name} must have the zeros that sparsity.json gives, {said.get(name)};"
                f" the safetensors have {found.get(name)}. Export again."
            )


def _check_model(folder: Path, record: Record) -> None:
    try:
        model = load(find(str(folder))).model
    except SourceError as error:
        raise VerifyError(f"the folder must load as a model does: {error} Export again.") from None
    _check_budget(model, record)
    _check_pattern(model, record.facts.prune.pattern)
    _check_fingerprint(record.fingerprint, fingerprint(model))


def _check_budget(model: nn.Module, record: Record) -> None:
    """As many zeros as were asked for: in each layer, or in all where the allocation shared them out."""
    config, layers = record.facts.prune, record.sparsity.layers
    asked = {
        name: uniform_zeros(target.weight.shape, config.sparsity, config)
        for name, target in target_linears(model).items()
    }
    if config.sparsity_of is SparsityOf.MODEL:
        whole = record.sparsity.model
        least = {"model": (whole, int(config.sparsity * whole.weights) - len(layers))}
    elif config.allocation is Allocation.UNIFORM:
        least = {name: (count, asked[name]) for name, count in layers.items()}
    else:
        least = {"linears": (record.sparsity.linears, sum(asked.values()))}
    for name, (count, zeros) in least.items():
        if count.zeros < zeros:
            raise VerifyError(
                f"{name} must have a share of zeros of {zeros / count.weights:.6f}; it has {count.share:.6f}. Repair"
                " left its budget: do not publish this."
            )


def _check_pattern(model: nn.Module, pattern: Pattern) -> None:
    for name, target in target_linears(model).items() if pattern.grouped else ():
        groups = overfull_groups(target.weight, pattern)
        if groups:
            raise VerifyError(
                f"{name} must have at most {pattern.kept} nonzeros in every {pattern.of} inputs; {groups} groups have"
                " more. The pattern was left: do not publish this."
            )


def _check_fingerprint(expected: Fingerprint, found: Fingerprint) -> None:
    gap = max(abs(a - b) for a, b in zip(found.log_probabilities, expected.log_probabilities, strict=True))
    if found.tokens != expected.tokens or gap > FINGERPRINT_TOLERANCE:
        raise VerifyError(
            f"the model must give the log-probabilities written at export within {FINGERPRINT_TOLERANCE};"
            f" they differ by {gap:.4g}. A weight is wrong: export again."
        )


def main() -> None:
    """Check the folder named on the command line; say what is wrong on the last line of stderr."""
    try:
        check(Path(sys.argv[1]))
    except SeftError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
