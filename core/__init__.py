"""Code that all processes share: settings, errors, job requests and statuses, tables, storage, queue, logging."""

from seft import __version__ as __version__
