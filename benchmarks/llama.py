"""The side of llama.cpp in `benchmarks.decode`: writes random models as GGUF, and times tokens in its own process.

As a program it needs only the package llama-cpp-python:

    python benchmarks/llama.py model.gguf    # then a line "THREADS TOKENS" on stdin gives a line of JSON

The program keeps one model loaded. The random weights are dense, because llama.cpp does not use zeros.
"""

import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROMPT = 16


def write_gguf(config: Any, path: Path, kind: str) -> int:
    """Write a random Llama of a transformers configuration, with matrices of `kind`: BF16 or Q8_0.

    Returns the bytes of the file that every token reads: all bytes, but without the embedding if the head is separate.
    """
    import gguf
    import numpy as np

    head = config.hidden_size // config.num_attention_heads
    hidden, inner, keys = config.hidden_size, config.intermediate_size, config.num_key_value_heads * head
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(hidden)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    quantised = gguf.GGMLQuantizationType[kind]
    random = np.random.default_rng(0)

    def matrix(name: str, rows: int, cols: int) -> int:
        values = (0.02 * random.standard_normal((rows, cols), dtype=np.float32)).astype(np.float32)
        stored = gguf.quants.quantize(values, quantised)
        writer.add_tensor(name + ".weight", stored, raw_dtype=quantised)
        return int(stored.nbytes)

    embedding = matrix("token_embd", config.vocab_size, hidden)
    if not config.tie_word_embeddings:
        matrix("output", config.vocab_size, hidden)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for number in range(config.num_hidden_layers):
        block = f"blk.{number}."
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}{name}.weight", np.ones(hidden, np.float32))
        for name, rows, cols in (
            ("attn_q", hidden, hidden),
            ("attn_k", keys, hidden),
            ("attn_v", keys, hidden),
            ("attn_output", hidden, hidden),
            ("ffn_gate", inner, hidden),
            ("ffn_up", inner, hidden),
            ("ffn_down", hidden, inner),
        ):
            matrix(block + name, rows, cols)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.stat().st_size - (0 if config.tie_word_embeddings else embedding)


class LlamaCpp:
    """A process of llama.cpp with one model, of which every token reads `size` bytes."""

    def __init__(self, python: str, path: Path, size: int) -> None:
        command = [python, str(Path(__file__)), str(path)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.bytes = size
        self.pid = self._process.pid

    def tokens(self, threads: int, count: int) -> tuple[list[float], list[float]]:
        """Return the clock times and the CPU times, in milliseconds, of each of `count` tokens after a short prompt."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{threads} {count}\n")
        self._process.stdin.flush()
        clock, cpu = json.loads(self._process.stdout.readline())
        return clock, cpu

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def serve(path: str) -> None:
    """Answer requests for timings until stdin ends."""
    import llama_cpp as api

    model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
    for line in sys.stdin:
        threads, count = map(int, line.split())
        options = api.llama_context_default_params()
        options.n_ctx, options.n_threads, options.n_threads_batch = 512, threads, threads
        context = api.llama_init_from_model(model, options)

        def decode(tokens: list[int], context: Any = context) -> None:
            array = (api.llama_token * len(tokens))(*tokens)
            if api.llama_decode(context, api.llama_batch_get_one(array, len(tokens))):
                raise SystemExit("llama_decode failed")
            ctypes.cast(api.llama_get_logits(context), ctypes.c_void_p)

        decode(list(range(10, 10 + PROMPT)))
        clock, cpu = [], []
        for _ in range(count):
            began, used = time.perf_counter(), time.process_time()
            decode([5])
            clock.append(1e3 * (time.perf_counter() - began))
            cpu.append(1e3 * (time.process_time() - used))
        api.llama_free(context)
        sys.stdout.write(json.dumps((clock, cpu)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
