"""A Llama that is small enough to train in a test session. Pruning measurably hurts it, and repair measurably helps.

It is trained on the topics of Python's own documentation, which every machine has. Like real models, it has
grouped-query attention, tied embeddings and a byte-level tokenizer. Training is bit-identical on the same machine.
"""

from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from seft.models.targets import target_linears

VOCABULARY = 384
STEPS = 280
BATCH = 12
WINDOW = 96


def tiny_texts() -> list[str]:
    """Return the training records, one per topic, sorted by name."""
    return [str(topics[name]) for name in sorted(topics)]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a new byte-level tokenizer, with special tokens for padding and for the end of a record."""
    tokenizer = Tokenizer.from_str(_trained_tokenizer())
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


@cache
def _trained_tokenizer() -> str:
    """Train the tokenizer, and return it as JSON. Only once, because that takes a tenth of a second."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tiny_texts(), trainer)
    return str(tokenizer.to_str())


def beginning_tokenizer(head: str = "<pad>") -> PreTrainedTokenizerFast:
    """Return the same tokenizer, but it adds special tokens before every text and the end token after it.

    They are the padding token, or those that `head` names, with a space between them.
    """
    tokenizer = tiny_tokenizer()
    tokens = [("<pad>", 0), ("<eos>", 1)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        f"{head} $A <eos>", special_tokens=tokens
    )
    tokenizer.bos_token = "<pad>"
    return tokenizer


def tiny_config(blocks: int = 4) -> LlamaConfig:
    """Return a config with four query heads, two key heads, and tied embeddings."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )


def untrained_tiny(seed: int = 0, *, blocks: int = 4) -> LlamaForCausalLM:
    """Return the model without training, for tests that only need shapes."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(tiny_config(blocks)).eval()


def sparse_tiny(zeros: float = 0.6) -> LlamaForCausalLM:
    """Return the model without training, in bfloat16, with random zeros in the linears that are pruned."""
    model = untrained_tiny().to(torch.bfloat16)
    for linear in target_linears(model).values():
        linear.weight.data[torch.rand(linear.weight.shape) < zeros] = 0
    return model


def train_tiny(folder: Path) -> None:
    """Train for a few seconds from a fixed seed, and save a Hugging Face folder. Sets torch to one thread."""
    # With a model this small, several threads mostly wait for each other. On a busy machine that costs minutes.
    torch.set_num_threads(1)
    tokenizer = tiny_tokenizer()
    model = untrained_tiny().train()
    tokens = torch.tensor([token for text in tiny_texts() for token in [*tokenizer(text)["input_ids"], 1]])
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=STEPS, pct_start=0.1)
    for _ in range(STEPS):
        starts = torch.randint(len(tokens) - WINDOW, (BATCH, 1), generator=generator)
        batch = tokens[starts + torch.arange(WINDOW)]
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
