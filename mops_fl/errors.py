"""The errors that MoPs-FL raises at its users."""


class MopsError(Exception):
    """Something that the user can mend: the message names the field, the value and the fix."""


class ConfigError(MopsError):
    """A configuration key or value that cannot be used."""


class DataError(MopsError):
    """Data that cannot be read or is not enough."""


class ModelError(MopsError):
    """A base model that cannot be found, read or used."""


class RunError(MopsError):
    """A run that cannot start, carry on or be read."""


class PolicyError(MopsError):
    """Something that the owner of an edge machine does not allow."""
