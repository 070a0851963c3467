"""Code that all processes share: settings, errors, job states and specs, tables, jobs, storage, queue, logging."""

from seft import __version__ as __version__
