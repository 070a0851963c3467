"""Verifies an exported folder from its files alone: hashes, counts of zeros, loading, and output probabilities.

Files of other formats, in the folder or in a store, are compared with it (`seft.checkpoint.formats`).

`verify` works in a separate process, so that state or patches of the exporting process cannot hide a broken folder. The
process is `python -m seft.checkpoint.verify FOLDER`, or one that `standby` started. It does not check the quality of
the model.
"""

import gc
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import ClassVar, NoReturn

import torch
from huggingface_hub import constants
from torch import Tensor, nn

from seft.checkpoint import sparsity
from seft.checkpoint.compact.byte_sources import ByteSource, blocks
from seft.checkpoint.counts import Sparsity
from seft.checkpoint.facts import Fingerprint, ListedFile, Record, listed_files, require_listed
from seft.checkpoint.formats import Store, verify_format, verify_source
from seft.config import Allocation, Compare, OutputFormat, Pattern, SparsityOf, format_of
from seft.errors import SeftError, SourceError, VerifierKilledError, VerifyError
from seft.models.load import load
from seft.models.source import find
from seft.models.targets import decoder_blocks, target_linears
from seft.prune.allocation import uniform_zeros, zeros_of_equal_rows
from seft.prune.mask import overfull_groups
from seft.prune.methods import comparison

PACKAGE_ROOT = Path(__file__).parents[2]
"""Folder that contains the package `seft`, so that the separate process imports the same one."""
_END = "\0"
"""Last character of a complete answer of the waiting process."""
FINGERPRINT_TOKENS = 32
FINGERPRINT_TOLERANCE = 3e-4  # nats; another machine differs by less in float32, one wrong weight usually by more


class _Standby:
    """A process that waits for the name of a folder, verifies the folder, and ends. It is a copy of this process."""

    waiting: ClassVar["_Standby | None"] = None

    def __init__(self, store: Store | None) -> None:
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        self._pid: int | None = os.fork()
        if not self._pid:
            _serve(requests, answers, store)
        os.close(requests)
        os.close(answers)

    def verify(self, folder: Path) -> str:
        """Return the message of the first failure, or an empty text. Raises VerifierKilledError if it was killed."""
        with suppress(BrokenPipeError):  # it was killed, so there will be no answer
            os.write(self._requests, os.fsencode(folder.absolute()))
        with open(self._answers, "rb", closefd=False) as file:
            os.close(self._requests)
            self._requests = -1
            answer = file.read().decode()
        if answer.endswith(_END):
            return answer.removesuffix(_END)
        return _failure(self._wait())

    def end(self) -> None:
        """End the process, if it still waits, and wait until it has ended."""
        for descriptor in (self._requests, self._answers):
            if descriptor >= 0:
                os.close(descriptor)
        if self._pid is not None:
            self._wait()

    def _wait(self) -> int:
        """Wait until the process has ended. Return its exit code, or the number of the signal, negated."""
        assert self._pid is not None
        _, status = os.waitpid(self._pid, 0)
        self._pid = None
        return os.waitstatus_to_exitcode(status)


def _serve(requests: int, answers: int, store: Store | None) -> NoReturn:
    """Read the name of a folder from `requests`, verify the folder, and end the process.

    The process ends without verification if `requests` is closed before a name comes.
    """
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):
            os.dup2(null, standard)
        # An open copy would keep the pipes of this process open, such as the one to its worker.
        kept = {0, 1, 2, requests, answers, *([store.fileno()] if store else [])}
        for descriptor in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
            if descriptor not in kept:
                with suppress(OSError):
                    os.close(descriptor)
        with open(requests, "rb") as file:
            folder = file.read()
        if folder:
            os.write(answers, (message_of(os.fsdecode(folder), store=store) + _END).encode())
    finally:
        os._exit(0)


def message_of(folder: str, file: str = "", format_: str = "", *, store: Store | None = None) -> str:
    """Return the message of the first failure of a folder, or of a file that was made from it, or an empty text."""
    try:
        if file:
            verify_format(Path(folder), Path(file), OutputFormat(format_))
        else:
            check(Path(folder), store)
    except SeftError as error:
        return str(error)
    except Exception as error:  # the exporting process reports it
        return f"the verification failed: {type(error).__name__}: {error}"
    return ""


