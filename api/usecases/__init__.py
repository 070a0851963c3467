"""The use cases that JSON routes and dashboard pages share: one function each, one module per domain.

A function takes the services and the caller, does the work, writes the audit row in the same transaction, and returns
a view. Routes and pages parse the request, call one of these, and shape the response. They are not in `core` because
they need the broker, the storage and the model resolver of `Services`, and return the views of `api.schemas`.
Reads that are one query of `core` have no function here.
"""
