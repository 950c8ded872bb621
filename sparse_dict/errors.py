"""The one error that ends a stage with a single line instead of a traceback."""


class UserError(Exception):
    """Something the user can put right: the message is one line that says what and how."""
