"""The entry points that read users' text or bytes, each with valid files, the call, and what can be counted."""

import checkpoint_entries  # noqa: F401 (registers its entries, as the others do)
import corpus_entries  # noqa: F401
import data_entries  # noqa: F401
import model_entries  # noqa: F401
import run_entries  # noqa: F401
import sweep_entries  # noqa: F401
from property import ENTRIES

__all__ = ["ENTRIES"]
