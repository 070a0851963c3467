"""Datasets: uploads, resumable imports, sources to fetch from, previews."""
