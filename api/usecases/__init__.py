"""The functions that JSON routes and dashboard pages share, one module per resource.

A function takes the services and the caller, does the work, writes the audit row in the same transaction, and returns
a view. A route or page parses the request, calls one function, and builds the response. These functions are not in
`core`, because they use the broker, the storage and the model resolver of `Services`, and return views of
`api.schemas`. A read that needs only one query calls `core` directly.
"""
