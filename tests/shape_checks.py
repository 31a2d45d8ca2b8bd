"""How annotations are checked in tests: by beartype, with the usual reading that an int will do for a float."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
