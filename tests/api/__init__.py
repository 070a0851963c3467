"""Laws of the HTTP server."""
