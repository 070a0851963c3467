"""The dashboard: HTML pages for people. Pages call the same functions as the JSON routes and have no queries."""
