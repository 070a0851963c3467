"""Schemas of requests and responses. They are separate from the tables, so that a table can change on its own."""
