"""The dashboard: HTML pages for people. Its pages call the same functions as the JSON routes and contain no queries."""
