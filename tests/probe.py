"""A part of the modules with which tests look around inside a confined process, at the moment when Python starts."""

OUTCOME = """
def outcome(action):
    try:
        action()
        return "done"
    except OSError as error:
        return type(error).__name__
"""
"""A function that runs an action and returns `done`, or the name of the error."""
