"""The dashboard: pages for people, rendered here. They call what the JSON routes call, with no query of their own."""
