"""The error that a user of the scripts can mend: shown as one line, without a traceback."""


class ConfigError(ValueError):
    """Something the user gave (a key, a file, a folder, a name) cannot be used. The message says what to do."""
