"""Errors of the data side. Each message is one paragraph: what was expected, what came, where, and what to do."""

from vpp_jax.common.errors import VppError


class DataError(VppError, ValueError):
    """A dataset, a configuration or a request that cannot be served."""


class DatasetNotFoundError(DataError, FileNotFoundError):
    """No RLDS dataset at the given path, or none of the requested split's shards."""


class ReadFailedError(DataError, OSError):
    """A file could not be read, although it was tried as often as configured."""


class BadRecordError(DataError):
    """One record cannot be used. Carries where and why, so that it can be skipped, counted and listed.

    Attributes:
      where: "FILE record N".
      field: name of the column, or "" when the record itself is broken.
      problem: what is wrong.
    """

    def __init__(self, where: str, field: str, problem: str):
        self.where, self.field, self.problem = where, field, problem
        place = f"{where}, field '{field}'" if field else where
        super().__init__(f"{place}: {problem}. Repair or replace the file, or set on_bad_record=skip to leave such records out.")

    def __reduce__(self):  # exceptions with several arguments do not survive pickling (worker processes) without this
        return type(self), (self.where, self.field, self.problem)
