"""Training text: records, dataset files, chat templates, tokenizing, packing, previews."""
