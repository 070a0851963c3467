"""The commands that use the library on this machine, and what they do. `seft.cli` has their functions."""

VERBS = {
    "prune": "Set a fraction of a model's weights to zero, on this machine.",
    "repair": "Train a pruned model on this machine. It stays as sparse as it is.",
    "compress": "Prune a dense model and repair it in one command, on this machine.",
    "evaluate": "Evaluate a model on this machine: perplexity, multiple choice, or a named task.",
    "export": "Write a model folder as one file of another format, such as GGUF.",
    "inspect": "Count the zeros in the files of a model folder.",
    "verify": "Compare the files of a model folder with the SHA-256 in its manifest.json.",
    "pack": "Store a model folder in one compact file, in which zeros take little space.",
    "expand": "Restore a model folder from a compact file, bit for bit. int8 and NF4 become bfloat16.",
    "reproduce": "Make a checkpoint again from the recipe in its sparsity.json, and compare the weights.",
    "generate": "Generate text with a pruned model, on this machine.",
    "serve": "Serve a pruned model on this machine, with OpenAI's API.",
}
