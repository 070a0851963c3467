"""Schemas of requests and responses. They are separate from the database tables, so that each can change alone."""
