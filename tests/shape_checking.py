"""The type checker of the import hook in `conftest.py`: shapes and types in signatures are checked while the suite runs."""

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int may stand where a float is asked for
