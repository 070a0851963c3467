"""Datasets: uploads, resumable imports, remote sources and previews."""
