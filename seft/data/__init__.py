"""Training text: records, dataset files, chat templates, tokenization, packing and previews."""