@contextmanager
def standby(store: Store | None = None) -> Iterator[None]:
    """Start the process of `verify` now, while the `with` block runs, as a copy of this process.

    It reads from `store` the files of formats that are not in the folder.

    A new process imports torch and transformers again, which takes most of the time of a small export. Call this before
    torch has computed anything or started threads, and before the process has any state that could hide a flaw. Does
    nothing on other systems than Linux.
    """
    if sys.platform != "linux":
        yield
        return
    from transformers.models.llama import modeling_llama  # noqa: F401  (imports what all models share)

    # Otherwise the next garbage collection writes to every object, so both processes need a copy of all of them.
    gc.freeze()
    constants.HF_HUB_OFFLINE, before = True, constants.HF_HUB_OFFLINE
    try:
        _Standby.waiting = process = _Standby(store)
    finally:
        constants.HF_HUB_OFFLINE = before
    try:
        yield
    finally:
        _Standby.waiting = None
        process.end()


def verify(folder: Path) -> None:
    """Verify an exported folder in a separate process. Raises VerifyError with the message of the first failure."""
    if process := _Standby.waiting:
        _Standby.waiting = None
        message = process.verify(folder)
    else:
        message = verify_in_new_process(str(folder))
    if message:
        raise VerifyError(message)


def verify_file(folder: Path, file: Path, format_: OutputFormat) -> None:
    """Compare a file of a format with its dense folder in a separate process.

    Raises VerifyError with the message of the first failure.
    """
    if message := verify_in_new_process(str(folder), str(file), format_):
        raise VerifyError(message)


