"""Errors of the data pipelines. Each message is one paragraph: what was expected, what was found, where, and what to do."""

from vpp_jax.common.errors import VppError


class DataError(VppError, ValueError):
    """A dataset, a configuration or an argument that cannot be used."""


class DatasetNotFoundError(DataError, FileNotFoundError):
    """No RLDS dataset at the given path, or none of the shards of the requested split."""


class ReadFailedError(DataError, OSError):
    """A file could not be read in the configured number of attempts."""


class WriteFailedError(DataError, OSError):
    """An object could not be written to its bucket."""


class BadRecordError(DataError):
    """One record that cannot be used. Says where and why, so that it can be skipped, counted and listed.

    Attributes:
      where: "FILE record N".
      field: name of the column, or "" when the record itself is broken.
      problem: what is wrong.
      advice: what to do about it, apart from skipping.
    """

    def __init__(self, where: str, field: str, problem: str, advice: str = "Repair or replace the file"):
        self.where, self.field, self.problem, self.advice = where, field, problem, advice
        place = f"{where}, field '{field}'" if field else where
        super().__init__(f"{place}: {problem}. {advice}, or set on_bad_record=skip to skip such records.")

    def __reduce__(self):  # without this, exceptions with several arguments do not survive pickling (worker processes)
        return type(self), (self.where, self.field, self.problem, self.advice)