def verify_in_new_process(*arguments: str) -> str:
    """Return the message of the first failure, or an empty text. Raises VerifierKilledError if it was killed."""
    process = subprocess.run(
        [sys.executable, "-P", "-m", "seft.checkpoint.verify", *arguments],
        env={**os.environ, "PYTHONPATH": str(PACKAGE_ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if not process.returncode:
        return ""
    lines = process.stderr.strip().splitlines()
    return lines[-1] if lines and process.returncode > 0 else _failure(process.returncode)


def _failure(code: int) -> str:
    """Return the error message for a process that wrote none. Raises VerifierKilledError if it was killed."""
    if code == -signal.SIGKILL:
        raise VerifierKilledError("the verification process was killed. The memory of the machine may be full.")
    return f"the verification process ended too early, with exit code {code}."


def check(folder: Path, store: Store | None = None) -> None:
    """Verify an exported folder in this process. Raises VerifyError with the message of the first failure.

    `store` has the files of formats that the manifest names and that are not in the folder.
    """
    stored = _verify_files(folder, store)
    record = Record.read(folder)
    _verify_counts(record, sparsity.of_folder(folder))
    _verify_model(folder, record)
    for file in sorted(folder.iterdir()):
        if (format_ := format_of(file.name)) and format_.file:
            verify_format(folder, file, format_)
    for name, source in stored.items():
        if format_ := format_of(name):
            verify_source(folder, source, format_)


def fingerprint(model: nn.Module) -> Fingerprint:
    """Return the fingerprint of a model: log-probabilities of tokens spread evenly over the vocabulary.

    Computes in float32 whatever the data type of the model. Raises VerifyError if a logit is not finite.
    """
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    tokens = torch.arange(FINGERPRINT_TOKENS) * vocabulary // FINGERPRINT_TOKENS
    with torch.no_grad(), _computing_in_float32(model):
        logits = model(input_ids=tokens[None].to(model.device), use_cache=False).logits[0]
    scores = logits.float().log_softmax(-1).cpu()[:-1].gather(1, tokens[1:, None]).flatten()
    if not scores.isfinite().all():
        raise VerifyError(
            "the logits must be finite; some are not. The weights are broken. Prune less, or repair again."
        )
    return Fingerprint(tuple(tokens.tolist()), tuple(round(score, 6) for score in scores.tolist()))


@contextmanager
def _computing_in_float32(model: nn.Module) -> Iterator[None]:
    """Convert parameters to float32 while they are used. One block is converted at a time, so the copy is small."""
    own: dict[nn.Parameter, Tensor] = {}

    def convert(module: nn.Module, _: object) -> None:
        for weight in module.parameters():
            own[weight], weight.data = weight.data, weight.data.float()

    def restore(*_: object) -> None:
        while own:
            weight, before = own.popitem()
            weight.data = before

    with ExitStack() as hooks:
        hooks.callback(restore)
        for part in _parts(model, set(decoder_blocks(model))):
            hooks.enter_context(part.register_forward_pre_hook(convert))
            hooks.enter_context(part.register_forward_hook(restore))
        yield


def _parts(module: nn.Module, blocks: Collection[nn.Module]) -> Iterator[nn.Module]:
    """Yield the blocks, and the modules outside of them that have parameters."""
    if module in blocks or next(module.parameters(recurse=False), None) is not None:
        yield module
    else:
        for child in module.children():
            yield from _parts(child, blocks)


def _verify_files(folder: Path, store: Store | None) -> dict[str, ByteSource]:
    """Compare all files with the manifest. Return the files that are in the store, by name."""
    expected = listed_files(folder)
    singles = {each.file for each in OutputFormat if each.file and not (folder / each.file).exists()}
    stored = {name: store.open(name) for name in expected if name in singles} if store else {}
    listed = [_listed(name, source) for name, source in stored.items()]
    require_listed(folder, expected, listed)
    return stored


def _listed(name: str, source: ByteSource) -> ListedFile:
    """Return the entry of the manifest that a stored file must have. Reads the whole file."""
    digest = hashlib.sha256()
    for block in blocks(source, 0, source.size):
        digest.update(block)
    return ListedFile(name, source.size, digest.hexdigest())


def _verify_counts(record: Record, counted: Sparsity) -> None:
    recorded, actual = record.sparsity.by_name, counted.by_name
    for name in recorded | actual:
        if recorded.get(name) != actual.get(name):
            raise VerifyError(
                f"{name} must have the zeros that sparsity.json gives, {recorded.get(name)};"
                f" the safetensors files have {actual.get(name)}. Create the checkpoint again."
            )


def _verify_model(folder: Path, record: Record) -> None:
    try:
        model = load(find(str(folder))).model
    except SourceError as error:
        raise VerifyError(f"the folder must load as a model: {error} Create the checkpoint again.") from None
    _verify_budget(model, record)
    _verify_pattern(model, record.facts.prune.pattern)
    _verify_fingerprint(record.fingerprint, fingerprint(model))


def _verify_budget(model: nn.Module, record: Record) -> None:
    """Raise VerifyError if the zeros are fewer than requested.

    They are counted per linear. If zeros are not distributed evenly, or if another tool chose them, they are counted
    over all linears or the whole model. If weights are compared within rows, the required number is rounded down in
    every row, because earlier versions always did that.
    """
    config, layers = record.facts.prune, record.sparsity.layers
    shapes = {name: target.weight.shape for name, target in target_linears(model).items()}
    if comparison(config) is Compare.ROW:
        requested = {name: zeros_of_equal_rows(shape, config.sparsity) for name, shape in shapes.items()}
    else:
        requested = {name: uniform_zeros(shape, config.sparsity, config) for name, shape in shapes.items()}
    linears = record.sparsity.linears
    if record.facts.zeros_found:
        required = {"linears": (linears, int(config.sparsity * linears.weights))}
    elif config.sparsity_of is SparsityOf.MODEL:
        model_count = record.sparsity.model
        required = {"model": (model_count, int(config.sparsity * model_count.weights) - len(layers))}
    elif config.resolved_allocation is Allocation.UNIFORM and not config.compares_model:
        required = {name: (count, requested[name]) for name, count in layers.items()}
    else:
        required = {"linears": (linears, sum(requested.values()))}
    for name, (count, zeros) in required.items():
        if count.zeros < zeros:
            raise VerifyError(
                f"{name} must have a fraction of zeros of {zeros / count.weights:.6f}; it has {count.share:.6f}. Repair"
                " exceeded its budget of nonzeros. Do not publish this checkpoint."
            )


def _verify_pattern(model: nn.Module, pattern: Pattern) -> None:
    for name, target in target_linears(model).items() if pattern.grouped else ():
        groups = overfull_groups(target.weight, pattern)
        if groups:
            raise VerifyError(
                f"{name} must have at most {pattern.kept} nonzeros in every {pattern.of} inputs; {groups} groups have"
                " more. The weights violate the pattern. Do not publish this checkpoint."
            )


def _verify_fingerprint(expected: Fingerprint, actual: Fingerprint) -> None:
    gap = max(abs(a - b) for a, b in zip(actual.log_probabilities, expected.log_probabilities, strict=True))
    if actual.tokens != expected.tokens or gap > FINGERPRINT_TOLERANCE:
        raise VerifyError(
            f"the model must give the log-probabilities written at export within {FINGERPRINT_TOLERANCE};"
            f" they differ by {gap:.4g}. A weight is wrong. Create the checkpoint again."
        )


def main() -> None:
    """Verify the checkpoint folder given on the command line, or a file that was made from it, and its format.

    If a check fails, stop and write that failure as the last line of stderr.
    """
    if message := message_of(*sys.argv[1:]):
        sys.exit(" ".join(message.split()))  # errors of transformers have several lines


if __name__ == "__main__":
    main()
